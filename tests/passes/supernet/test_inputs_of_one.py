"""An input that one parent takes and another does not: each keeps its own, and merged with itself it is itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.errors import LineUpError
from fxmerge.from_onnx.runtime import run_onnx

IDS, SEGMENTS = torch.randint(1, 20, (8, 6)), torch.randint(0, 2, (8, 6))
MASK = (torch.arange(6) < torch.arange(1, 9)[:, None].clamp(max=6)).long()


class Segmented(nn.Module):
    """Words, and which of two sentences each is in: the first, unless it is said."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.segments = nn.Embedding(20, 8), nn.Embedding(2, 8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def answer(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        x = (self.words(ids) + self.segments(segments)) * mask[..., None]
        return self.head(self.inner(x).relu().sum(1))

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        return self.answer(ids, mask, segments)


class Alike(Segmented):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.answer(ids, mask, torch.zeros_like(ids))


class Filled(Segmented):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.answer(ids, mask, torch.zeros(ids.shape, dtype=torch.long))


class Kept(Segmented):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.register_buffer("first", torch.zeros(1, 6, dtype=torch.long))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.answer(ids, mask, self.first[:, : ids.shape[1]].expand(ids.shape))


class Turned(Segmented):
    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        return self.answer(ids, mask, segments)


def captured(kind: type[Segmented], task: str, seed: int = 0) -> fxmerge.Program:
    inputs = {"ids": IDS, "mask": MASK, "segments": SEGMENTS}
    if kind in (Alike, Filled, Kept):
        del inputs["segments"]
    if kind is Turned:
        inputs = {name: inputs[name] for name in ("ids", "segments", "mask")}
    return fxmerge.capture(kind(seed), inputs, task=task)


@pytest.mark.parametrize("like", [0, 1], ids=["like the one with it", "like the one without"])
@pytest.mark.parametrize("kind", [Alike, Filled, Kept])
def test_each_keeps_its_own_inputs(kind: type[Segmented], like: int, tmp_path: Path) -> None:
    one, two = captured(Segmented, "a"), captured(kind, "b")
    out = str(tmp_path / "merged.onnx") if kind is Filled else None  # an export takes most of the time
    merged = fxmerge.merge([one, two], method="average", like=like, out=out)
    names = ["a.ids", "a.mask", "a.segments", "b.ids", "b.mask"]
    assert sorted(port.name for port in merged.program.inputs) == names
    assert any("b takes no segments: it keeps the constant" in note for note in merged.result["notes"])
    given = dict(zip(names, (IDS, MASK, SEGMENTS, IDS, MASK), strict=True))
    wanted = {"a": one(IDS, MASK, SEGMENTS), "b": two(IDS, MASK)}
    assert not torch.allclose(wanted["a"], wanted["b"], atol=1e-2)
    answers = merged(**given)
    for task, value in wanted.items():
        torch.testing.assert_close(answers[task], value)
        if out is not None:
            torch.testing.assert_close(run_onnx(out, given)[f"{task}.logits"], value)


def test_the_same_inputs_in_another_order_are_told_apart_by_name() -> None:
    one, two = captured(Segmented, "a"), captured(Turned, "b")
    merged = fxmerge.merge([one, two], method="average")
    found = merged(**{f"{t}.{n}": v for t in "ab" for n, v in (("ids", IDS), ("mask", MASK), ("segments", SEGMENTS))})
    torch.testing.assert_close(found["a"], one(IDS, MASK, SEGMENTS))
    torch.testing.assert_close(found["b"], two(ids=IDS, mask=MASK, segments=SEGMENTS))


def test_it_is_trained_on_what_each_takes() -> None:
    one, two = captured(Segmented, "a"), captured(Filled, "b", 1)
    data = {"a": {"ids": IDS, "mask": MASK, "segments": SEGMENTS}, "b": {"ids": IDS, "mask": MASK}}
    merged = fxmerge.merge([one, two], data=data, method="foldable", init="average", steps=2, batch_size=4)
    assert merged.result["checks"]["all_gradients"]


def test_an_input_in_place_of_what_is_computed_from_others_does_not_line_up() -> None:
    class Computed(Segmented):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            return self.answer(ids, mask, (ids > 5).long())

    program = fxmerge.capture(Computed(0), {"ids": IDS, "mask": MASK}, task="b")
    with pytest.raises(LineUpError, match="segments"):
        fxmerge.merge([captured(Segmented, "a"), program], method="average")
