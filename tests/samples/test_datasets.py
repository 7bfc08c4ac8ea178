"""Folders as the datasets library and the hub lay them out, written here with pyarrow alone."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.samples.load import Reading, load_samples
from tests.samples.test_text import tokenizer

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tokenizers")

ROWS = [{"text": "good film", "label": 1}, {"text": "bad", "label": 0}, {"text": "a film", "label": 1}]


@pytest.fixture
def reviews(masked: Program) -> Program:
    return masked.evolve(assets={"tokenizer.json": tokenizer().to_str().encode()})


def save_to_disk(folder: Path, *shards: Sequence[dict[str, Any]]) -> Path:
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = pyarrow.Table.from_pylist(list(rows))
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


def test_a_saved_data_set_of_several_files(reviews: Program, tmp_path: Path, trap: Any) -> None:
    folder = save_to_disk(tmp_path / "a", ROWS[:2], ROWS[2:])
    (folder / "a.py").write_text(trap.text)
    samples = load_samples(folder, reviews)
    assert samples.inputs["input_ids"].tolist() == [[2, 4], [3, 0], [5, 4]]
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0, 1]
    assert samples.notes == ()
    assert not trap.sprung


def test_splits_are_chosen_or_asked_for(reviews: Program, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    for name in ("train", "test"):
        save_to_disk(folder / name, ROWS if name == "train" else ROWS[:1])
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    samples = load_samples(folder, reviews)
    assert (samples.rows, samples.notes) == (3, (f"{folder}: the split train is used, of test, train",))
    assert load_samples(folder / "test", reviews).rows == 1
    (folder / "train").rename(folder / "dev")
    (folder / "dataset_dict.json").write_text('{"splits": ["dev", "test"]}')
    with pytest.raises(DataError, match=r"a has several splits: dev, test\nname one, as .*a/dev"):
        load_samples(folder, reviews)


def test_a_folder_of_the_hub(reviews: Program, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, rows in (("train-00000-of-00002", ROWS[:1]), ("train-00001-of-00002", ROWS[1:]), ("test", ROWS[:2])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    (tmp_path / "README.md").write_text("# rows")
    assert load_samples(tmp_path, reviews).rows == 3
    assert load_samples(tmp_path / "test", reviews).rows == 2
    with pytest.raises(DataError, match=r"has no split 'tset', did you mean 'test'\?\ngive one of test, train"):
        load_samples(tmp_path / "tset", reviews)


def picture(value: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("L", (size, size), value).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_pictures_inside_rows(kind: str, vit: Program, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(picture(9))
    files = [
        {"bytes": picture(51), "path": "x.png"}, {"bytes": picture(102, 16), "path": None},
        {"bytes": b"noise", "path": None}, {"bytes": None, "path": "../out.png"}, {"bytes": None, "path": None},
        {"bytes": None, "path": "in.png"},
    ]  # fmt: skip
    rows = [{"image": file, "label": number % 5} for number, file in enumerate(files)]
    if kind == "arrow":
        folder = save_to_disk(tmp_path / "a", rows)
    else:
        folder = tmp_path / "a"
        folder.mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    (folder / "in.png").write_bytes(picture(153))
    samples = load_samples(folder, vit)
    assert torch.allclose(samples.inputs["x"].mean((1, 2, 3)), torch.tensor([0.2, 0.4, 0.6]))
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 0]
    assert samples.skipped == 3
    with pytest.raises(DataError, match=r"row 3 cannot be read: it is no picture"):
        load_samples(folder, vit, Reading(strict=True))


def test_damaged_folders(reviews: Program, tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "a", ROWS[:2], ROWS[2:])
    file = folder / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:40])
    samples = load_samples(folder, reviews)
    assert (samples.rows, samples.skipped) == (2, 1)
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow cannot be read"):
        load_samples(folder, reviews, Reading(strict=True))
    for name in ("../b.arrow", "/etc/passwd"):
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match=r"state\.json names no files beside it\nsave the data set again"):
            load_samples(folder, reviews)
    (folder / "state.json").write_text(json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i"}]}))
    with pytest.raises(DataError, match=r"order of their own\nsave it with flatten_indices"):
        load_samples(folder, reviews)
