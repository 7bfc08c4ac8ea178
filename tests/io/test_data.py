"""Samples from files: every kind that fits, and a message for each way not to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fxmerge.io.data import load_samples
from fxmerge.ir.program import Program


def test_a_single_array_fits_a_single_input(vit: Program, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "a.npz", anything=images, y=np.arange(6) % 5)
    samples = load_samples(tmp_path / "a.npz", vit)
    assert np.array_equal(samples.inputs["x"].numpy(), images)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 0]
    np.save(tmp_path / "a.npy", images)
    assert np.array_equal(load_samples(tmp_path / "a.npy", vit, limit=2).inputs["x"].numpy(), images[:2])
