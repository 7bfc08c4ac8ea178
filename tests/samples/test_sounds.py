"""Recordings: read like the standard library and scipy read them, at the model's rate, in rows of one length."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor, nn

from fxmerge.capturing import capture
from fxmerge.errors import DataError
from fxmerge.ir.program import Program
from fxmerge.samples import wav
from fxmerge.samples.load import Reading, load_samples

STRICT = Reading(strict=True)


class Ears(nn.Module):
    """(batch, 1, time) or (batch, time) waveforms to 3 scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(1, 4, 9, 4), nn.Linear(4, 3)

    def forward(self, wave: Tensor) -> Tensor:
        wave = wave if wave.dim() == 3 else wave.unsqueeze(1)
        return self.head(self.conv(wave).relu().mean(2))


class Masked(Ears):
    def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_values * attention_mask)


@pytest.fixture(scope="module")
def fixed() -> Program:
    torch.manual_seed(0)
    return capture(Ears(), (torch.randn(2, 1, 400),), task="words")


@pytest.fixture(scope="module")
def free() -> Program:
    inputs = {"input_values": torch.randn(2, 300), "attention_mask": torch.ones(2, 300, dtype=torch.long)}
    return capture(Masked(), inputs, task="words")


def tone(count: int, seed: int = 0) -> Any:
    return np.sin(np.arange(count) * 0.05 * (seed + 1)) * 0.5


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2])
def test_numbers_are_those_that_scipy_reads(kind: str, channels: int, tmp_path: Path) -> None:
    values = np.stack([tone(501, seed) for seed in range(channels)], 1)
    if kind == "uint8":
        values = values * 127 + 128
    elif kind.startswith("int"):
        values = values * np.iinfo(kind).max
    wavfile.write(tmp_path / "a.wav", 8000, values.astype(kind))
    found = wav.decode((tmp_path / "a.wav").read_bytes())
    _, expected = wavfile.read(tmp_path / "a.wav")
    expected = expected.astype(np.float64).reshape(501, channels)
    scale = {"uint8": 128, "int16": 2**15, "int32": 2**31}.get(kind, 1)
    expected = (expected - (128 if kind == "uint8" else 0)) / scale
    assert (found.rate, found.channels) == (8000, channels)
    assert np.abs(found.values - expected.mean(1)).max() < 1e-6


def test_numbers_of_24_bits(tmp_path: Path) -> None:
    values = (tone(100) * 2**23).astype(np.int32)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(3), file.setframerate(16000)
        file.writeframes(b"".join(int(v).to_bytes(3, "little", signed=True) for v in values))
    assert np.abs(wav.decode((tmp_path / "a.wav").read_bytes()).values - values / 2**23).max() < 1e-6


def test_a_folder_of_classes_at_the_rate_of_the_model(fixed: Program, tmp_path: Path) -> None:
    config = {"sampling_rate": 16000, "do_normalize": True, "feature_size": 1}
    program = fixed.evolve(assets={"preprocessor_config.json": json.dumps(config).encode()}, labels=("no", "up", "yes"))
    for name, rate, count in (("yes", 8000, 230), ("no", 16000, 900)):
        (tmp_path / name).mkdir()
        wavfile.write(tmp_path / name / "a.wav", rate, (tone(count) * 32767).astype(np.int16))
    samples = load_samples(tmp_path, program)
    found = samples.inputs["wave"]
    assert found.shape == (3, 1, 400)
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 0, 2]
    heard = wav.decode((tmp_path / "yes" / "a.wav").read_bytes()).values
    expected = resample_poly(heard, 2, 1)[:400]
    expected = (expected - expected.mean()) / np.sqrt(expected.var() + 1e-7)
    assert np.abs(found[2, 0].numpy() - expected).max() < 1e-5
    assert any("resampled from 8000 Hz to the model's 16000 Hz" in note for note in samples.notes)


def test_free_lengths_are_filled_and_masked(free: Program, tmp_path: Path) -> None:
    for number, count in enumerate((250, 400)):
        wavfile.write(tmp_path / f"{number}.wav", 16000, tone(count, number).astype(np.float32))
    samples = load_samples(tmp_path, free)
    assert samples.inputs["input_values"].shape == (2, 400)
    assert samples.inputs["attention_mask"].sum(1).tolist() == [250, 400]
    assert not bool(samples.inputs["input_values"][0, 250:].any())
    assert f"{tmp_path}: 2 recordings in 2 rows of 400 numbers, 1 of them filled with silence" in samples.notes
    assert any("read at their own 16000 Hz" in note for note in samples.notes)
    wavfile.write(tmp_path / "2.wav", 8000, tone(200).astype(np.float32))
    with pytest.raises(DataError, match=r"recordings of 8000, 16000 Hz, and words does not say.*\nresample them"):
        load_samples(tmp_path, free)


def test_one_long_recording_is_cut_into_rows(fixed: Program, tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 16000, tone(1700).astype(np.float32))
    samples = load_samples(tmp_path / "a.wav", fixed)
    assert samples.inputs["wave"].shape == (4, 1, 400)
    assert np.allclose(samples.inputs["wave"].flatten().numpy(), tone(1600), atol=1e-6)


def test_recordings_that_are_broken(fixed: Program, vit: Program, tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 16000, tone(400).astype(np.float32))
    whole = (tmp_path / "a.wav").read_bytes()
    bad = {
        "cut": (whole[:-100], "it is truncated: 1500 of 1600 bytes of sound"), "head": (whole[:30], "truncated"),
        "law": (whole[:20] + b"\x07\x00" + whole[22:], "coding 7 with 32 bits is not read"), "none": (b"", "is empty"),
        "noise": (b"noise" * 9, r"it is no \.wav file, and others need the soundfile library"),
        "nan": (whole[:-4] + b"\xff\xff\xff\x7f", "it holds NaN"),
        "rate": (whole[:24] + bytes(4) + whole[28:], "its header says 1 channels of 4 bytes, 0 a second"),
    }  # fmt: skip
    for name, (data, why) in bad.items():
        (tmp_path / f"{name}.wav").write_bytes(data)
        if name != "noise":
            with pytest.raises(DataError, match=rf"{name}\.wav .*{why}") as caught:
                load_samples(tmp_path / f"{name}.wav", fixed, STRICT)
            assert caught.value.todo
    samples = load_samples(tmp_path, fixed)
    assert (samples.rows, samples.skipped) == (1, len(bad))
    with pytest.raises(DataError, match=r"holds sound, but digits takes x \(batch, 1, 8, 8\)\ngive arrays"):
        load_samples(tmp_path / "a.wav", vit)


def test_sound_inside_rows(fixed: Program, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    wavfile.write(tmp_path / "a.wav", 16000, tone(400).astype(np.float32))
    file = {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}
    table = pyarrow.Table.from_pylist([{"audio": file, "label": 2}] * 3)
    parquet.write_table(table, tmp_path / "a.parquet")
    samples = load_samples(tmp_path / "a.parquet", fixed)
    assert samples.inputs["wave"].shape == (3, 1, 400)
    assert samples.labels is not None
    assert samples.labels.tolist() == [2, 2, 2]
