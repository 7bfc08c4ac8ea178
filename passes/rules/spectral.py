"""Fourier transforms: linear, and bound to the order of the axes they run over."""

from __future__ import annotations

from fxmerge.coupling import Call, couples
from passes.rules.names import aten


@couples(
    *aten(
        """
        fft_fft.default fft_ifft.default fft_rfft.default fft_irfft.default fft_fftn.default fft_ifftn.default
        fft_rfftn.default fft_irfftn.default fft_fft2.default fft_ifft2.default fft_rfft2.default fft_irfft2.default
        _fft_r2c.default _fft_c2c.default _fft_c2r.default fft_hfft.default fft_ihfft.default fft_fftshift.default
        fft_ifftshift.default
        """
    ),
)
def transform(call: Call) -> tuple[str, str]:
    rank = call.rank("self")
    given = call["dim"]
    dims = {d % rank for d in ([given] if isinstance(given, int) else given or range(rank))}
    left = " ".join("_" if i in dims else f"x{i}" for i in range(rank))
    return f"{left} -> {left}", "self"
