"""Fourier transforms: linear, and bound to the order of the axes they run over."""

from __future__ import annotations

from fxmerge.coupling import Call, couples


@couples(
    "aten.fft_fft.default", "aten.fft_ifft.default", "aten.fft_rfft.default", "aten.fft_irfft.default", "aten.fft_fftn.default",
    "aten.fft_ifftn.default", "aten.fft_rfftn.default", "aten.fft_irfftn.default", "aten.fft_fft2.default", "aten.fft_ifft2.default",
    "aten.fft_rfft2.default", "aten.fft_irfft2.default", "aten._fft_r2c.default", "aten._fft_c2c.default", "aten._fft_c2r.default",
    "aten.fft_hfft.default", "aten.fft_ihfft.default", "aten.fft_fftshift.default", "aten.fft_ifftshift.default",
)  # fmt: skip
def transform(call: Call) -> tuple[str, str]:
    rank = call.rank("self")
    given = call["dim"]
    dims = {d % rank for d in ([given] if isinstance(given, int) else given or range(rank))}
    left = " ".join("_" if i in dims else f"x{i}" for i in range(rank))
    return f"{left} -> {left}", "self"
