"""Files that nobody should send: each is refused with one line what and one line what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fxmerge.cli.verbs import main
from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.from_onnx.file import read_file
from fxmerge.sources.load import kind_of, load

Paths = tuple[Path, Path]


def model_of(path: Path, *nodes: Any, held: tuple[Any, ...] = (), opset: int = 18) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(held))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def stored_at(path: Path, location: str, **more: str) -> Path:
    """A file whose weights are said to lie at a place."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    return model_of(path, helper.make_node("Add", ["x", "w"], ["y"]), held=(weights,))


def test_operators_that_nobody_reads_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("QLinearMagic", ["x"], ["a"], name="/quant/0"),
        helper.make_node("QLinearMagic", ["a"], ["b"], name="/quant/1"),
        helper.make_node("Gate", ["b"], ["y"], name="gate", domain="acme"),
    ]
    path = model_of(tmp_path / "m.onnx", *nodes)
    assert main(["inspect", str(path)]) == 2
    what, todo = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "does not read: QLinearMagic (/quant/0, /quant/1), acme.Gate (gate)" in what
    assert "--extension FILE:NAME" in todo


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "link.bin", ""])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    os.symlink(tmp_path / "w.bin", folder / "link.bin")
    with pytest.raises(UnsafeFileError, match=r"the weights w lie outside its folder.*\nput them beside the model"):
        read_file(stored_at(folder / "m.onnx", location))


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(20))
    file = read_file(stored_at(tmp_path / "m.onnx", "w.bin", offset="4", length="16"))
    assert file.graph.stored[0].tensor.tolist() == [0, 0, 0, 0]
    for wrong in ({"offset": "-4"}, {"offset": "8", "length": "16"}, {"offset": "x"}, {"offset": "0", "length": "8"}):
        with pytest.raises(SourceError, match=r"too short|is no number|larger than what is stored"):
            read_file(stored_at(tmp_path / "m.onnx", "w.bin", **wrong))
    with pytest.raises(SourceError, match=r"none.bin does not exist\ncopy it beside m.onnx"):
        read_file(stored_at(tmp_path / "m.onnx", "none.bin"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _noise(path: Path) -> None:
    path.write_bytes(b"\x08\x08\x12" + os.urandom(300))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _noise, _empty])
def test_damaged_files_are_refused(nets: Paths, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(nets[0].read_bytes())
    damage(path)
    with pytest.raises(SourceError, match=str(path)):
        load(path)


def test_tensors_larger_than_what_is_stored_are_refused(tmp_path: Path) -> None:
    for dims in ([1 << 40], [-4]):
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(16))
        path = model_of(tmp_path / "m.onnx", helper.make_node("Add", ["x", "w"], ["y"]), held=(weights,))
        with pytest.raises(SourceError, match=r"w (is larger than what is stored|has an impossible shape)"):
            read_file(path)


def test_graphs_in_graphs_end(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(20):
        inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "g", [], [])
    path = model_of(tmp_path / "m.onnx", *inner.node)
    with pytest.raises(SourceError, match=r"nested too deeply"):
        read_file(path)


def test_values_that_fill_the_memory_are_stopped_in_a_child(tmp_path: Path) -> None:
    size = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "size")
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["big"]), helper.make_node("ReduceSum", ["big"], ["s"])]
    path = model_of(tmp_path / "m.onnx", *nodes, helper.make_node("Add", ["x", "s"], ["y"]), held=(size,))
    with pytest.raises(SourceError, match=r"cannot open it"):
        load(path)


def test_old_and_unknown_operator_sets_are_refused(tmp_path: Path) -> None:
    path = model_of(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"]), opset=99)
    with pytest.raises(SourceError, match=r"operator set 99\nexport it for one from 11"):
        read_file(path)


def test_a_file_is_known_by_its_first_bytes(nets: Paths, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(nets[0].read_bytes())
    assert kind_of(path, str(path)) == "onnx"


def test_a_node_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["i"], name="/find"), helper.make_node("Cast", ["i"], ["y"], to=1)]
    with pytest.raises(
        SourceError, match=r"its node NonZero \(/find\) cannot be read: its input 0 is computed from data"
    ):
        load(model_of(tmp_path / "m.onnx", *nodes))
