"""Architectures through the whole compiler: nothing moves that should not, and what is planted is found again."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxmerge
import passes
from benchmarks.architectures import PROTOTYPE
from benchmarks.examine import summary
from benchmarks.planted import change, changes, doubled, plant, random_element
from fxmerge.coupling.elements import Element
from fxmerge.ir.program import Program
from passes.spaces.describe import describe
from passes.spaces.find import TolerancesOf

ZOO = Path(__file__).parents[3] / "shared" / "zoo"

FEW = ("albert", "falcon", "qwen3", "resnet", "levit", "t5")
"""Shared weights, one key for all queries, norms on queries, batch norm, an encoder beside a decoder."""


# -- models -------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Layer(nn.Module):
    """Grouped-query attention with rotary positions, and a gated MLP."""

    def __init__(self, width: int, heads: int, groups: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.groups, self.inner = heads, groups, inner
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q, self.o = nn.Linear(width, heads * inner, bias=False), nn.Linear(heads * inner, width, bias=False)
        self.kv = nn.Linear(width, 2 * groups * inner, bias=False)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = self.norm1(x)
        k, v = self.kv(y).chunk(2, dim=-1)
        q, k, v = (
            part.view(batch, length, n, self.inner).transpose(1, 2)
            for part, n in ((self.q(y), self.heads), (k, self.groups), (v, self.groups))
        )
        q, k = q * cos + turned(q) * sin, k * cos + turned(k) * sin
        k, v = (part.repeat_interleave(self.heads // self.groups, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, length, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 24)
        self.layers = nn.ModuleList(Layer(24, 6, 2, 8, 40) for _ in range(2))
        self.norm, self.head = RMSNorm(24), nn.Linear(24, 50, bias=False)
        self.register_buffer("speeds", 100.0 ** (-torch.arange(4) / 4), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        angles = torch.arange(input_ids.shape[1], device=input_ids.device)[:, None] * self.speeds
        cos, sin = (torch.cat((part, part), dim=-1) for part in (angles.cos(), angles.sin()))
        x = self.tokens(input_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


class Net(nn.Module):
    """Convolutions as vision models use them: batch norm, depthwise, squeeze and excite, a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 8, 1)
        self.point, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.stem(x)))
        y = F.hardswish(self.norm2(self.deep(x)))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head((x + self.point(y)).mean((2, 3)))


def shaken(model: nn.Module) -> nn.Module:
    """No scale is 1 and no shift 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def program(parents: Callable[[str, int], list[Program]]) -> Callable[[str], Program]:
    """A captured hand-written network by name."""
    own: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
        "llama": lambda: (Llama(), torch.randint(0, 50, (3, 9))),
        "convolutions": lambda: (Net(), torch.randn(3, 3, 9, 9)),
    }
    known: dict[str, Program] = {}

    def get(name: str) -> Program:
        if name not in known:
            if name not in own:
                return parents(name, 1)[0]
            torch.manual_seed(7)
            model, x = own[name]()
            known[name] = fxmerge.capture(shaken(model), (x,), task=name)
        return known[name]

    return get


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    if not (ZOO / "zoo.py").is_file():
        pytest.skip("the zoo is not beside this checkout")
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("zoo", ZOO / "zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- what is there moves nothing ----------------------------------------------------------------------

SPACES = {
    "mlp": (2, 0),
    "vit": (9, 4),
    "vit-fused": (9, 4),
    "bert": (10, 4),
    "gpt": (9, 4),
    "llama": (9, 2),
    "convolutions": (2, 0),
}
"""How many spaces move, and how many of them are linear. Fewer: something is coupled that need not be, which no
numerical check can see."""


@pytest.mark.parametrize("name", SPACES)
def test_spaces_of_a_hand_written_network(program: Callable[[str], Program], name: str) -> None:
    found = summary(program(name))
    assert (found["movable"], found["linear"]) == SPACES[name]
    assert found["coverage"] == found["free_axes"] == 1.0
    assert passes.check(program(name)).ok


@pytest.mark.parametrize("name", SPACES)
def test_a_planted_symmetry_of_a_hand_written_network_is_undone(program: Callable[[str], Program], name: str) -> None:
    _undone(program(name))


def test_every_head_has_inner_maps_of_its_own(program: Callable[[str], Program]) -> None:
    found = describe(program("llama"))["spaces"]
    inner = [space for space in found.values() if space["role"] == "value_output"]
    assert [found[space["within"]]["size"] for space in inner] == [2, 2], "one map for each of the two groups"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_an_architecture_of_the_zoo(zoo: ModuleType, name: str) -> None:
    entry = next(entry for entry in zoo.entries() if entry["name"] == name)
    model, inputs = zoo.build(entry)
    found = fxmerge.capture(model, inputs, task=name)
    sizes = {size for port in found.inputs for size in port.dynamic}
    lengths = {"input_ids": "sequence", "decoder_input_ids": "sequence2"}
    assert sizes == {"batch", *(lengths[given] for given in lengths if given in inputs)}
    report = passes.check(found)
    assert report.ok, report
    _, movable, linear, free = PROTOTYPE[name]
    shown = summary(found)
    assert (shown["movable"], shown["linear"], shown["coverage"]) >= (movable, linear, 1.0)
    assert shown["movable"] >= movable and shown["linear"] >= linear
    assert round(shown["free_axes"], 2) >= free, "the prototype's figure has two decimals"
    _undone(found)


def _undone(found: Program) -> None:
    planted = plant(found)
    assert planted.moved > 0.7
    assert max(planted.twin, planted.undone, planted.weights, planted.outputs) < 1e-10, planted
    assert planted.plain > 1e-3, planted


def test_random_parents_average_through_onnx(tmp_path: Path) -> None:
    torch.manual_seed(3)
    x = torch.randint(0, 50, (3, 9))
    parents = [fxmerge.capture(shaken(Llama()), (x,), task=task) for task in ("a", "b")]
    merged = fxmerge.merge(parents, method="average", out=str(tmp_path / "merged.onnx"))
    assert merged.result["checks"]["onnx_max_abs"] < 1e-4


# -- what is not in the group moves the outputs ---------------------------------------------------------

MORE = {
    "identity": "permutation",
    "rotary": "permutation",
    "permutation": "orthogonal",
    "signed_permutation": "orthogonal",
}
"""The least that a group does not hold."""


@pytest.mark.parametrize("name", ["vit", "bert", "gpt", "llama", "convolutions"])
def test_no_space_takes_more_than_it_is_said_to(program: Callable[[str], Program], name: str) -> None:
    wide = doubled(program(name))
    tolerances = wide.get(TolerancesOf(passes.BUILTIN.rules))
    tried = 0
    for cls, group in tolerances.groups.items():
        if cls.size > 1 and group in MORE:
            element = Element(tolerances, {}, 1, ("permutation", "dense"))
            element.groups = {cls: MORE[group]}
            assert change(wide, changes(wide, element)) > 1e-6, f"a space of size {cls.size} takes {MORE[group]}"
            tried += 1
    assert tried > 5


@pytest.mark.parametrize("name", ["vit-fused", "gpt", "llama", "convolutions"])
def test_a_space_moves_in_all_of_its_tensors_or_in_none(program: Callable[[str], Program], name: str) -> None:
    wide = doubled(program(name))
    whole = changes(wide, random_element(wide, seed=2))
    assert change(wide, whole) < 1e-10
    matrices = [tensor for tensor in whole if whole[tensor].ndim > 1]
    for tensor in matrices:
        assert change(wide, {k: v for k, v in whole.items() if k != tensor}) > 1e-6, (
            f"{tensor} stayed and nothing moved"
        )
    assert len(matrices) > 4


def test_a_wrong_way_back_does_not_give_the_parent(program: Callable[[str], Program]) -> None:
    found = plant(program("gpt"), back=9)
    assert found.twin < 1e-10 < 1e-3 < found.outputs
