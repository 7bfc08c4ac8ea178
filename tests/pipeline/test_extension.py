"""Extensions: values that join, clashes that name both owners, files and packages that load or say why not."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fxmerge import Extension, couples
from fxmerge.errors import ExtensionError, OptionError
from fxmerge.methods import Job, Outcome
from fxmerge.pipeline import Pass
from fxmerge.pipeline.extension import GROUP, collect, from_file, from_packages
from fxmerge.rewrite import Match, op, rewrite, var


@dataclass(frozen=True)
class Half:
    """A method that does nothing."""

    name: str = "half"
    summary: str = "nothing at all"
    needs_data: bool = False

    def __call__(self, job: Job) -> Outcome:
        raise NotImplementedError


@dataclass(frozen=True)
class Mark(Pass):
    """Mark nothing."""


rule = couples("mine.scale.default", "... d, d -> ... d")


@couples("mine.turn.default")
def turn(call: Any) -> str:
    """Turn two axes."""
    return "a b -> b a"


@rewrite(op("mine.scale", var("x"), var("s")))
def drop_scale(match: Match) -> Any:
    """scale(x, s)  -->  x"""
    return match["x"]


FULL = Extension("mine 1.0", rules=[rule, turn], rewrites=drop_scale, passes=Mark, methods=Half())


def test_an_extension_lists_what_it_brings() -> None:
    rows = [(item.kind, item.name, item.summary, item.owner) for item in FULL.items]
    assert rows == [
        ("rule", "mine.scale.default", "... d, d -> ... d", "mine 1.0"),
        ("rule", "mine.turn.default", "Turn two axes.", "mine 1.0"),
        ("rewrite", "drop-scale", "scale(x, s)  -->  x", "mine 1.0"),
        ("pass", "mark", "Mark nothing.", "mine 1.0"),
        ("method", "half", "nothing at all", "mine 1.0"),
    ]
    assert list(FULL.rules) == [rule, turn]
    assert FULL.rewrites == (drop_scale,)
    assert FULL.passes == (Mark,)
    assert FULL.methods == (Half(),)
    assert FULL.owner("method", "half") == "mine 1.0"


def test_extensions_join_and_the_same_thing_twice_is_no_clash() -> None:
    parts = [Extension("a", rules=rule), Extension("b", rules=turn, methods=Half()), Extension("a", rules=[rule])]
    joined = parts[0] + parts[1] + parts[2]
    assert joined.name == "a"
    assert [item.name for item in joined.items] == ["mine.scale.default", "mine.turn.default", "half"]
    assert joined.owner("rule", "mine.turn.default") == "b"
    assert joined == parts[0] + parts[1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Extension("b 2", rules=couples("mine.scale.default", "a d, d -> a d")),
            "two rules named 'mine.scale.default': one from mine 1.0, one from b 2",
        ),
        (
            Extension("b 2", rewrites=replace(drop_scale, pattern=op("mine.other"))),
            "two rewrites named 'drop-scale': one from mine 1.0, one from b 2",
        ),
        (
            Extension(passes=type("Mark", (Pass,), {})),
            "two passes named 'mark': one from mine 1.0, one from an unnamed",
        ),
        (Extension("b 2", methods=Half(summary="!")), "two methods named 'half': one from mine 1.0, one from b 2"),
    ],
    ids=["rule", "rewrite", "pass", "method"],
)
def test_a_clash_names_both_owners(other: Extension, message: str) -> None:
    with pytest.raises(ExtensionError, match=message) as error:
        FULL + other
    assert "rename one of them, or leave one of the extensions out" in str(error.value)


def test_things_of_the_wrong_kind_are_refused() -> None:
    wrong: list[tuple[Callable[[], Extension], str]] = [
        (lambda: Extension(rules="linear"), "'linear' stands among the rules"),  # type: ignore[arg-type]
        (lambda: Extension(rewrites=[rule]), "stands among the rewrites"),  # type: ignore[list-item]
        (lambda: Extension(passes=[Mark()]), "stands among the passes"),  # type: ignore[list-item]
        (lambda: Extension(methods=Half), "stands among the methods"),  # type: ignore[arg-type]
        (lambda: Extension(methods=print), "stands among the methods"),  # type: ignore[arg-type]
    ]
    for make, message in wrong:
        with pytest.raises(ExtensionError, match=message):
            make()


def test_an_unknown_name_brings_the_nearest() -> None:
    assert FULL.find("method", "half") == Half()
    with pytest.raises(OptionError, match="unknown method 'hlaf', did you mean 'half'") as error:
        FULL.find("method", "hlaf")
    assert "`fxmerge methods` lists them" in str(error.value)
    with pytest.raises(OptionError, match="`fxmerge passes` lists them"):
        FULL.find("pass", "nothing")


# -- files -----------------------------------------------------------------------------------------------

FILE = """
from fxmerge import Extension, couples
rule = couples("mine.scale.default", "... d, d -> ... d")
extension = Extension(rules=rule)
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(FILE)
    return path


def test_a_file_loads_once_and_owns_what_it_brings(file: Path) -> None:
    loaded = from_file(f"{file}:extension")
    assert loaded.owner("rule", "mine.scale.default") == f"{file}:extension"
    assert from_file(f"{file}:extension") == loaded
    together = collect(Extension("fxmerge", methods=Half()), [f"{file}:extension"] * 2, installed=False)
    assert [item.name for item in together.items] == ["half", "mine.scale.default"]


def test_files_that_do_not_load(file: Path, tmp_path: Path) -> None:
    wrong: list[tuple[str, type[Exception], str]] = [
        (f"{file}", OptionError, "does not say which name to take"),
        (f"{file}:", OptionError, "does not say which name to take"),
        (f"{tmp_path}/nothing.py:x", ExtensionError, "there is no file"),
        (f"{file}:extensoin", ExtensionError, "has no 'extensoin', did you mean 'extension'"),
        (f"{file}:number", ExtensionError, "is a int, not an Extension"),
    ]
    for text, kind, message in wrong:
        with pytest.raises(kind, match=message):
            from_file(text)
    bad = tmp_path / "bad.py"
    bad.write_text("import fxmerge\n\nfxmerge.nothing\n")
    with pytest.raises(ExtensionError, match=r"bad.py line 3: AttributeError: module 'fxmerge' has no attribute"):
        from_file(f"{bad}:x")
    bad.write_text("x = = 3\n")
    with pytest.raises(ExtensionError, match=r"bad.py line 1: SyntaxError"):
        from_file(f"{bad}:x")
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(ExtensionError, match="is no Python file"):
        from_file(f"{text}:x")


# -- packages --------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make an installed package whose entry point leads to the code given."""

    def make(code: str) -> None:
        (tmp_path / "plugin_of_test.py").write_text(code)
        info = tmp_path / "plugin_of_test-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-test\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = plugin_of_test:extension\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield make
    import sys

    sys.modules.pop("plugin_of_test", None)


def test_an_installed_package_brings_its_extension(package: Callable[[str], None]) -> None:
    package(FILE)
    (found,) = (each for each in from_packages() if each.name == "plugin-of-test 2.5")
    assert found.owner("rule", "mine.scale.default") == "plugin-of-test 2.5"
    known = collect(Extension("fxmerge"))
    assert known.owner("rule", "mine.scale.default") == "plugin-of-test 2.5"


def test_a_broken_package_is_named(package: Callable[[str], None]) -> None:
    package("raise RuntimeError('too old')")
    with pytest.raises(
        ExtensionError, match=r"extension mine of package plugin-of-test 2.5 cannot be loaded: RuntimeError"
    ):
        list(from_packages())


def test_a_package_and_a_file_that_clash_are_both_named(package: Callable[[str], None], tmp_path: Path) -> None:
    package(FILE)
    other = tmp_path / "other.py"
    other.write_text(FILE.replace("... d, d", "a d, d").replace("-> ... d", "-> a d"))
    with pytest.raises(ExtensionError, match=r"one from plugin-of-test 2.5, one from .*other.py:extension"):
        collect(Extension("fxmerge"), [f"{other}:extension"])


def test_without_packages_nothing_is_brought() -> None:
    ours = importlib.metadata.entry_points(group=GROUP)
    assert all(point.dist is not None for point in ours)
    assert collect(FULL, installed=False) == FULL
