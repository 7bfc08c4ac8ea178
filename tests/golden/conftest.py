"""Golden texts."""

from __future__ import annotations

import pytest

from tests.golden.texts import Golden


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden("rewrites/gelu", text)`: the text is the one in that file."""
    return Golden(bool(request.config.getoption("--update-golden")))
