"""ONNX files as parents: beside each other, beside a traced model, through the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import fxmerge
from fxmerge.cli.verbs import main
from fxmerge.output.onnx import run_onnx
from fxmerge.sources.load import load
from tests.from_onnx.conftest import Net, export, trained_vit

Paths = tuple[Path, Path]


def test_two_files_merge_through_the_command_line(
    nets: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32))
    out, result = tmp_path / "m.onnx", tmp_path / "m.json"
    rest = ["--data", str(tmp_path / "x.npz"), "--method", "average", "--out", str(out), "--result", str(result)]
    assert main(["merge", *map(str, nets), *rest]) == 0
    assert json.loads(result.read_text())["checks"]["onnx_max_abs"] < 1e-5
    names = [parent["task"] for parent in json.loads(result.read_text())["parents"]]
    assert names == ["a", "b"]
    assert set(run_onnx(out, {"x": torch.randn(3, 6)})) == {"a.scores", "b.scores"}
    capsys.readouterr()
    assert main(["merge", *map(str, nets), "--out", str(tmp_path / "n.onnx")]) == 2
    assert "no samples for a" in capsys.readouterr().err


def test_a_file_is_what_was_written(vits: Paths) -> None:
    model = trained_vit(0)
    program = load(vits[0])
    assert program.task == "a" and not program.samples
    assert program.count() == sum(p.numel() for p in model.parameters())
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_file_merged_with_itself_is_itself(vits: Paths) -> None:
    one, two = load(vits[0], task="one"), load(vits[0], task="two")
    x = torch.randn(4, 1, 8, 8)
    merged = fxmerge.merge([one, two], method="average", data=x)
    torch.testing.assert_close(merged(x)["one"], one(x), rtol=1e-4, atol=1e-5)


def test_files_merge_as_the_models_they_were_written_from(vits: Paths) -> None:
    x = torch.randn(4, 1, 8, 8)
    models = [fxmerge.capture(trained_vit(seed), (x,), task=f"t{seed}") for seed in range(2)]
    files = [load(path, task=f"t{i}") for i, path in enumerate(vits)]
    merged = [fxmerge.merge(parents, method="average", data=x) for parents in (models, files)]
    for other in merged[1:]:
        for task in ("t0", "t1"):
            torch.testing.assert_close(other(x)[task], merged[0](x)[task], rtol=1e-4, atol=1e-5)


def test_a_file_is_inspected_checked_and_captured(
    nets: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(nets[0])]) == 0
    assert main(["inspect", str(nets[0]), "--json"]) == 0
    found = fxmerge.inspect(nets[0])
    assert found["coverage"] == 1 and found["opaque"] == []
    np.save(tmp_path / "x.npy", np.zeros((7, 6), dtype=np.float32))
    out = tmp_path / "a.pt"
    assert main(["capture", str(nets[0]), "--inputs", str(tmp_path / "x.npy"), "--out", str(out)]) == 0
    program = fxmerge.load(out)
    assert program.samples["x"].shape == (7, 6)
    torch.testing.assert_close(program(torch.ones(2, 6)), Net(0)(torch.ones(2, 6)), rtol=1e-4, atol=1e-5)
    capsys.readouterr()


class Reads(torch.nn.Module):
    """Attention over tokens, some of which are padding; over all of them, where it is `open`."""

    def __init__(self, *, open: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.open, self.table, self.norm = open, torch.nn.Embedding(20, 8), torch.nn.LayerNorm(8)
        self.q, self.k, self.v, self.last = (torch.nn.Linear(8, 8) for _ in range(4))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.table(ids))
        q, k, v = (f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = torch.ones_like(mask).bool() if self.open else mask.bool()
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])
        return self.last((found.transpose(1, 2).flatten(2) * mask[..., None].float()).sum(1))


@pytest.mark.parametrize("open", [True, False])
def test_attention_as_it_is_exported_lines_up_with_a_traced_one(open: bool, tmp_path: Path) -> None:
    """What TorchScript's exporter writes out (scale on both sides, a mask of -inf, weights that are no number)."""
    model, inputs = Reads(open=open).eval(), {"ids": torch.randint(0, 20, (5, 6)), "mask": torch.ones(5, 6).long()}
    inputs["mask"][1:3, 4:] = 0
    axes = {name: {0: "batch", 1: "length"} for name in inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(inputs.values()), tmp_path / "a.onnx", dynamo=False, input_names=[*inputs],
            output_names=["logits"], dynamic_axes=axes, opset_version=17,
        )  # fmt: skip
    file = load(tmp_path / "a.onnx", task="file")
    traced = fxmerge.capture(model, inputs, task="traced")
    merged = fxmerge.merge([file, traced], method="average", data={"file": inputs, "traced": inputs})
    torch.testing.assert_close(merged(*inputs.values())["file"], model(**inputs), rtol=1e-4, atol=1e-5)


class Untrained(torch.nn.Module):
    """Layers of one width with biases and scales as they are set to begin; or with every vector drawn."""

    def __init__(self, seed: int, drawn: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        linear, norm = torch.nn.Linear, torch.nn.LayerNorm
        self.layers = torch.nn.Sequential(linear(6, 8), norm(8), torch.nn.GELU(), linear(8, 8), norm(8))
        with torch.no_grad():
            for name, value in self.named_parameters():
                if value.ndim == 1:
                    value.copy_(torch.randn(8) if drawn else torch.full((8,), 0.5 + 0.5 * name.endswith("weight")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_vectors_of_one_number_that_an_exporter_stored_once_are_no_tied_weights(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    models = [Untrained(seed, drawn=bool(seed)) for seed in range(2)]
    files = [export(model, tmp_path / f"{n}.onnx", x) for n, model in enumerate(models)]
    once = onnx.load(files[0]).graph
    assert len(once.initializer) < len(onnx.load(files[1]).graph.initializer), "nothing was stored once"
    programs = [load(file, task=f"t{n}") for n, file in enumerate(files)]
    assert len({program.count() for program in programs}) == 1
    torch.testing.assert_close(programs[0](x), models[0](x), rtol=1e-4, atol=1e-5)
    for parents in (programs, programs[::-1]):
        merged = fxmerge.merge(parents, method="average", out=str(tmp_path / "m.onnx"), overwrite=True)
        assert merged.result["checks"]["onnx_max_abs"] < 1e-5
        assert any("one number throughout" in note for note in merged.result["notes"])


def test_a_file_whose_zero_biases_were_dropped_merges_with_one_that_has_them(nets: Paths, tmp_path: Path) -> None:
    model = onnx.load(nets[1])
    for node in model.graph.node:
        if node.op_type in ("Gemm", "LayerNormalization"):
            del node.input[2:]
    [last] = [node for node in model.graph.node if "last.bias" in node.input]
    model.graph.node.remove(last)
    model.graph.node[-1].output[0] = "scores"
    onnx.save(model, tmp_path / "b.onnx")
    x = torch.randn(16, 6)
    bare = load(tmp_path / "b.onnx")
    torch.testing.assert_close(bare(x), run_onnx(tmp_path / "b.onnx", {"x": x})["scores"], rtol=1e-4, atol=1e-5)
    merged = fxmerge.merge([load(nets[0]), bare], method="average", data=x)
    assert [each["role"] for each in merged.result["parents"]] == ["merged", "merged"]
    assert merged.result["checks"]["rewrite_max_abs"] < 1e-6
