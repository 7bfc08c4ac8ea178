"""Programs written as ONNX equal the program in ONNX Runtime, at any batch and length, under the names of the ports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxmerge.capturing import capture
from fxmerge.errors import OptionError, OutputError, SourceError
from fxmerge.from_onnx.runtime import OnnxModel, RuntimeFailure
from fxmerge.ir.program import Port, Program
from fxmerge.output.onnx import compare_onnx, export_onnx, retrace, run_onnx

WIDTH, HEADS, TOKENS, LONGEST = 32, 2, 50, 12


class Block(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, WIDTH, 7, 7)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 17, WIDTH))
        self.block, self.norm, self.head = Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.block(x))[:, 0])


class Text(nn.Module):
    """BERT-like: padding mask, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.block, self.head = Block(), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids) + self.position(torch.arange(input_ids.shape[1]))
        x = self.block(x, attention_mask[:, None, None, :].bool())
        weight = attention_mask[..., None].to(x.dtype)
        pooled = (x * weight).sum(1) / weight.sum(1)
        return {"logits": self.head(pooled), "pooled": pooled}


class Decoder(nn.Module):
    """GPT-2-like, the head tied to the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.block, self.norm = Block(causal=True), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.block(x)))


class Translator(nn.Module):
    """Encoder-decoder-like: two sequences of different lengths meet in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.read, self.write = nn.Embedding(TOKENS, WIDTH), Block(), Block()
        self.query, self.pair, self.head = (nn.Linear(WIDTH, n) for n in (WIDTH, 2 * WIDTH, TOKENS))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x, y = self.read(self.embed(source)), self.write(self.embed(target))
        key, value = self.pair(x).chunk(2, dim=-1)
        heads = [v.unflatten(2, (HEADS, -1)).transpose(1, 2) for v in (self.query(y), key, value)]
        scores = (heads[0] @ heads[1].transpose(2, 3)).softmax(-1)
        return self.head(y + (scores @ heads[2]).transpose(1, 2).flatten(2))


def _mask(rows: int, length: int) -> Tensor:
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, 1 + length // 2 :] = 0
    return mask


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], dict[str, Tensor]]]] = {
    "vit": (Vit, lambda rows, _: {"x": torch.randn(rows, 1, 28, 28)}),
    "text": (
        Text,
        lambda rows, length: {
            "input_ids": torch.randint(0, TOKENS, (rows, length)),
            "attention_mask": _mask(rows, length),
        },
    ),
    "translator": (
        Translator,
        lambda rows, length: {
            "source": torch.randint(0, TOKENS, (rows, length)),
            "target": torch.randint(0, TOKENS, (rows, max(2, length - 3))),
        },
    ),
    "decoder": (Decoder, lambda rows, length: {"ids": torch.randint(0, TOKENS, (rows, length))}),
}


def _noisy(model: nn.Module) -> nn.Module:
    """No two tensors equal: equal ones would be stored once."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """By name: a program whose outputs are called "mnist.…", its ONNX file, and a maker of inputs; made once."""

    @cache
    def make(name: str) -> Any:
        model, inputs = MODELS[name]
        torch.manual_seed(0)
        program = capture(_noisy(model()), inputs(3, LONGEST))
        program = program.evolve(outputs=tuple(replace(port, name=f"mnist.{port.name}") for port in program.outputs))
        path = tmp_path_factory.mktemp("onnx") / "model.onnx"
        export_onnx(program, path, metadata={"fxmerge.tasks": "mnist"})
        return program, path, inputs

    return make


@pytest.fixture(params=MODELS)
def written(request: pytest.FixtureRequest, made: Callable[[str], Any]) -> Any:
    return made(request.param)


def test_equals_the_program_at_any_batch_and_length(written: Any) -> None:
    program, path, inputs = written
    for rows, length in ((1, 5), (2, LONGEST), (5, 1), (7, 3)):
        fed = inputs(rows, length)
        got, expected = run_onnx(path, fed), program.run(fed)
        assert list(got) == [port.name for port in program.outputs]
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value.detach(), atol=1e-5, rtol=0)
    assert compare_onnx(path, program) < 1e-5


def test_names_and_dynamic_axes_are_those_of_the_ports(written: Any) -> None:
    program, path, _ = written
    model = OnnxModel(path)
    assert [(p.name, p.shape, p.dtype) for p in model.inputs] == [(p.name, p.shape, p.dtype) for p in program.inputs]
    assert [(p.name, p.shape) for p in model.outputs] == [(p.name, p.shape) for p in program.outputs]
    assert all(port.shape[0] == "batch" for port in (*model.inputs, *model.outputs))
    assert model.metadata == {"fxmerge.tasks": "mnist"}


def test_file_is_valid_and_holds_each_tensor_once(written: Any) -> None:
    program, path, _ = written
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    stored = sum(onnx.numpy_helper.to_array(tensor).size for tensor in proto.graph.initializer)
    assert program.count() <= stored <= program.count() + 256  # the rest: shapes and scales
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)  # no paths of this machine


def test_is_quiet(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    capfd.readouterr()
    export_onnx(program, tmp_path / "m.onnx")
    assert compare_onnx(tmp_path / "m.onnx", program) < 1e-6
    assert capfd.readouterr() == ("", "")


class Odd(nn.Module):
    """Returns its input, one value twice, and a value that depends on no input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x @ self.weight
        return x, y, y, self.weight


def test_odd_outputs(tmp_path: Path) -> None:
    program = capture(Odd(), (torch.randn(2, 4),))
    inner = tuple(Port(name, p.shape, p.dtype) for name, p in zip("abcd", program.outputs, strict=True))
    program = program.evolve(outputs=inner)
    export_onnx(program, tmp_path / "m.onnx")
    assert compare_onnx(tmp_path / "m.onnx", program) < 1e-6


def test_a_port_named_like_an_inner_value(tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 4),))
    clashing = replace(program.outputs[0], name="relu")
    program = program.evolve(outputs=(clashing,), inputs=(replace(program.inputs[0], name="0.weight"),), samples={})
    export_onnx(program, tmp_path / "m.onnx")
    assert compare_onnx(tmp_path / "m.onnx", program) < 1e-6


@pytest.mark.parametrize(("name", "opset"), [("vit", 18), ("text", 23)])
def test_other_operator_sets(made: Callable[[str], Any], name: str, opset: int, tmp_path: Path) -> None:
    program, _, _ = made(name)
    export_onnx(program, tmp_path / "m.onnx", opset=opset)
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == opset
    assert compare_onnx(tmp_path / "m.onnx", program) < 1e-5


def test_same_program_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = capture(Block(), (torch.randn(2, 5, WIDTH),))
    export_onnx(program, tmp_path / "a.onnx")
    export_onnx(program, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_retrace_keeps_sizes_dynamic() -> None:
    program = capture(nn.Linear(4, 2), (torch.randn(3, 4),))
    (value,) = retrace(program).module()(torch.randn(9, 4))
    assert value.shape == (9, 2)


def test_compare_sees_a_wrong_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    export_onnx(program, tmp_path / "m.onnx")
    off = program.evolve(tensors={name: tensor + 0.5 for name, tensor in program.tensors.items()})
    assert compare_onnx(tmp_path / "m.onnx", off) > 0.1
    wider = capture(nn.Linear(3, 4), (torch.randn(2, 3),))
    assert compare_onnx(tmp_path / "m.onnx", wider) == float("inf")


def test_not_a_number_counts_as_infinitely_far(tmp_path: Path) -> None:
    program = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    export_onnx(program, tmp_path / "m.onnx")
    broken = program.evolve(tensors={name: tensor * float("nan") for name, tensor in program.tensors.items()})
    assert compare_onnx(tmp_path / "m.onnx", broken) == float("inf")


def test_unknown_operator_set(tmp_path: Path) -> None:
    program: Program = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    with pytest.raises(OptionError, match=r"--opset 7 cannot be written\nchoose one from 18 to 23"):
        export_onnx(program, tmp_path / "m.onnx", opset=7)


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(1, 2))


def test_operator_that_onnx_lacks(tmp_path: Path) -> None:
    program = capture(Fourier(), (torch.randn(2, 3, 3),))
    with pytest.raises(OutputError, match=r"ONNX has no form of the operator aten\._linalg_eigh\.default"):
        export_onnx(program, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_opening_and_running_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(SourceError, match="ONNX Runtime cannot open it"):
        OnnxModel(tmp_path / "bad.onnx")
    program = capture(nn.Linear(3, 2), (torch.randn(2, 3),))
    export_onnx(program, tmp_path / "m.onnx")
    with pytest.raises(RuntimeFailure, match=r"cannot run the model on input \[2, 4\]"):
        run_onnx(tmp_path / "m.onnx", {"input": torch.randn(2, 4)})


class Squashed(nn.Module):
    """A vector by its length, kept from zero by a number that float32 holds and an optimizer may take for none."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.00001 / ((x**2).sum(-1, keepdim=True).sqrt() + 1e-8)


def test_numbers_next_to_zero_and_one_stay(tmp_path: Path) -> None:
    x = torch.randn(4, 5)
    x[1] = 0
    program = capture(Squashed(), (x,))
    export_onnx(program, tmp_path / "m.onnx")
    (found,) = run_onnx(tmp_path / "m.onnx", {"x": x}).values()
    torch.testing.assert_close(found, Squashed()(x), rtol=1e-6, atol=1e-7)
    kept = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node if not node.domain}
    assert {"Mul", "Add"} <= kept
