"""The guard around reading, and the child that does what may crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxmerge.errors import DataError, FxmergeError, SourceError
from fxmerge.io import child
from fxmerge.io.guard import check_file, reading
from fxmerge.messages import nearest
from fxmerge.sources.operators import find_operator


class Panic(BaseException):
    """As native libraries raise: no Exception."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad\nvery"), "a cannot be read: bad\nagain"),
        (Panic("panicked"), "a cannot be read: panicked\nagain"),
        (RecursionError(), "a cannot be read: it is nested too deeply\nagain"),
        (MemoryError(), "a cannot be read: it would take more memory than there is\nagain"),
        (SourceError("no bundle", "give one"), "a: no bundle\ngive one"),
    ],
)
def test_whatever_goes_wrong_is_one_error(
    error: BaseException, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_bytes(b"x")
    with pytest.raises(FxmergeError) as caught, reading(Path("a"), DataError, "again"):
        raise error
    assert str(caught.value) == message


def test_what_the_user_asks_for_passes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt), reading(tmp_path / "a"):
        raise KeyboardInterrupt


def test_names_of_files_are_shown_escaped(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\\n\\x1b\[31m does not exist") as caught:
        check_file(tmp_path / "a\n\x1b[31m")
    assert "\n" not in caught.value.what


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read everything")
def test_permissions(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(SourceError, match="permission denied\nchange its permissions"):
        check_file(tmp_path / "a")


def test_a_child_answers_or_says_why_not() -> None:
    shown = {"mode": "L", "width": 1, "height": 1, "config": {}, "files": ["missing.png"]}
    [(answer, pixels)] = child.ask("fxmerge.samples.workers:images", shown)
    assert answer["bad"].startswith("[Errno 2]")
    assert pixels == b""
    with pytest.raises(child.ChildError, match="has no attribute 'nothing'"):
        list(child.ask("fxmerge.samples.workers:nothing", {}))


@pytest.mark.parametrize("name", ["aten._adaptive_avg_pool2d_backward.default", "aten._foreach_abs.default"])
def test_operators_of_training_are_no_forward_pass(name: str) -> None:
    with pytest.raises(SourceError, match="which no forward pass has"):
        find_operator(name)
    assert str(find_operator("aten._softmax.default")) == "aten._softmax.default"


def test_the_nearest_of_very_many_or_long_names_is_found_quickly() -> None:
    assert nearest("weigth", ["weight"] + ["x" * 10_000] * 10) == ", did you mean 'weight'?"
    assert nearest("x" * 1_000_000, (str(n) for n in range(10**7))) == ""
