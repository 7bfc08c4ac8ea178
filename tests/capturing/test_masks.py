"""Masks that torch's own layers would read to see whether they are causal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

from fxmerge import capture


class Language(nn.Module):
    """A stack of torch's layers, and a mask that is made or kept."""

    def __init__(self, *, kept: bool) -> None:
        super().__init__()
        self.kept, self.table, self.head = kept, nn.Embedding(9, 8), nn.Linear(8, 9)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

    def forward(self, ids: Tensor) -> Tensor:
        mask = self.mask if self.kept else nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        found: Tensor = self.head(self.body(self.table(ids), mask=mask))
        return found


@pytest.mark.parametrize("kept", [True, False])
def test_layers_of_torch_with_a_mask_are_traced(kept: bool) -> None:
    torch.manual_seed(0)
    before = transformer._detect_is_causal_mask
    model, ids = Language(kept=kept).eval(), torch.randint(9, (4, 5))
    program = capture(model, (ids,))
    torch.testing.assert_close(program(ids), model(ids))
    changed = torch.cat((ids[:, :4], (ids[:, 4:] + 1) % 9), 1)
    torch.testing.assert_close(program(changed)[:, :4], program(ids)[:, :4])
    assert transformer._detect_is_causal_mask is before
