"""Large data: only the rows and columns that are wanted are read, and they are from all over the file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from fxmerge.samples import columnar, columns, images
from fxmerge.samples.columnar import Columnar, Group, spread
from fxmerge.samples.tables import Lines


def test_of_a_parquet_file_only_what_is_wanted_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is in it is damaged."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = 500
    table = pyarrow.table({"text": [f"{n // rows} {n}" for n in range(40 * rows)], "more": [b"x" * 300] * 40 * rows})
    parquet.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="none")
    about = parquet.ParquetFile(path).metadata
    with path.open("r+b") as stream:
        for group in range(40):
            column = about.row_group(group).column(1 if group % 4 == 0 else 0)
            stream.seek(column.data_page_offset)
            stream.write(b"\xff" * 100)
    monkeypatch.setattr(columnar, "STRETCHES", 10)
    monkeypatch.setattr(columns, "MOST_ROWS", 200)
    found = columns.read_text(Columnar.of(str(path), [path]))  # strict
    groups = [int(str(text).split()[0]) for text in found.texts]
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(range(0, 40, 4), 20)
    assert found.notes == (f"{path} is large: 200 of its 20000 rows, evenly spread, are used",)


def test_of_a_wide_table_no_more_is_kept_than_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    cells = ",".join(["0.123456789"] * 200)
    with path.open("w") as stream:
        stream.write("text," + ",".join(f"c{n}" for n in range(200)) + "\n")
        stream.writelines(f"good film,{cells}\n" for _ in range(4000))
    tracemalloc.start()
    found = columns.read_text(Lines.of(path), 3000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.texts) == 3000
    assert path.stat().st_size > 9 << 20
    # the first thousand rows are looked at whole
    assert peak < 4 * 1000 * 200 * 100 / 3, peak


def test_a_large_file_of_lines_is_read_at_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_ROWS", 3)
    (tmp_path / "a.txt").write_text("good film\n\n" * 9)
    found = columns.read_text(Lines.of(tmp_path / "a.txt"))
    assert (found.texts, found.notes) == (
        ["good film\n"] * 3, (f"{tmp_path / 'a.txt'} is large: its first 3 rows are used",),
    )  # fmt: skip


def of(sizes: list[int]) -> list[Group]:
    return [Group(Path("a"), number, 1, rows) for number, rows in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([5, 5], 0, [(0, 5), (1, 5)]), ([5, 5], 10, [(0, 5), (1, 5)]), ([5, 5], 4, [(0, 2), (1, 2)]),
        ([100], 7, [(0, 7)]), ([10] * 3, 1, [(0, 1)]), ([9] * 200, 64, [(n * 200 // 64, 1) for n in range(64)]),
        ([9] * 200, 1795, [(n, 9) for n in range(200)]), ([], 5, []),
    ],
)  # fmt: skip
def test_rows_are_spread_over_all_groups(sizes: list[int], most: int, expected: Any) -> None:
    assert [(group.number, rows) for group, rows in spread(of(sizes), most)] == expected


def test_of_a_large_folder_some_images_of_every_class_are_drawn(tmp_path: Path) -> None:
    for name, count in (("cats", 40), ("dogs", 3), ("owls", 40)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number:02}.png").touch()
    found = images.in_turns(tmp_path, (".png",), "images", None, 18)
    assert found == images.in_turns(tmp_path, (".png",), "images", None, 18)
    assert found.notes == (f"{tmp_path} is large: 18 of its 83 images, drawn at random, are used",)
    assert found.classes is not None
    assert sorted((name, found.classes.count(name)) for name in set(found.classes)) == [
        ("cats", 8), ("dogs", 3), ("owls", 7),
    ]  # fmt: skip
    cats = [int(path.stem) for path in found.paths if path.parent.name == "cats"]
    assert min(cats) < 20 <= max(cats)
    first = images.in_turns(tmp_path, (".png",), "images", 4, 18)
    assert [str(path.relative_to(tmp_path)) for path in first.paths] == [
        "cats/00.png", "dogs/00.png", "owls/00.png", "cats/01.png",
    ]  # fmt: skip
    assert first.notes == ()
