"""What a message tells users to type is there: flags, verbs, functions, methods and extras, in all of the source."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import fxmerge
from fxmerge import errors
from fxmerge.cli.verbs import app
from fxmerge.methods import METHODS

ROOT = Path(fxmerge.__file__).parents[1]
KINDS = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, Exception)}


def texts(node: ast.AST) -> Iterator[str]:
    """The literal parts of a text; what is put in stands as "{}"."""
    for each in ast.walk(node):
        if isinstance(each, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in each.values)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def messages() -> list[tuple[str, str]]:
    """Everything that is said when an error is raised, with its place."""
    found = []
    for path in sorted([*(ROOT / "fxmerge").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in KINDS:
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                found += [(where, text) for argument in node.args for text in texts(argument)]
    return found


MESSAGES = messages()


@pytest.fixture(scope="module")
def verbs() -> dict[str, set[str]]:
    """The flags of every verb of the command line."""
    group = typer.main.get_command(app)
    assert hasattr(group, "commands")
    return {
        name: {flag for parameter in verb.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for name, verb in group.commands.items()
    }


def said(pattern: str) -> list[tuple[str, str]]:
    return [(where, word) for where, text in MESSAGES for word in re.findall(pattern, text)]


def test_flags_are_those_of_a_verb(verbs: dict[str, set[str]]) -> None:
    flags = {"--help"}.union(*verbs.values())
    given = said(r"(?<![\w-])--[a-z][a-z-]*")
    assert len(given) > 30
    assert not [each for each in given if each[1] not in flags]


def test_verbs_are_there(verbs: dict[str, set[str]]) -> None:
    given = said(r"\bfxmerge ([a-z]+)(?= [A-Z.\-{/a-z]*(?:--|\.|SOURCE|FILE|\{))")
    assert given
    assert not [each for each in given if each[1] not in verbs]


def test_functions_are_there() -> None:
    given = said(r"\bfxmerge\.([a-z_]+)\(")
    assert given
    assert not [each for each in given if not hasattr(fxmerge, each[1])]


def test_methods_are_there() -> None:
    given = said(r"--method ([a-z-]+)")
    assert not [each for each in given if each[1] not in {method.name for method in METHODS}]


def test_extras_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    given = said(r"fxmerge\[([a-z]+)\]")
    assert given
    assert not [each for each in given if each[1] not in extras]
