"""The names that `import fxmerge` offers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import fxmerge


@pytest.mark.parametrize("name", fxmerge.__all__)
def test_no_module_hides_a_public_name(name: str) -> None:
    """Importing a submodule sets the attribute of that name on the package, so a function must not share it."""
    assert find_spec(f"fxmerge.{name}") is None
    assert getattr(fxmerge, name) is not None
