"""Texts of programs that stand in files beside the tests, and are rewritten when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Golden:
    """Compares a text with the file that holds it; with `--update-golden`, writes the file instead."""

    def __init__(self, update: bool) -> None:
        self.update = update

    def __call__(self, name: str, text: str) -> None:
        path = HERE / f"{name}.txt"
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if not path.is_file():
            pytest.fail(f"there is no {path.name}: run pytest --update-golden, and read what it wrote")
        assert text == path.read_text(), f"{path.name} is not what it was: read the difference, then --update-golden"
