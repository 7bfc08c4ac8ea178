"""New token rows keep every convention of the old ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxmerge.samples.augment import augment
from fxmerge.samples.token_rows import groups, layout_of

CLS, SEP, PAD = 101, 102, 0


def encoder_rows(rows: int = 40, length: int = 12, left: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """[CLS] words [SEP], padded, with mask and token types, as BERT takes them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((rows, length), PAD)
    mask = torch.zeros(rows, length, dtype=torch.long)
    types = torch.zeros(rows, length, dtype=torch.long)
    for row in range(rows):
        size = int(torch.randint(4, length + 1, (1,), generator=generator))
        words = torch.randint(200, 900, (size - 2,), generator=generator)
        at = slice(length - size, length) if left else slice(0, size)
        ids[row, at] = torch.cat([torch.tensor([CLS]), words, torch.tensor([SEP])])
        mask[row, at] = 1
        types[row, at][size // 2 :] = 1
    return {"ids": ids, "mask": mask, "types": types}


def real(made: dict[str, Tensor], row: int) -> list[int]:
    chosen: list[int] = made["ids"][row][made["mask"][row] == 1].tolist()
    return chosen


@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
def test_padding_and_special_tokens_keep_their_places(left: bool) -> None:
    samples = encoder_rows(left=left)
    made = augment(samples, "tokens", 400, 0, originals=False)
    words = set(samples["ids"].flatten().tolist()) - {CLS, SEP, PAD}
    for row in range(400):
        tokens = real(made, row)
        assert tokens[0] == CLS
        assert tokens[-1] == SEP
        assert len(tokens) > 2
        assert set(tokens[1:-1]) <= words
    assert (made["ids"][made["mask"] == 0] == PAD).all()
    assert (made["types"][made["mask"] == 0] == 0).all()
    edge = made["mask"][:, -1 if left else 0]
    assert (edge == 1).all()
    assert ((made["mask"].diff(dim=1) != 0).sum(1) <= 1).all()
    assert made["types"].max() == 1
    assert made["types"].dtype == samples["types"].dtype


def test_rows_are_new_and_varied() -> None:
    samples = encoder_rows()
    made = augment(samples, "tokens", 400, 0, originals=False)
    old = {tuple(row) for row in samples["ids"].tolist()}
    new = {tuple(row) for row in made["ids"].tolist()}
    assert len(new) > 300
    assert len(new - old) > 250


def test_padding_is_found_without_a_mask() -> None:
    samples = {"ids": encoder_rows()["ids"]}
    layout = layout_of(samples)
    assert layout.padded
    assert layout.mask is None
    assert not layout.left
    assert (layout.head, layout.tail) == (1, 1)
    made = augment(samples, "tokens", 200, 0)["ids"]
    assert (made[:, 0] == CLS).all()
    for row in made.tolist():
        assert PAD not in row[: row.index(SEP)]
        assert set(row[row.index(SEP) + 1 :]) <= {PAD}


def test_full_rows_of_a_decoder_stay_full() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 60, (30, 16), generator=generator)
    samples = {"ids": ids, "positions": torch.arange(16).expand(30, -1).contiguous()}
    made = augment(samples, "tokens", 200, 0)
    assert set(made["ids"].flatten().tolist()) <= set(ids.flatten().tolist())
    assert torch.equal(made["positions"], torch.arange(16).expand(200, -1)), "positions do not move with their token"


def test_first_token_of_a_decoder_stays() -> None:
    ids = torch.randint(10, 60, (30, 16), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 7
    made = augment({"ids": ids}, "tokens", 200, 0)["ids"]
    assert (made[:, 0] == 7).all()
    assert not (made[:, 1:] == 7).any()


def test_a_row_of_ones_is_a_mask_and_a_row_of_zeros_is_not() -> None:
    ids = torch.randint(10, 60, (5, 6))
    same = {"ids": ids, "types": torch.zeros(5, 6, dtype=torch.long), "mask": torch.ones(5, 6)}
    (group,) = groups(same)
    assert layout_of(group).mask == "mask"
    made = augment(same, "tokens", 30, 0)
    assert (made["types"] == 0).all()
    assert (made["mask"] == 1).all()
    assert made["mask"].dtype == torch.float32


def test_inputs_of_other_lengths_are_groups_of_their_own() -> None:
    source, target = encoder_rows(), torch.randint(3, 99, (40, 5))
    made = augment({**source, "target": target}, "tokens", 60, 0)
    assert made["target"].shape == (60, 5)
    assert made["ids"].shape == (60, 12)


def test_one_sample_and_short_rows() -> None:
    for ids in (torch.tensor([[CLS, 5, SEP]]), torch.tensor([[4]]), torch.tensor([[CLS, SEP, PAD], [CLS, 8, SEP]])):
        made = augment({"ids": ids}, "tokens", 20, 0)["ids"]
        assert made.shape == (20, ids.shape[1])
        assert set(made.flatten().tolist()) <= set(ids.flatten().tolist())


def test_same_seed_same_bits() -> None:
    samples = encoder_rows()
    one, two, other = (augment(samples, "tokens", 100, seed)["ids"] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
