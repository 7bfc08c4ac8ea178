"""Models in half precision are saved in float32, said, and merge within the tolerance of any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.sources.halves import NOTE

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Casting(nn.Module):
    """Casts what it is given to half precision itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.half())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_said(dtype: torch.dtype, tmp_path: Path) -> None:
    paths = []
    for k in range(2):
        torch.manual_seed(k)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype).eval()
        paths.append(tmp_path / f"{'ab'[k]}.pt")
        fxmerge.save(model, paths[-1], inputs=(X.to(dtype),))
        assert model[0].weight.dtype == dtype, "the user's own model stays as it was"
        program = fxmerge.load(paths[-1])
        assert NOTE in program.notes and {t.dtype for t in program.tensors.values()} == {torch.float32}
        assert program.inputs[0].dtype == torch.float32
    merged = fxmerge.merge(paths, method="average", out=str(tmp_path / "m.onnx"))
    assert NOTE in merged.result["notes"]
    assert merged.result["checks"]["onnx_max_abs"] < 1e-4


def test_a_model_that_casts_itself_is_captured_as_it_is(tmp_path: Path) -> None:
    fxmerge.save(Casting().half().eval(), tmp_path / "a.pt", inputs=(X,))
    assert {t.dtype for t in fxmerge.load(tmp_path / "a.pt").tensors.values()} == {torch.float16}
