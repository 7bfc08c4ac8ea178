"""torch.export archives: the same outputs as the exported program, and nothing in a file is ever executed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.ir.program import Program
from fxmerge.sources.pt2 import load_pt2

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


class Net(nn.Module):
    """Fused projections, a region without gradients, in-place operators, a tied tensor, a buffer and named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix = nn.Embedding(20, 8), nn.Linear(8, 24)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("shift", torch.arange(8.0))

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            angle = torch.arange(ids.shape[1]).to(torch.float32)[:, None] * self.shift
        x = self.tokens(ids) + angle.sin()
        q, k, v = self.mix(x).chunk(3, -1)
        x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, :].bool())
        x = torch.zeros_like(x).add_(x).relu_()
        return {"logits": self.head(x), "pooled": x.max(1).values}


def inputs() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"ids": torch.randint(0, 20, (3, 6), generator=draw), "mask": torch.ones(3, 6, dtype=torch.long)}


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def archive(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {0: Dim("rows", min=2, max=64), 1: Dim("length", min=2, max=32)}
    exported = torch.export.export(net, (), inputs(), dynamic_shapes={"ids": sizes, "mask": sizes}, strict=False)
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(exported, path)
    return path


@pytest.fixture(scope="module")
def program(archive: Path) -> Program:
    return load_pt2(archive)


def test_an_archive_gives_the_model_it_was_exported_from(net: Net, program: Program) -> None:
    assert [(p.name, p.shape) for p in program.inputs] == [
        ("ids", ("batch", "sequence")),
        ("mask", ("batch", "sequence")),
    ]
    assert [p.name for p in program.outputs] == ["logits", "pooled"]
    assert program.ranges == {"batch": (2, 64), "sequence": (2, 32)}
    assert program.parameters == {"tokens.weight", "mix.weight", "mix.bias"}
    assert program.aliases == {"head.weight": "tokens.weight"}
    assert all(torch.equal(program.samples[n], t) for n, t in inputs().items())
    other = {n: torch.cat([t, t], 1)[:2] for n, t in inputs().items()}
    wanted, got = net(**other), program.run(other)
    assert all(torch.equal(wanted[n], got[n]) for n in wanted)
    assert not any(n.target._schema.is_mutable for n in program if isinstance(n.target, torch._ops.OpOverload))


def test_source_lines_survive(program: Program) -> None:
    lines = {n.meta["source"].partition(":")[0] for n in program if n.op == "call_function" and "source" in n.meta}
    assert lines - {"runtime_assert.py"} == {"test_pt2.py"}  # the former: where torch itself reads sizes


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, while it copies a program
def test_both_forms_of_export_are_read(net: Net, tmp_path: Path) -> None:
    exported = torch.export.export(net, (), inputs(), strict=False)
    torch.export.save(exported.run_decompositions({}), tmp_path / "net.pt2")
    got = load_pt2(tmp_path / "net.pt2").run(inputs())
    assert all(torch.equal(t, got[n]) for n, t in net(**inputs()).items())


# -- hostile and damaged files -------------------------------------------------------------------------


def rewritten(archive: Path, path: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    """The archive with members changed; `change` sees them without the root folder."""
    with zipfile.ZipFile(archive) as old:
        root = old.namelist()[0].split("/")[0]
        members = {n.removeprefix(root + "/"): old.read(n) for n in old.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(f"{root}/{name}", data)
    return path


def edit(member: str, change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        value = json.loads(members[member])
        change(value)
        members[member] = json.dumps(value).encode()

    return apply


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def node(model: Any, target: str) -> Any:
    return next(n for n in model["graph_module"]["graph"]["nodes"] if target in n["target"])


def test_pickles_inside_are_refused_and_do_not_run(archive: Path, trap: Any, tmp_path: Path) -> None:
    sample = rewritten(
        archive, tmp_path / "a.pt2", lambda m: m.update({"data/sample_inputs/model.pt": saved(trap.object)})
    )
    with pytest.raises(UnsafeFileError, match=r"a\.pt2: its sample inputs are pickled objects"):
        load_pt2(sample)

    def pickled(config: Any) -> None:
        config["config"]["mix.weight"]["use_pickle"] = True

    def weight(members: dict[str, bytes]) -> None:
        path = json.loads(members[WEIGHTS])["config"]["mix.weight"]["path_name"]
        edit(WEIGHTS, pickled)(members)
        members["data/weights/" + path] = saved(trap.object)

    with pytest.raises(UnsafeFileError, match=r"'mix\.weight' is a pickled object"):
        load_pt2(rewritten(archive, tmp_path / "b.pt2", weight))

    def constant(members: dict[str, bytes]) -> None:
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        edit("data/constants/model_constants_config.json", lambda c: c["config"].update(evil=entry))(members)
        members["data/constants/opaque_obj_0"] = pickle.dumps(trap.object)

    with pytest.raises(UnsafeFileError, match="'evil' is a pickled object"):
        load_pt2(rewritten(archive, tmp_path / "c.pt2", constant))
    for name in ("data/aotinductor/model/x.so", "extra/run.py", "archive/data.pkl"):
        with pytest.raises(UnsafeFileError, match="it holds code"):
            load_pt2(rewritten(archive, tmp_path / "d.pt2", lambda m, name=name: m.update({name: b"x"})))
    assert not trap.sprung


def test_torch_itself_runs_what_is_refused_here(archive: Path, trap: Any, tmp_path: Path) -> None:
    """Why archives are not read with torch.export.load: it evaluates sizes and unpickles objects."""
    path = rewritten(archive, tmp_path / "a.pt2", edit(MODEL, lambda m: _expressions(m, trap.text)))
    with pytest.raises(Exception):  # noqa: B017, PT011 (it fails afterwards, in a way of its own)
        torch.export.load(path)
    assert trap.sprung


def _expressions(model: Any, text: str) -> None:
    graph = model["graph_module"]["graph"]
    for meta in graph["tensor_values"].values():
        for size in (*meta["sizes"], *meta["strides"]):
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text
    for value in graph["sym_int_values"].values():
        if "as_expr" in value:
            value["as_expr"]["expr_str"] = text


def test_expressions_are_never_evaluated(net: Net, archive: Path, trap: Any, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        _expressions(model, trap.text)
        model["guards_code"] = [trap.text]
        model["range_constraints"][trap.text] = {"min_val": 2, "max_val": 3}
        model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = trap.text

    program = load_pt2(rewritten(archive, tmp_path / "a.pt2", edit(MODEL, change)))
    got = program.run(inputs())
    assert all(torch.equal(t, got[n]) for n, t in net(**inputs()).items())
    assert not trap.sprung


REFUSED: dict[str, tuple[Callable[[Any, str], Any], str]] = {
    "path": (lambda m, _: node(m, "linear").update(target="torch.os.system"), "not registered here"),
    "builtin": (
        lambda m, _: node(m, "linear").update(target="math.__builtins__.eval"),
        "not registered here",
    ),
    "hub": (lambda m, _: node(m, "linear").update(target="torch.hub.load"), "not registered here"),
    "extension": (lambda m, _: node(m, "linear").update(target="#evil:eval"), "not the name of an operator"),
    "file": (lambda m, _: node(m, "linear").update(target="torch.ops.aten.from_file.default"), "reads or writes files"),
    "control": (lambda m, _: node(m, "linear").update(target="torch.ops.higher_order.cond"), "control-flow operator"),
    "training": (
        lambda m, _: node(m, "linear").update(
            target="torch.ops.aten.dropout.default",
            inputs=[
                {"name": "input", "arg": {"as_tensor": {"name": "ids"}}, "kind": 1},
                {"name": "p", "arg": {"as_float": 0.5}, "kind": 1},
                {"name": "train", "arg": {"as_bool": True}, "kind": 1},
            ],
        ),
        r"exported in training mode.*\ncall model\.eval",
    ),
    "object": (
        lambda m, _: node(m, "linear")["inputs"][0].update(arg={"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
        "the graph holds an object",
    ),
    "operator": (lambda m, text: node(m, "linear")["inputs"][0].update(arg={"as_operator": text}), "holds an object"),
    "input": (
        lambda m, text: [
            m["graph_module"]["graph"]["tensor_values"].update(
                {text: m["graph_module"]["graph"]["tensor_values"]["ids"]}
            ),
            m["graph_module"]["graph"]["inputs"][-2]["as_tensor"].update(name=text),
        ],
        "not the name of an input",
    ),
    "version": (lambda m, _: m["schema_version"].update(major=99), "another version"),
    "gone": (lambda m, _: m.pop("graph_module"), "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_graph_is_refused_and_does_not_run(case: str, archive: Path, trap: Any, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    path = rewritten(archive, tmp_path / "a.pt2", edit(MODEL, lambda m: change(m, trap.text)))
    with pytest.raises(SourceError, match=message) as caught:
        load_pt2(path)
    assert str(path) in caught.value.what
    assert "\n" not in caught.value.what
    assert caught.value.todo
    assert not trap.sprung


def test_impossible_sizes_are_refused(archive: Path, tmp_path: Path) -> None:
    def grow(config: Any) -> None:
        config["config"]["mix.weight"]["tensor_meta"]["sizes"] = [{"as_int": 1 << 30}, {"as_int": 1 << 30}]

    with pytest.raises(SourceError, match=r"'mix\.weight' is larger than what is stored"):
        load_pt2(rewritten(archive, tmp_path / "a.pt2", edit(WEIGHTS, grow)))

    def widen(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["ids"]["sizes"][1] = {"as_int": 1 << 50}

    with pytest.raises(SourceError, match="a tensor has an impossible shape"):
        load_pt2(rewritten(archive, tmp_path / "b.pt2", edit(MODEL, widen)))


def test_a_truncated_archive_is_a_source_error(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pt2").write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"a\.pt2 is damaged or truncated"):
            load_pt2(tmp_path / "a.pt2")
