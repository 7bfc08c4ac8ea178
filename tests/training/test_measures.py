"""Every measure: nothing for the teacher's own answer, one for the best constant, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxmerge.training.measures import Distributions, Measure, Places, Squares


def boxes(places: int = 4000, seed: int = 0) -> Tensor:
    """Answers of a detector at many places: a score that is rarely high, and two numbers that always vary."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.where(torch.rand(places, generator=generator) < 0.03, 3.0, -6.0)
    noise = torch.randn(places, 3, generator=generator)
    return torch.stack([score + 0.3 * noise[:, 0], noise[:, 1], noise[:, 2]], 1)


def settled(measure: Measure, values: Tensor) -> Measure:
    for part in values.split(500):
        measure.see(part)
    measure.settle()
    return measure


def test_squares_are_a_share_of_the_variance() -> None:
    values = torch.randn(2000, 6, generator=torch.Generator().manual_seed(1)) * 3 + 5
    measure = settled(Squares(), values)
    assert float(measure.error(values, values)) == 0
    assert float(measure.error(values.mean(0).expand_as(values), values)) == pytest.approx(1, rel=1e-4)


def test_distributions_are_compared_as_such() -> None:
    values = 2 * torch.randn(3000, 7, generator=torch.Generator().manual_seed(1))
    measure = settled(Distributions(), values)
    assert float(measure.error(values + torch.randn(3000, 1), values)) == pytest.approx(0, abs=1e-5)
    constant = torch.softmax(values, -1).mean(0).log().expand_as(values)
    assert float(measure.error(constant, values)) == pytest.approx(1, rel=1e-4)
    assert settled(Distributions(), torch.zeros(50, 4)).constant


def test_places_where_something_is_seen_count_as_much_as_all_others() -> None:
    values = boxes()
    measure = settled(Places(), values)
    assert float(measure.error(values, values)) == 0
    seen = values[:, 0] > 0
    there, elsewhere = values.clone(), values.clone()
    there[seen, 1] += 1
    elsewhere[~seen, 1] += 1
    plain = settled(Squares(), values)
    ratio = [float(m.error(there, values) / m.error(elsewhere, values)) for m in (measure, plain)]
    assert ratio[1] < 0.05, "few places: the plain error hardly sees them"
    assert 0.5 < ratio[0] < 2


def test_where_no_channel_is_rare_all_places_count_alike() -> None:
    values = torch.rand(3000, 4, generator=torch.Generator().manual_seed(2))
    measure = settled(Places(), values)
    moved = values.clone()
    moved[:30] += 1
    other = values.clone()
    other[500:530] += 1
    assert float(measure.error(moved, values)) == pytest.approx(float(measure.error(other, values)), rel=1e-4)
    assert float(measure.error(values.mean(0).expand_as(values), values)) == pytest.approx(1, rel=1e-2)


def test_an_answer_that_never_varies_is_said() -> None:
    assert settled(Places(), torch.ones(300, 3)).constant
    assert settled(Squares(), torch.ones(300, 3)).constant
