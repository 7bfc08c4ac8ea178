"""The rooms of both packages stand in the order of CONTRIBUTING.md: what is imported stands below who imports it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("fxmerge", "passes")
    for path in sorted((ROOT / package).rglob("*.py"))
}
WORKER = re.compile(r"(fxmerge(?:\.\w+)+):\w+")
"""A worker of a child process is imported by its name."""
DOOR = "fxmerge/installed.py"


def rooms() -> list[str]:
    """The rooms in the first column of the table, those that import nothing first."""
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [room.rstrip("/") for row in rows for room in re.findall(r"`(.*?)`", row)]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2])


def module_of(name: str) -> str | None:
    """The module that a dotted name is, or is in."""
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name or None


def named_in(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: say where it is imported from"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and (worker := WORKER.fullmatch(str(node.value))):
            yield node.lineno, worker[1]


@cache
def arrows() -> list[tuple[Path, int, Path]]:
    """(importing file, line, imported file)."""
    found = [(path, line, module_of(name)) for path in FILES.values() for line, name in named_in(path)]
    return [(path, line, FILES[target]) for path, line, target in found if target and FILES[target] != path]


def test_every_room_has_its_place() -> None:
    assert len(rooms()) == len(set(rooms()))
    assert set(rooms()) == {room_of(path) for path in FILES.values()}


@pytest.mark.parametrize("room", rooms())
def test_no_arrow_runs_back_up(room: str) -> None:
    place = {name: number for number, name in enumerate(rooms())}
    back = [
        f"{path.relative_to(ROOT)}:{line} imports {target.relative_to(ROOT)}"
        for path, line, target in arrows()
        if room_of(path) == room and place[room_of(target)] > place[room]
    ]
    assert not back


def test_operators_are_known_through_one_door() -> None:
    outside = {path for path, _, target in arrows() if target.is_relative_to(ROOT / "passes")}
    assert {room_of(path) for path in outside if path.is_relative_to(ROOT / "fxmerge")} == {DOOR}


def test_no_file_imports_itself_in_a_circle() -> None:
    behind: dict[Path, set[Path]] = {path: set() for path in FILES.values()}
    for path, _, target in arrows():
        behind[path].add(target)
    try:
        TopologicalSorter(behind).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(path.relative_to(ROOT)) for path in error.args[1]))
