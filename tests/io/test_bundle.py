"""Bundles: what goes in comes out bit for bit, and nothing in a file is ever executed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxmerge.io.bundle import load_bundle, save_bundle


@pytest.mark.parametrize("name", ["vit", "gpt", "masked"])
def test_a_program_comes_back_bit_for_bit(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    program = request.getfixturevalue(name)
    save_bundle(program, tmp_path / "a.pt")
    again = load_bundle(tmp_path / "a.pt")
    for field in ("inputs", "outputs", "parameters", "task", "labels", "aliases", "notes", "ranges", "hints", "assets"):
        assert getattr(again, field) == getattr(program, field), field
    assert again.text() == program.text()
    assert [n.meta.get("source") for n in again] == [n.meta.get("source") for n in program]
    assert again.tensors.keys() == program.tensors.keys()
    assert all(torch.equal(again.tensors[n], t) for n, t in program.tensors.items())
    assert all(torch.equal(again.samples[n], t) for n, t in program.samples.items())
    inputs = {n: torch.cat([t, t[:2]]) for n, t in program.samples.items()}
    before, after = program.run(inputs), again.run(inputs)
    assert all(torch.equal(before[n], after[n]) for n in before)
