"""Bundles: what goes in comes out bit for bit, and nothing in a file is ever executed."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxmerge.capturing import capture
from fxmerge.errors import FxmergeError, OutputError, SourceError, UnsafeFileError
from fxmerge.io import files
from fxmerge.ir.program import Program
from fxmerge.sources.bundle import load_bundle, save, save_bundle

Edit = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("name", ["vit", "gpt", "masked"])
def test_a_program_comes_back_bit_for_bit(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    program = request.getfixturevalue(name)
    save_bundle(program, tmp_path / "a.pt")
    again = load_bundle(tmp_path / "a.pt")
    for field in ("inputs", "outputs", "parameters", "task", "labels", "aliases", "notes", "ranges", "hints", "assets"):
        assert getattr(again, field) == getattr(program, field), field
    assert again.text() == program.text()
    assert [n.meta.get("source") for n in again] == [n.meta.get("source") for n in program]
    assert again.tensors.keys() == program.tensors.keys()
    assert all(torch.equal(again.tensors[n], t) for n, t in program.tensors.items())
    assert all(torch.equal(again.samples[n], t) for n, t in program.samples.items())
    inputs = {n: torch.cat([t, t[:2]]) for n, t in program.samples.items()}
    if name != "vit":
        inputs = {n: torch.cat([t, t], 1) for n, t in inputs.items()}
    before, after = program.run(inputs), again.run(inputs)
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_equal_programs_give_equal_files(vit: Program, tmp_path: Path) -> None:
    save_bundle(vit, tmp_path / "a.pt")
    save_bundle(load_bundle(tmp_path / "a.pt"), tmp_path / "b.pt")
    assert files.sha256(tmp_path / "a.pt") == files.sha256(tmp_path / "b.pt")


class Odd(nn.Module):
    """Arguments of every kind: infinities, types, lists with sizes, buffers of other types, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("hidden", torch.tensor([True, False, False, True]))
        self.register_buffer("small", torch.ones(4, dtype=torch.bfloat16))

    def forward(self, x: Tensor, scale: float) -> dict[str, Tensor]:
        filled = self.linear(x).masked_fill(self.hidden, -float("inf"))
        parts = torch.cat([filled, x], 1).split([3, 5], 1)
        ones = torch.full((x.shape[0] * 2, 2), 1.5, dtype=torch.float64)
        return {"soft": filled.softmax(-1) * scale, "part": parts[1] + self.small.sum(), "ones": ones}


def test_every_kind_of_argument_comes_back(tmp_path: Path) -> None:
    program = capture(Odd(), {"x": torch.rand(3, 4), "scale": 0.5})
    save_bundle(program, tmp_path / "odd.pt")
    again = load_bundle(tmp_path / "odd.pt")
    assert again.text().splitlines()[1:] == program.text().splitlines()[1:]
    assert again.task == "odd"
    before, after = program.run({"x": torch.ones(5, 4)}), again.run({"x": torch.ones(5, 4)})
    assert list(before) == list(after) == ["soft", "part", "ones"]
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_save_captures_and_names_the_task_after_the_file(tmp_path: Path) -> None:
    save(nn.Linear(4, 2), tmp_path / "small.pt", inputs=(torch.rand(1, 4),), labels=["a", "b"])
    program = load_bundle(tmp_path / "small.pt")
    assert (program.task, program.labels, program.inputs[0].shape) == ("small", ("a", "b"), ("batch", 4))
    assert program.samples["input"].shape == (1, 4)
    with pytest.raises(OutputError, match=r"small\.pt exists already\n.*--overwrite"):
        save(nn.Linear(4, 2), tmp_path / "small.pt", inputs=(torch.rand(1, 4),), overwrite=False)
    with pytest.raises(OutputError, match=r"folder .*nowhere does not exist\n.*mkdir"):
        save(nn.Linear(4, 2), tmp_path / "nowhere" / "small.pt", inputs=(torch.rand(1, 4),))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(vit: Program, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"before")

    def fail() -> None:
        with files.atomic_write(tmp_path / "a.pt") as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == b"before"


# -- hostile and damaged files -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def members(gpt: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("bundle") / "a.pt"
    save_bundle(gpt, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edited(path: Path, members: dict[str, bytes], edit: Edit) -> Path:
    description = json.loads(members["bundle.json"])
    edit(description)
    return write(path, {**members, "bundle.json": json.dumps(description).encode()})


def test_a_bundle_with_a_pickle_inside_is_refused_and_does_not_run(
    members: dict[str, bytes], trap: Any, tmp_path: Path
) -> None:
    for name in ("data.pkl", "archive/data.pkl", "assets/evil.pkl"):
        path = write(tmp_path / "a.pt", {**members, name: pickle.dumps(trap.object)})
        with pytest.raises(UnsafeFileError, match=r"members that do not belong there: .*pkl\ndo not use this file"):
            load_bundle(path)
    for name in ("weights.safetensors", "samples.safetensors", "bundle.json"):
        path = write(tmp_path / "a.pt", {**members, name: pickle.dumps(trap.object)})
        with pytest.raises(SourceError, match=r"damaged|not valid JSON"):
            load_bundle(path)
    assert not trap.sprung


def first_call(d: dict[str, Any]) -> dict[str, Any]:
    return next(n for n in d["nodes"] if n["op"] == "call_function")


HOSTILE: dict[str, tuple[Callable[[dict[str, Any], str], Any], str]] = {
    "python": (lambda d, _: first_call(d).update(target="os.system", args=["true"]), "not the name of an operator"),
    "builtin": (lambda d, _: first_call(d).update(target="builtins.eval.x", args=["1"]), "not registered here"),
    "dunder": (lambda d, _: first_call(d).update(target="aten.__class__.mro", args=[]), "not registered here"),
    "file": (lambda d, _: first_call(d).update(target="aten.from_file.default", args=["x"]), "reads or writes files"),
    "internal": (lambda d, _: first_call(d).update(target="profiler._record_function_enter.default"), "own machinery"),
    "in place": (lambda d, _: first_call(d).update(target="aten.add_.Tensor"), "changes its arguments"),
    "text": (lambda d, _: first_call(d).update(target="aten.add.str", args=["a", "b"]), "returns no tensor"),
    "unknown": (
        lambda d, _: first_call(d).update(target="mylib.scan.default"),
        "import the package that defines 'mylib'",
    ),
    "input": (lambda d, text: d["nodes"][0].update(op="placeholder", target=f"x={text}"), "not the name of an input"),
    "weight": (lambda d, text: d["nodes"][1].update(op="get_attr", target=f'x"), {text}, ("'), "name of a tensor"),
    "kind": (lambda d, _: d["nodes"][1].update(op="call_module", target="x"), "unknown kind of node"),
    "module": (lambda d, _: first_call(d).update(args=[{"import": "os"}]), "an argument of no known kind"),
    "future": (lambda d, _: first_call(d).update(args=[{"node": 10**6}]), "refers to one that does not exist"),
    "power": (
        lambda d, _: first_call(d).update(target="operator.pow", args=[9, 10**9]),
        "a power with an unbounded exponent",
    ),
    "repeat": (lambda d, _: first_call(d).update(target="operator.mul", args=["a", 9]), "not a number"),
    "item": (lambda d, _: first_call(d).update(target="operator.getitem", args=["a", 0]), "item is taken"),
    "memory": (
        lambda d, _: first_call(d).update(target="aten.zeros.default", args=[[1 << 40]], kwargs={}),
        r"damaged|would take 4096 GiB",
    ),
    "version": (lambda d, _: d.update(version=99), r"version 99.*reads version 1\nupdate fxmerge"),
    "terminal": (lambda d, _: d.update(task="\x1b[31mred"), "not a line of text"),
    "shape": (lambda d, _: d["inputs"][0].update(shape=["batch", 1 << 60]), "not a size"),
    "type": (lambda d, _: d["inputs"][0].update(dtype="object"), "unknown type"),
    "ports": (lambda d, _: d["inputs"].append(d["inputs"][0]), "do not agree"),
    "weights": (lambda d, _: d["parameters"].append("ghost"), "parameters it does not hold"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_graph_is_refused_and_does_not_run(
    case: str, members: dict[str, bytes], trap: Any, tmp_path: Path
) -> None:
    edit, message = HOSTILE[case]
    path = edited(tmp_path / "a.pt", members, lambda d: edit(d, trap.text))
    with pytest.raises(SourceError, match=message) as caught:
        load_bundle(path)
    assert str(path) in caught.value.what
    assert caught.value.todo
    assert "\n" not in caught.value.what + caught.value.todo
    assert not trap.sprung


def test_what_torch_says_of_a_bad_graph_is_not_printed(tmp_path: Path) -> None:
    """Sizes that only the data knows: torch logs a traceback of its own where they do not fit."""
    path = tmp_path / "n.pt"
    save(nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), path, inputs=(torch.randn(4, 4),))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        for quietly in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                if not quietly:
                    patch.setattr("fxmerge.sources.bundle.quiet", nullcontext)
                with pytest.raises(SourceError, match="is damaged"):
                    load_bundle(
                        edited(
                            path,
                            members,
                            lambda d: first_call(d).update(target="aten.nonzero.default", args=[{"node": 0}]),
                        )
                    )
            assert bool(logged) == (not quietly)
    finally:
        logger.removeHandler(handler)


def test_sizes_that_grow_without_bound_are_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    def edit(d: dict[str, Any]) -> None:
        squares = [{"op": "call_function", "target": "operator.mul", "args": [2, 1 << 20]}]
        at = len(d["nodes"])
        for i in range(40):
            squares.append({"op": "call_function", "target": "operator.mul", "args": [{"node": at + i}] * 2})
        d["nodes"] += squares

    with pytest.raises(SourceError, match="computes sizes without bound"):
        load_bundle(edited(tmp_path / "a.pt", members, edit))


def test_bombs_are_refused_before_they_unpack(members: dict[str, bytes], tmp_path: Path) -> None:
    bomb = write(tmp_path / "a.pt", {**members, "bundle.json": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(SourceError, match=r"bundle\.json unpacks to 100 MiB, more than is allowed"):
        load_bundle(bomb)
    deep = {**members, "bundle.json": b"[" * 200_000}
    with pytest.raises(SourceError, match="not valid JSON"):
        load_bundle(write(tmp_path / "b.pt", deep))
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 4]}}).encode()
    absurd = struct.pack("<Q", len(header)) + header + bytes(4)
    with pytest.raises(SourceError, match=r"weights\.safetensors"):
        load_bundle(write(tmp_path / "c.pt", {**members, "weights.safetensors": absurd}))
    with pytest.raises(SourceError, match=r"weights\.safetensors"):
        load_bundle(write(tmp_path / "d.pt", {**members, "weights.safetensors": struct.pack("<Q", 1 << 62)}))


def test_a_member_listed_twice_is_refused(members: dict[str, bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", members)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("bundle.json", b"{}")
    with pytest.raises(SourceError, match="lists a member twice"):
        load_bundle(path)


def test_a_truncated_or_flipped_file_is_a_source_error(members: dict[str, bytes], tmp_path: Path) -> None:
    whole = write(tmp_path / "a.pt", members).read_bytes()
    draw = random.Random(0)
    path = tmp_path / "b.pt"
    for size in [1, 4, 30, 100, *(draw.randrange(len(whole)) for _ in range(10)), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=str(path)):
            load_bundle(path)
    refused = 0
    for _ in range(60):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
        try:
            load_bundle(path)
        except FxmergeError:
            refused += 1
    assert refused >= 55  # the others hit bytes of the zip that mean nothing, such as dates


def test_a_graph_changed_at_random_gives_no_other_error(members: dict[str, bytes], tmp_path: Path) -> None:
    draw = random.Random(1)
    junk: list[Any] = [None, -1, 10**30, 0.5, "", "aten.add.Tensor", [], {}, {"node": 0}, [[[]]], {"tuple": 3}, True]
    refused = 0
    for _ in range(60):
        description = json.loads(members["bundle.json"])
        _mutate(description, draw, junk)
        path = write(tmp_path / "a.pt", {**members, "bundle.json": json.dumps(description).encode()})
        try:
            load_bundle(path)
        except FxmergeError:
            refused += 1
    assert refused > 30


def _mutate(value: Any, draw: random.Random, junk: list[Any]) -> None:
    while True:
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if isinstance(value[key], dict | list) and value[key] and draw.random() < 0.9:
            value = value[key]
            continue
        value[key] = copy.deepcopy(draw.choice(junk))
        return


def test_files_are_hashed_by_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    folder = files.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert files.sha256(tmp_path) != folder
