"""Samples from files: every kind that fits, and a message for each way not to fit."""

from __future__ import annotations

import pickle
import socket
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fxmerge.errors import DataError, UnsafeFileError
from fxmerge.ir.program import Program
from fxmerge.samples import arrays
from fxmerge.samples.fit import fit_given
from fxmerge.samples.load import Reading, check_samples, load_samples

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"a connection was made: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# -- arrays --------------------------------------------------------------------------------------------


def test_a_single_array_fits_a_single_input(vit: Program, images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", anything=images, y=np.arange(6) % 5)
    samples = load_samples(tmp_path / "a.npz", vit)
    assert np.array_equal(samples.inputs["x"].numpy(), images)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert (samples.rows, samples.notes) == (6, ())
    np.save(tmp_path / "a.npy", images)
    assert np.array_equal(load_samples(tmp_path / "a.npy", vit, Reading(2)).inputs["x"].numpy(), images[:2])
    save_file({"x": images, "labels": np.arange(6), "mean": images[:1]}, tmp_path / "a.safetensors")
    samples = load_samples(tmp_path / "a.safetensors", vit, Reading(4))
    assert (samples.rows, samples.notes) == (4, (f"{tmp_path / 'a.safetensors'}: not used: mean",))
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["float64", "float16", ">f4"])
def test_floats_of_any_width_are_taken(kind: str, vit: Program, images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images.astype(kind))
    assert load_samples(tmp_path / "a.npy", vit).inputs["x"].dtype == torch.float32


def test_whole_numbers_of_any_width_are_taken(masked: Program, tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint16).reshape(2, 6)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones((2, 6), dtype=bool))
    samples = load_samples(tmp_path / "a.npz", masked)
    assert {t.dtype for t in samples.inputs.values()} == {torch.int64}
    assert samples.inputs["input_ids"].tolist() == ids.tolist()


def test_image_bytes_become_fractions_and_it_is_said(vit: Program, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 1, 8, 8), 51, dtype=np.uint8))
    samples = load_samples(tmp_path / "a.npy", vit)
    assert torch.equal(samples.inputs["x"], torch.full((2, 1, 8, 8), 0.2))
    assert samples.notes == (f"{tmp_path / 'a.npy'}: x holds bytes; they were read as 0..1 (divided by 255)",)
    scaled = vit.evolve(samples={"x": torch.randn(4, 1, 8, 8) * 3})
    with pytest.raises(
        DataError,
        match=r"bytes, but the model's own samples are numbers from .*\ngive the arrays as floats.*--image-mean",
    ):
        load_samples(tmp_path / "a.npy", scaled)


def test_labels_by_name_and_number(vit: Program, images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    def labels(values: Any, program: Program = vit) -> list[int]:
        np.savez(tmp_path / "a.npz", x=images, labels=np.array(values))
        found = load_samples(tmp_path / "a.npz", program).labels
        assert found is not None
        return [int(i) for i in found]

    assert labels(["two", "one", "zero", "four", "two", "two"]) == [2, 1, 0, 4, 2, 2]
    assert labels([1.0, 0.0, 2.0, 3.0, 4.0, 0.0]) == [1, 0, 2, 3, 4, 0]
    assert labels(["1", "0", "2", "3", "4", "0"]) == [1, 0, 2, 3, 4, 0]
    assert labels([[1], [0], [2], [3], [4], [0]]) == [1, 0, 2, 3, 4, 0]
    assert labels(["b", "a", "b", "c", "a", "a"], vit.evolve(labels=None)) == [1, 0, 1, 2, 0, 0]
    with pytest.raises(
        DataError, match=r"the label 'tow' is none of digits's, did you mean 'two'\?\nits labels are zero, one"
    ):
        labels(["tow"] * 6)
    with pytest.raises(DataError, match=r"3 labels of shape \(3,\) for 6 rows\ngive one class index"):
        labels([1, 2, 3])


def one_image(**changes: Any) -> np.ndarray[Any, Any]:
    value = np.zeros(changes.get("shape", (2, 1, 8, 8)), dtype=changes.get("dtype", np.float32))
    if "value" in changes:
        value.flat[3] = changes["value"]
    return value


MISFITS: dict[str, tuple[dict[str, np.ndarray[Any, Any]], str]] = {
    "rank": (
        {"x": one_image(shape=(2, 8, 8))},
        r"x has 3 axes \(2, 8, 8\), the model takes 4\ngive x: float32 \(batch, 1, 8, 8\)",
    ),
    "shape": ({"x": one_image(shape=(2, 3, 8, 8))}, r"x has shape \(2, 3, 8, 8\), the model takes 1 on axis 1"),
    "type": (
        {"x": one_image(dtype=np.int64)},
        r"x holds int64 values, the model takes float32\nconvert them with \.astype",
    ),
    "text": ({"x": np.array(["a", "b"])}, "holds <U1 values, not numbers"),
    "complex": ({"x": one_image(dtype=np.complex64)}, "holds complex64 values, not numbers"),
    "empty": ({"x": one_image(shape=(0, 1, 8, 8))}, r"x is empty\n.*at least one row"),
    "nan": (
        {"x": one_image(value=np.nan)},
        r"x holds NaN or infinite values, first at \[0, 0, 0, 3\]\nremove those rows",
    ),
    "infinite": ({"x": one_image(value=-np.inf)}, "x holds NaN or infinite values"),
    "name": (
        {"xs": one_image(), "z": one_image()},
        r"no array for the input x \(found: xs, z\), did you mean 'xs'\?\ngive arrays named x: f",
    ),
    "only labels": ({"y": np.arange(3)}, r"no array for the input x \(found: none\)"),
}


BROKEN_ROWS = ("nan", "infinite")
"""What is left out where the reading is not strict."""


@pytest.mark.parametrize(
    ("case", "strict"), [(c, s) for c in MISFITS for s in (True, False) if s or c not in BROKEN_ROWS]
)
def test_arrays_that_do_not_fit(case: str, strict: bool, vit: Program, tmp_path: Path) -> None:
    arrays, message = MISFITS[case]
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        load_samples(tmp_path / "a.npz", vit, Reading(strict=strict))
    assert str(tmp_path / "a.npz") in caught.value.what
    assert "\n" not in caught.value.what + caught.value.todo


def test_inputs_that_do_not_agree(masked: Program, gpt: Program, tmp_path: Path) -> None:
    ids = np.arange(12).reshape(2, 6)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones((3, 6), dtype=int))
    with pytest.raises(
        DataError, match=r"input_ids and attention_mask do not agree: 2 and 3 for batch\ngive arrays with the same"
    ):
        load_samples(tmp_path / "a.npz", masked)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=np.ones((2, 5), dtype=int))
    with pytest.raises(DataError, match="do not agree: 6 and 5 for sequence"):
        load_samples(tmp_path / "a.npz", masked)
    np.save(tmp_path / "a.npy", ids + 100)
    with pytest.raises(DataError, match=r"does not run on these samples: index out of range.*\ncheck that indices"):
        load_samples(tmp_path / "a.npy", gpt)
    np.save(tmp_path / "a.npy", ids.astype(np.float32))
    with pytest.raises(DataError, match="holds float32 values, the model takes int64"):
        load_samples(tmp_path / "a.npy", gpt)


def test_more_than_a_model_takes(gpt: Program) -> None:
    short = gpt.evolve(ranges={"batch": (2, 64), "sequence": (2, 8)})
    with pytest.raises(DataError, match="input_ids has 9 for sequence, the model takes at most 8"):
        check_samples({"input_ids": torch.zeros(2, 9, dtype=torch.long)}, short)


def test_samples_in_memory_are_checked(vit: Program) -> None:
    check_samples({"x": torch.zeros(1, 1, 8, 8)}, vit)
    with pytest.raises(DataError, match=r"the samples hold 'xx', which is no input of digits, did you mean 'x'\?"):
        check_samples({"x": torch.zeros(1, 1, 8, 8), "xx": torch.zeros(1)}, vit)
    with pytest.raises(DataError, match="x holds float64 values"):
        check_samples({"x": torch.zeros(1, 1, 8, 8, dtype=torch.float64)}, vit)
    with pytest.raises(DataError, match="x is a list, not a tensor"):
        check_samples({"x": [1]}, vit)  # type: ignore[dict-item]


@pytest.mark.parametrize("given", [torch.from_numpy, np.asarray])
def test_what_is_given_in_python_is_read_as_a_file_is(vit: Program, tmp_path: Path, given: Any) -> None:
    images = np.random.default_rng(0).standard_normal((5, 1, 8, 8))
    images[2, 0, 3, 4] = np.nan
    np.savez(tmp_path / "a.npz", x=images, other=images[:1])
    held = {"x": given(images), "other": given(images[:1])}
    read, found = load_samples(tmp_path / "a.npz", vit), fit_given(held, vit, str(tmp_path / "a.npz"))
    torch.testing.assert_close(found.inputs, read.inputs)
    assert (found.skipped, found.notes) == (read.skipped, read.notes) and found.skipped == 1
    with pytest.raises(DataError, match="x holds NaN"):
        fit_given({"x": given(images)}, vit, "mine", Reading(strict=True))
    with pytest.raises(DataError, match="mine: x is a str, not a tensor"):
        fit_given({"x": "images.npz"}, vit, "mine")
    assert len(fit_given(given(images[3:]), vit, "mine").inputs["x"]) == 2


def test_a_fixed_batch_takes_any_number_of_rows(vit: Program) -> None:
    fixed = vit.evolve(ranges={"batch": (4, 4)}, hints={})
    check_samples({"x": torch.zeros(6, 1, 8, 8)}, fixed)


def test_files_that_cannot_be_read(vit: Program, images: np.ndarray[Any, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "cut.npz", x=images)
    np.save(tmp_path / "cut.npy", images)
    save_file({"x": images}, tmp_path / "cut.safetensors")
    for file in list(tmp_path.iterdir()):
        file.write_bytes(file.read_bytes()[:-200])
    np.savez_compressed(tmp_path / "flip.npz", x=images)
    whole = (tmp_path / "flip.npz").read_bytes()
    (tmp_path / "flip.npz").write_bytes(whole[:300] + bytes(80) + whole[380:])
    (tmp_path / "none.npz").write_bytes(b"")
    (tmp_path / "noise.npz").write_bytes(b"noise" * 10)
    (tmp_path / "a.h5").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    cases = {
        "gone.npz": r"gone\.npz does not exist",
        "none.npz": r"none\.npz is empty",
        "noise.npz": "cannot be read: File is not a zip file",
        "cut.npz": "cannot be read: File is not a zip file",
        "flip.npz": r"flip\.npz cannot be read: ",
        "cut.npy": r"cannot be read: the header says 1536 bytes, the file has",
        "cut.safetensors": "cannot be read",
        "a.h5": r"a\.h5 is of no known kind\ngive a folder of images, or \.npz",
        "empty": r"holds no images \(it has none\)\nput images there",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            load_samples(tmp_path / name, vit)
        assert caught.value.todo


def test_pickled_arrays_are_refused_and_do_not_run(vit: Program, trap: Any, tmp_path: Path) -> None:
    values = np.empty(1, dtype=object)
    values[0] = trap.object
    np.savez(tmp_path / "a.npz", x=values)
    np.save(tmp_path / "a.npy", values)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(UnsafeFileError, match=r"holds Python objects, which are pickled\nsave plain arrays"):
            load_samples(tmp_path / name, vit)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(trap.object))
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(tmp_path / "b.npy", vit)
    assert not trap.sprung


def test_arrays_larger_than_their_file_are_refused(vit: Program, tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1, 8, 8), }"
    header += b" " * (117 - len(header)) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    (tmp_path / "a.npy").write_bytes(npy)
    with pytest.raises(DataError, match="the header says 281474976710656 bytes, the file has"):
        load_samples(tmp_path / "a.npy", vit)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(300 << 20))
    with pytest.raises(DataError, match=r"unpacks to 300 MiB, \d+ times its size\nsave the arrays with numpy\.savez"):
        load_samples(tmp_path / "a.npz", vit)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets")
def test_a_data_set_with_other_names_says_what_it_has(vit: Program) -> None:
    with pytest.raises(DataError, match=r"no array for the input x \(found: x_train, y_train, x_test, y_test\)"):
        load_samples(SHARED / "mnist.npz", vit)


def test_large_arrays_are_read_in_part_and_that_is_said(
    vit: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MOST_NUMBERS", 5 * 64 + 5)
    x = np.random.default_rng(0).random((9, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "a.npz", x=x, labels=np.arange(9) % 5)
    np.save(tmp_path / "a.npy", x)
    save_file({"x": x}, tmp_path / "a.safetensors")
    for name, rows in (("a.npz", 5), ("a.npy", 5), ("a.safetensors", 5)):
        samples = load_samples(tmp_path / name, vit)
        assert torch.equal(samples.inputs["x"], torch.from_numpy(x[:rows]))
        assert samples.notes == (f"{tmp_path / name} is large: the first {rows} of 9 rows are used",)
    monkeypatch.setattr(arrays, "MOST_NUMBERS", 63)
    with pytest.raises(DataError, match="not in rows that can be read one by one"):
        load_samples(tmp_path / "a.npy", vit)
