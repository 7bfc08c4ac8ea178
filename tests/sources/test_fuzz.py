"""Valid files changed at random: every reader gives its value or one error of ours, whatever the bytes."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors

from fxmerge.config import MergeConfig
from fxmerge.errors import FxmergeError
from fxmerge.from_onnx.metadata import read_metadata
from fxmerge.io import child, pickles
from fxmerge.samples.arrays import read_arrays
from fxmerge.samples.columns import read_text
from fxmerge.samples.tables import Lines
from fxmerge.sources.huggingface import _config
from fxmerge.sources.load import load
from fxmerge.sources.state_dict import read_weights
from fxmerge.training.resume import keep, recall
from tests.sources import hostile
from tests.sources.hostile_models import BERT

resource = pytest.importorskip("resource", reason="bounds of memory are those of the system")

EXAMPLES = os.environ.get("FXMERGE_FUZZ", "")
"""For a longer run: so many examples of each, others every time."""

few = settings(
    max_examples=int(EXAMPLES or 15), derandomize=not EXAMPLES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

ROOM = 3 << 30
"""Memory that reading one example may take beside what there is."""

JUNK: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**30, 0.5, float("nan"), "", "x", "aten.add.Tensor", "\x1b[31m\n",
                   [], {}, [[[]]], {"node": 0}, {"tuple": 3}]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with some flipped, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        size = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["flip", "cut", "end", "double", "put"]))
        if kind == "flip" and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del changed[at : at + size]
        elif kind == "end":
            del changed[at:]
        elif kind == "double":
            changed[at:at] = changed[at : at + size]
        else:
            changed[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(changed)


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with some of its parts replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and draw(st.integers(0, 9)):
                place = inner
                continue
            kind = draw(st.sampled_from(["junk", "junk", "remove", "double"]))
            if kind == "junk":
                place[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
            elif kind == "remove":
                del place[key]
            elif isinstance(place, list):
                place.insert(key, copy.deepcopy(inner))
            break
    return value


@st.composite
def rezipped(draw: st.DrawFn, data: bytes, description: str) -> bytes:
    """A zip with members removed, damaged or renamed, or its JSON edited, and valid again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    kind = draw(st.sampled_from(["json", "json", "json", "remove", "damage", "rename"]))
    if kind == "json":
        key = next(n for n in members if n.endswith(description))
        members[key] = json.dumps(draw(edited(json.loads(members[key])))).encode()
    elif kind == "remove":
        del members[name]
    elif kind == "damage":
        members[name] = draw(damaged(members[name]))
    else:
        members[draw(st.text(min_size=1, max_size=8))] = members.pop(name)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return stream.getvalue()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    hostile.build(folder)
    state = {"0.weight": torch.ones(3, 4), "0.bias": torch.zeros(3)}
    torch.save(state, folder / "new.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "w.safetensors").write_bytes(to_safetensors(state))
    np.save(folder / "x.npy", np.ones((8, 4), np.float32))
    (folder / "t.csv").write_text('text,label\n"good, film",1\nbad,0\n')
    (folder / "t.jsonl").write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    MergeConfig.of(parents=("a.pt", "b.pt"), data={"a": "x.npz"}, seed=3).save(folder / "m.yaml")
    keep(folder / "run.pt", {"steps": 3}, OWN)
    return folder


OWN: dict[str, Any] = {
    "weights": {"a": torch.ones(2, 3)}, "buffers": {}, "losses": [0.5], "untouched": ["a"], "seconds": 1.0,
}  # fmt: skip


@contextmanager
def bounded(room: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has, as a child that reads is let."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def here(worker: str, request: dict[str, Any], data: bytes) -> Iterator[Any]:
    """A worker in this process, with the memory of a child."""
    name = worker.partition(":")[2]
    try:
        with bounded(child.MEMORY):
            yield from getattr(pickles, name)(request, data)
    except (MemoryError, RecursionError) as error:
        raise child.ChildError("it would take too much") from error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles are walked through in this process: a child for each example takes too long."""
    monkeypatch.setattr(pickles, "ask", here)
    monkeypatch.setattr(child, "SECONDS", 3)


def said(read: Callable[[], Any]) -> bool:
    """Whether the reader refused; any other error is the test's failure."""
    error: FxmergeError | None = None
    try:
        with bounded(ROOM):
            read()
    except FxmergeError as caught:
        error = caught
    if error is not None:
        assert error.what
        assert error.todo
        assert all(c.isprintable() for c in error.what + error.todo)
    return error is not None


READERS: dict[str, Callable[[Path], Any]] = {
    "a.pt": load, "a.pt2": load, "new.pt": read_weights, "old.pt": read_weights, "w.safetensors": read_weights,
    "x.npz": read_arrays, "x.npy": read_arrays, "t.csv": lambda p: read_text(Lines.of(p)),
    "t.jsonl": lambda p: read_text(Lines.of(p)), "m.yaml": MergeConfig.load,
    "run.pt": lambda p: recall(p, {"steps": 3}, OWN),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@given(source=st.data())
@few
def test_damaged_bytes(name: str, source: st.DataObject, good: Path) -> None:
    path = good / f"bad{Path(name).suffix}"
    path.write_bytes(source.draw(damaged((good / name).read_bytes())))
    said(lambda: READERS[name](path))


@pytest.mark.parametrize(("name", "description"), [("a.pt", "bundle.json"), ("a.pt2", "model.json")])
@given(source=st.data())
@few
def test_members_and_descriptions(name: str, description: str, source: st.DataObject, good: Path) -> None:
    path = good / f"bad{Path(name).suffix}"
    path.write_bytes(source.draw(rezipped((good / name).read_bytes(), description)))
    said(lambda: load(path))


@given(config=edited(BERT))
@few
def test_configs(config: Any, good: Path) -> None:
    pytest.importorskip("transformers")
    (good / "config.json").write_text(json.dumps(config))
    said(lambda: _config(good / "config.json", 30))


@given(values=edited({"tasks": ["a", "b"], "labels": {"a": ["x", "y"], "b": None}, "parents": {"a": "0f"}}))
@few
def test_metadata(values: Any) -> None:
    from fxmerge.ir.program import Port

    outputs = [Port(f"{task}.logits", ("batch", 2), torch.float32) for task in "ab"]
    given = {f"fxmerge.{key}": json.dumps(value) for key, value in values.items()}
    said(lambda: read_metadata(given, outputs, "m.onnx"))


def test_a_place_that_is_far_away_takes_no_memory(good: Path) -> None:
    """A pickle may name the place of what it remembers, and the unpickler of Python makes all places before it."""
    path, before = good / "bad.pt", psutil.Process().memory_info().rss
    path.write_bytes(b"\x80\x02}r" + (1 << 30).to_bytes(4, "little") + b".")
    assert said(lambda: read_weights(path))
    assert psutil.Process().memory_info().rss - before < 1 << 30


def test_the_changes_change(good: Path) -> None:
    """Most damaged files are refused, so the tests above do try something."""
    refused: list[bool] = []

    @given(data=damaged((good / "w.safetensors").read_bytes()))
    @few
    def run(data: bytes) -> None:
        (good / "bad.safetensors").write_bytes(data)
        refused.append(said(lambda: read_weights(good / "bad.safetensors")))

    run()
    assert sum(refused) > len(refused) // 2
