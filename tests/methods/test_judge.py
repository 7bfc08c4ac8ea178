"""How untrained candidates are judged."""

from __future__ import annotations

import pytest

from fxmerge.methods.judge import over_tasks


def test_a_task_that_is_lost_is_not_made_good_by_another() -> None:
    assert over_tasks([0.6, 0.6]) == pytest.approx(0.6)
    assert over_tasks([0.2, 1.0]) < 0.6
    assert over_tasks([1.0, 1.0]) == 1.0
