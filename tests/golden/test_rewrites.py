"""Every built-in rewrite: the program before and after it as text, and both run in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import fxmerge
from fxmerge.ir.program import Program
from fxmerge.rewrite import Rewrite, apply
from passes.operators import OPERATORS
from passes.rewrites import REWRITES
from passes.rewrites.fused_projections import APART
from passes.rewrites.joined_axes import JOINED
from passes.rewrites.other_code_bases import SPELLINGS
from passes.spelling.normalize import without_no_ops
from tests.golden.texts import HERE, Golden
from tests.golden.written import CASES, Written

ALL: dict[str, Rewrite] = {each.name: each for each in (*REWRITES, *JOINED, *APART, *SPELLINGS)}


@pytest.mark.parametrize("name", ALL)
def test_before_and_after(name: str, golden: Golden, double: Callable[[Program], Program]) -> None:
    torch.manual_seed(3)
    case = CASES[name]
    inputs = case.inputs()
    before = without_no_ops(fxmerge.capture(Written(case.forward), inputs, task=name), OPERATORS)
    after = apply(before, [ALL[name]])
    golden(f"rewrites/{name}", f"# {ALL[name].summary}\n\n{before.text()}\n-->\n\n{after.text()}")
    named = {port.name: value for port, value in zip(before.inputs, inputs, strict=True)}
    wide = {port: value.double() if value.is_floating_point() else value for port, value in named.items()}
    casts = "torch.float" in before.text()  # what is computed in a dtype of its own is compared in that dtype
    old, new = (p.run(named) if casts else double(p).run(wide) for p in (before, after))
    for port in old:
        torch.testing.assert_close(new[port], old[port], rtol=1e-5 if casts else 1e-9, atol=1e-6 if casts else 1e-10)


def test_every_text_has_its_rewrite() -> None:
    assert ALL.keys() == CASES.keys()
    assert {path.stem for path in (HERE / "rewrites").iterdir()} == ALL.keys()
