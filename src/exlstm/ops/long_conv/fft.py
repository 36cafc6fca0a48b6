"""The long convolution by Fourier transforms, with a hand-written backward: for long windows.

A segment is transformed with so many zeros behind it that no output which is wanted wraps around. Rounding of every
step is in every output, so this form is causal to rounding only. Always in float32 or wider.

B batch  T time  S cached steps  A cached and new steps  E channels  R taps
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.long_conv.segments import SegmentRows, segment_rows


def smooth(least: int) -> int:
    """The smallest even number of at least `least` without prime factors above 5: such lengths are transformed fast."""
    n = least + least % 2
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 2


def spectrum(x: Tensor, length: int) -> Tensor:
    """Transforms over time: [segments, W, E] -> [segments, E, frequencies]."""
    transformed: Tensor = torch.fft.rfft(x.mT.contiguous(), n=length)
    return transformed


class FourierConvolution(torch.autograd.Function):
    """(x, taps, number of cached steps) -> y_BTE of the new steps; all wide."""

    @staticmethod
    def forward(ctx: Any, x_BAE: Tensor, taps_RE: Tensor, S: int, reset_BT: Tensor | None) -> Tensor:
        B, A, _ = x_BAE.shape
        segments = segment_rows(B, A, S, reset_BT)
        near, length = plan(segments, len(taps_RE), S)
        x, h = spectrum(segments.spread(x_BAE), length), spectrum(taps_RE[None, :near], length)
        # transforms take most of the time: those of the inputs are saved, twice their memory
        ctx.save_for_backward(x, h, reset_BT)
        ctx.sizes = B, A, len(taps_RE), S
        y_BAE = segments.joined(torch.fft.irfft(x * h, n=length)[..., : segments.width].mT)
        return y_BAE[:, S:].contiguous()

    @staticmethod
    @once_differentiable("long_conv", "fft")
    def backward(ctx: Any, dy_BTE: Tensor) -> tuple[Tensor | None, ...]:
        x, h, reset_BT = ctx.saved_tensors
        B, A, R, S = ctx.sizes
        segments = segment_rows(B, A, S, reset_BT)
        near, length = plan(segments, R, S)
        dy = spectrum(segments.spread(pad(dy_BTE, (0, 0, S, 0))), length)
        dx_BAE = segments.joined(torch.fft.irfft(dy * h.conj(), n=length)[..., : segments.width].mT)
        dtaps = torch.fft.irfft((dy * x.conj()).sum(0), n=length)[:, :near].mT
        return dx_BAE, pad(dtaps, (0, 0, 0, R - near)), None, None


def plan(segments: SegmentRows, taps: int, S: int) -> tuple[int, int]:
    """How many taps may be read, and the length of the transforms."""
    near, past = min(taps, segments.width), S if segments.place_BA is None else 0
    # what wraps around reaches outputs of cached steps at most, which are left out
    return near, smooth(max(segments.width, segments.width + near - 1 - past))


def long_conv_fft(x_BAE: Tensor, taps_RE: Tensor, S: int, reset_BT: Tensor | None) -> Tensor:
    """y_BTE of the new steps. x: S cached and then new steps, wide, zeros where nothing has been seen."""
    y_BTE: Tensor = FourierConvolution.apply(x_BAE, taps_RE, S, reset_BT)  # type: ignore[no-untyped-call]
    return y_BTE
