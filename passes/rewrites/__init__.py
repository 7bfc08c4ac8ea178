"""Rewrites that write one thing one way, one file per family; each keeps the function up to rounding."""

from __future__ import annotations

from fxmerge.rewrite import Rewrite
from passes.rewrites.attention import ATTENTION
from passes.rewrites.booleans import BOOLEANS
from passes.rewrites.einsum import EINSUM
from passes.rewrites.layout import LAYOUT
from passes.rewrites.linear import LINEAR
from passes.rewrites.norms import NORMS
from passes.rewrites.pointwise import POINTWISE

REWRITES: tuple[Rewrite, ...] = (
    *LAYOUT,
    *LINEAR,
    *EINSUM,
    *POINTWISE,
    *NORMS,
    *BOOLEANS,
    *ATTENTION,
)
"""Every built-in rewrite; at a call, the first that fits is applied."""
