"""Models written by both exporters of torch, merged by the command line: convolutions with BatchNorm, a BERT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxmerge.cli.verbs import main
from fxmerge.output.onnx import run_onnx
from fxmerge.sources.load import load

pytestmark = pytest.mark.filterwarnings("ignore")
"""The exporters warn of themselves."""


class Residual(nn.Module):
    """A residual net with BatchNorm, whose statistics are those of some images."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3 + seed)
        for _ in range(20):
            self(torch.rand(32, 3, 8, 8))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(images)))
        x = torch.relu(x + self.second(self.inner(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_residual_nets_of_two_exporters_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.rand(4, 3, 8, 8)
    names = {"input_names": ["images"], "output_names": ["logits"], "verbose": False}
    rows = {"images": {0: torch.export.Dim("batch")}}
    torch.onnx.export(Residual(0), (x,), "a.onnx", dynamo=True, dynamic_shapes=rows, **names)
    torch.onnx.export(
        Residual(1), (x,), "b.onnx", dynamo=False, dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}}, **names
    )
    np.save("x.npy", torch.rand(48, 3, 8, 8).numpy())
    for name in "ab":
        program = load(f"{name}.onnx")
        torch.testing.assert_close(program(x), run_onnx(f"{name}.onnx", {"images": x})["logits"], rtol=1e-4, atol=1e-5)
    rest = ["--data", "x.npy", "--method", "condense", "--out", "m.onnx", "--result", "m.json", "-q"]
    assert main(["merge", "a.onnx", "b.onnx", *rest]) == 0
    result = json.loads(Path("m.json").read_text())
    assert result["checks"]["onnx_max_abs"] < 1e-5
    assert result["merged"]["averaged"] == 0
    found = run_onnx("m.onnx", {"images": x})
    assert [value.shape for value in found.values()] == [(4, 3), (4, 4)]


def test_a_bert_from_a_file_merges_with_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, num_labels=2 + seed,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config).eval()
        for value in model.parameters():  # as trained: equal tensors would be written as one
            value.data.add_(0.3 * torch.randn_like(value))
        models.append(model)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = models[0]

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return out

    ids = torch.randint(0, 20, (32, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    free = {name: {0: "n", 1: "t"} for name in inputs}
    torch.onnx.export(
        Logits(), tuple(inputs.values()), "a.onnx", dynamo=False, input_names=list(inputs),
        output_names=["logits"], dynamic_axes=free | {"logits": {0: "n"}},
    )  # fmt: skip
    models[1].save_pretrained("b")
    np.savez("x.npz", **{name: value.numpy() for name, value in inputs.items()})
    rest = ["--data", "x.npz", "--method", "condense", "--out", "m.onnx", "--result", "m.json", "-q"]
    assert main(["merge", "a.onnx", "b", *rest]) == 0
    result = json.loads(Path("m.json").read_text())
    assert result["checks"]["onnx_max_abs"] < 1e-5
    assert [parent["role"] for parent in result["parents"]] == ["merged", "merged"]
    assert {value.shape for value in run_onnx("m.onnx", inputs).values()} == {(32, 2), (32, 3)}
