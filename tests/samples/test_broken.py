"""Broken files and rows: left out, counted and named; or, where that is asked for, the end."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fxmerge.cli import main
from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.samples.load import Reading, load_samples
from fxmerge.sources.bundle import save_bundle
from tests.samples.test_text import tokenizer

STRICT = Reading(strict=True)


def images(folder: Path) -> tuple[Path, int, str]:
    for number in range(5):
        name = ("ones", "twos")[number % 2]
        (folder / name).mkdir(exist_ok=True)
        Image.new("L", (8, 8), 10 * number).save(folder / name / f"{number}.png")
    for number in (1, 2):
        file = folder / ("ones", "twos")[number % 2] / f"{number}.png"
        file.write_bytes(file.read_bytes()[:30])
    return folder, 2, r"twos/1\.png cannot be read: "


def arrays(folder: Path) -> tuple[Path, int, str]:
    x = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)
    x[2, 0, 3, 3], x[4, 0, 0, 0] = np.nan, np.inf
    np.savez(folder / "a.npz", x=x, labels=np.arange(6) % 5)
    return folder / "a.npz", 2, r"a\.npz: x holds NaN or infinite values"


def damaged_array(folder: Path) -> tuple[Path, int, str]:
    """The labels of an archive are damaged, its inputs are whole."""
    path = folder / "a.npz"
    np.savez(path, x=np.ones((4, 1, 8, 8), dtype=np.float32), labels=np.full(4, 0x77777777))
    path.write_bytes(path.read_bytes().replace(b"\x77\x77\x77\x77", b"\x76\x77\x77\x77", 1))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == "labels.npy"
    return path, 1, r"a\.npz cannot be read: labels\.npy: Bad CRC-32"


def cells(folder: Path) -> tuple[Path, int, str]:
    rows = b'text,label\ngood,1\nbad,0,7,7\n"a film\xff",1\nvery,0\n"a ""b"c,1\ngood film,1\n'
    (folder / "a.csv").write_bytes(rows)
    return folder / "a.csv", 3, r"a\.csv cannot be read: row 3 has 4 columns, the first one 2"


def objects(folder: Path) -> tuple[Path, int, str]:
    rows = b'{"text": "good"}\n{"text": nu\n{"text": null}\n[1]\n{"text": "a \xff"}\n\n{"text": "bad film"}\n'
    (folder / "a.jsonl").write_bytes(rows)
    return folder / "a.jsonl", 4, r"a\.jsonl cannot be read: line 2: Expecting value"


def groups(folder: Path) -> tuple[Path, int, str]:
    """The second of three groups of rows is overwritten."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"text": [f"good {'film ' * (n % 5)}" for n in range(300)]})
    parquet.write_table(table, folder / "a.parquet", row_group_size=100, use_dictionary=False, compression="snappy")
    place = parquet.ParquetFile(folder / "a.parquet").metadata.row_group(1).column(0)
    data = bytearray((folder / "a.parquet").read_bytes())
    data[place.data_page_offset : place.data_page_offset + place.total_compressed_size] = (
        b"\xff" * place.total_compressed_size
    )
    (folder / "a.parquet").write_bytes(data)
    return folder / "a.parquet", 100, r"a\.parquet cannot be read: rows 101 to 200: "


Make = Callable[[Path], tuple[Path, int, str]]
KINDS: dict[Make, tuple[str, int]] = {
    images: ("vit", 3), arrays: ("vit", 4), damaged_array: ("vit", 4),
    cells: ("reviews", 3), objects: ("reviews", 2), groups: ("reviews", 200),
}  # fmt: skip


@pytest.mark.parametrize("make", KINDS)
def test_what_is_broken_is_left_out_counted_and_named(
    make: Make, vit: Program, masked: Program, tmp_path: Path
) -> None:
    if KINDS[make][0] == "reviews":
        pytest.importorskip("tokenizers")
    path, broken, message = make(tmp_path)
    assets = {"tokenizer.json": tokenizer().to_str().encode()} if KINDS[make][0] == "reviews" else {}
    program = masked.evolve(assets=assets) if assets else vit.evolve(labels=None)
    samples = load_samples(path, program)
    assert (samples.rows, samples.skipped) == (KINDS[make][1], broken)
    assert samples.labels is None or len(samples.labels) == samples.rows
    [note] = [note for note in samples.notes if "--strict-data" in note]
    with pytest.raises(DataError, match=message) as caught:
        load_samples(path, program, STRICT)
    assert caught.value.todo
    assert note.startswith(f"{path}: {'one' if broken == 1 else broken} broken part")
    assert make is arrays or note.endswith(caught.value.what)


def test_labels_stay_with_their_rows(vit: Program, tmp_path: Path) -> None:
    path, _, _ = arrays(tmp_path)
    labels = load_samples(path, vit.evolve(labels=None)).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 3, 0]
    folder = tmp_path / "images"
    folder.mkdir()
    labels = load_samples(images(folder)[0], vit.evolve(labels=("twos", "ones"))).labels
    assert labels is not None
    assert labels.tolist() == [1, 0, 1]


def test_nothing_but_broken_parts_is_an_error(vit: Program, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.full((3, 1, 8, 8), np.nan, dtype=np.float32))
    with pytest.raises(DataError, match="x holds NaN or infinite values, first at"):
        load_samples(tmp_path / "a.npz", vit)
    (tmp_path / "a.png").write_bytes(b"noise")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        load_samples(tmp_path, vit)
    x = np.full((2, 1, 8, 8), 0.7, dtype=np.float32)
    np.savez(tmp_path / "b.npz", x=x, more=np.ones(2))
    whole = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "b.npz").write_bytes(whole.replace(x.tobytes()[:4], bytes(4), 1))
    with pytest.raises(DataError, match=r"b\.npz cannot be read: x\.npy: Bad CRC-32"):  # which is its only input
        load_samples(tmp_path / "b.npz", vit)


def test_the_result_counts_and_strict_data_stops(
    vit: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save_bundle(vit.evolve(task=name, labels=None), tmp_path / f"{name}.pt")
    (tmp_path / "pictures").mkdir()
    images(tmp_path / "pictures")
    given = ["a.pt", "b.pt", "--data", "pictures", "--method", "condense", "--out", "m.onnx"]
    assert main(["merge", *given, "--strict-data"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "1.png cannot be read" in said[0]
    assert "remove or repair that image" in said[1]
    assert not Path("m.onnx").exists()
    assert main(["merge", *given, "--result", "r.json"]) == 0
    tasks = json.loads(Path("r.json").read_text())["tasks"]
    assert [(task["samples"], task["skipped"]) for task in tasks] == [(3, 2), (3, 2)]
    assert "2 broken parts were left out" in capsys.readouterr().err
    assert main(["eval", "m.onnx", "--data", "a=pictures", "--json", "--strict-data"]) == 2
    capsys.readouterr()
    assert main(["eval", "m.onnx", "--data", "a=pictures", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["skipped"] == 2
