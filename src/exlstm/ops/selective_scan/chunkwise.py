"""The selective scan in spans of time, in plain torch, with its hand-written backward: for any device and dtype.

Within a span all decays exp(dt a) and all states are there at once, [B, S, E, Z], as a diagonal scan of E Z channels
(`ops/scan`). Between spans goes the state alone. Saved for the backward are the inputs and the state before each span;
it computes each span again, the last one first:

    dh_t = c_t dy_t + decay_{t+1} dh_{t+1}         w_t = decay_t h_{t-1} dh_t
    da = sum_t dt_t w_t      ddt = sum_z a w + x sum_z b dh      dx = dt sum_z b dh + skip dy
    db = sum_e dt x dh       dc = sum_e dy h                     dskip = sum_t x dy

B batch  T time  S steps of a span  E channels  Z states of a channel
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.common import zero_padding
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.scan.chunkwise import advance, retreat
from exlstm.ops.selective_scan.reference import SelectiveScanInputs

SPAN = 64  # steps whose states are in memory at once


def spans(T: int) -> Iterator[slice]:
    """The spans of T steps."""
    return (slice(start, min(start + SPAN, T)) for start in range(0, T, SPAN))


def part(span: slice, *ragged: Tensor | None) -> list[Any]:
    """The steps of a span."""
    return [None if x is None else x[:, span] for x in ragged]


def states(
    x_BSE: Tensor, dt_BSE: Tensor, a_EZ: Tensor, b_BSZ: Tensor, h_BEZ: Tensor, first_BS1: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The decays and the states of every step of a span."""
    decay_BSEZ = torch.exp(dt_BSE[..., None] * a_EZ)
    write_BSEZ = (dt_BSE * x_BSE)[..., None] * b_BSZ[:, :, None]
    h = advance(decay_BSEZ.flatten(2), write_BSEZ.flatten(2), h_BEZ.flatten(1), first_BS1)
    return decay_BSEZ, h.view_as(decay_BSEZ)


def over_states(x_BSEZ: Tensor, w_BSZ: Tensor) -> Tensor:
    """sum_z w x, [B, S, E]."""
    return (x_BSEZ @ w_BSZ[..., None])[..., 0]


def over_channels(x_BSEZ: Tensor, w_BSE: Tensor) -> Tensor:
    """sum_e w x, [B, S, Z]."""
    return (w_BSE[:, :, None] @ x_BSEZ)[:, :, 0]


class SelectiveScanInSpans(torch.autograd.Function):
    """(first, those of a `SelectiveScanInputs`) -> (y, h after); all wide."""

    @staticmethod
    def forward(ctx: Any, first_BT1: Tensor | None, *given: Tensor) -> tuple[Tensor, Tensor]:
        x_BTE, dt_BTE, a_EZ, b_BTZ, c_BTZ, skip_E, h_BEZ = given
        outputs, before = [], [h_BEZ]
        for span in spans(x_BTE.shape[1]):
            x_BSE, dt_BSE, b_BSZ, c_BSZ, first_BS1 = part(span, x_BTE, dt_BTE, b_BTZ, c_BTZ, first_BT1)
            _, h_BSEZ = states(x_BSE, dt_BSE, a_EZ, b_BSZ, before[-1], first_BS1)
            outputs.append(over_states(h_BSEZ, c_BSZ) + skip_E * x_BSE)
            before.append(h_BSEZ[:, -1].clone())  # of its own, so that the span's states are freed
        after_BEZ = before.pop()
        ctx.save_for_backward(x_BTE, dt_BTE, a_EZ, b_BTZ, c_BTZ, skip_E, first_BT1, *before)
        return torch.cat(outputs, dim=1), after_BEZ

    @staticmethod
    @once_differentiable("selective_scan", "chunkwise")
    def backward(ctx: Any, dy_BTE: Tensor, dh_BEZ: Tensor) -> tuple[Tensor | None, ...]:
        x_BTE, dt_BTE, a_EZ, b_BTZ, c_BTZ, skip_E, first_BT1, *before = ctx.saved_tensors
        da_EZ, parts = torch.zeros_like(a_EZ), []
        for number, span in reversed(list(enumerate(spans(x_BTE.shape[1])))):
            x_BSE, dt_BSE, b_BSZ, c_BSZ, dy_BSE, first = part(span, x_BTE, dt_BTE, b_BTZ, c_BTZ, dy_BTE, first_BT1)
            decay_BSEZ, h_BSEZ = states(x_BSE, dt_BSE, a_EZ, b_BSZ, before[number], first)
            read_BSEZ = dy_BSE[..., None] * c_BSZ[:, :, None]
            last_BEZ = read_BSEZ[:, -1] + dh_BEZ
            read_BSEZ = torch.cat([read_BSEZ[:, :-1], last_BEZ[:, None]], dim=1)
            dh_BSEZ = retreat(decay_BSEZ.flatten(2), read_BSEZ.flatten(2), first).view_as(decay_BSEZ)
            past_BSEZ, dh_BEZ = torch.cat([before[number][:, None], h_BSEZ[:, :-1]], dim=1), dh_BSEZ[:, 0]
            dh_BEZ = dh_BEZ * decay_BSEZ[:, 0]
            if first is not None:
                past_BSEZ = past_BSEZ.masked_fill(first[..., None], 0)
                dh_BEZ = dh_BEZ.masked_fill(first[:, 0, :, None], 0)
            w_BSEZ, written_BSE = decay_BSEZ * past_BSEZ * dh_BSEZ, over_states(dh_BSEZ, b_BSZ)
            da_EZ = da_EZ + torch.einsum("bse,bsez->ez", dt_BSE, w_BSEZ)
            dx_BSE, ddt_BSE = dt_BSE * written_BSE + skip_E * dy_BSE, (w_BSEZ * a_EZ).sum(-1) + x_BSE * written_BSE
            db_BSZ, dc_BSZ = over_channels(dh_BSEZ, dt_BSE * x_BSE), over_channels(h_BSEZ, dy_BSE)
            parts.append((dx_BSE, ddt_BSE, db_BSZ, dc_BSZ))
        dx_BTE, ddt_BTE, db_BTZ, dc_BTZ = (torch.cat(x, dim=1) for x in zip(*reversed(parts), strict=True))
        return None, dx_BTE, ddt_BTE, da_EZ, db_BTZ, dc_BTZ, (x_BTE * dy_BTE).sum((0, 1)), dh_BEZ


def selective_scan_chunkwise(
    given: SelectiveScanInputs, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `selective_scan_recurrent`."""
    if valid_BT is not None:  # a step of no size changes nothing
        x_BTE, dt_BTE, b_BTZ, c_BTZ = (zero_padding(x, valid_BT) for x in given.steps)
        given = given._replace(x_BTE=x_BTE, dt_BTE=dt_BTE, b_BTZ=b_BTZ, c_BTZ=c_BTZ)
    first_BT1 = None if reset_BT is None else reset_BT[..., None]
    y_BTE, after_BEZ = SelectiveScanInSpans.apply(first_BT1, *given)  # type: ignore[no-untyped-call]
    return y_BTE, after_BEZ
