"""Associative LSTM, the definition: its memory is complex and holds pairs of keys and values (Danihelka et al. 2016,
arXiv:1602.03032, section 5).

    (i, f, o, u, a, b)_t = x_t + R h_{t-1}                  x_t = W x_t + b is computed outside
    c_t^s = sigmoid(f) c_{t-1}^s + (P_s bound(a)) (sigmoid(i) bound(u))       for every copy s
    h_t = sigmoid(o) bound(mean over s of (P_s bound(b)) c_t^s)
    bound(z) = z / max(1, |z|)

The gates are real; u, the keys a of writing and b of reading, c and h are complex, in two planes. Products are those of
complex numbers, without conjugates. P_s is a fixed permutation of the units: reading by one key, one finds what others
have written as noise, and another noise in each copy.

B batch  T time  N, M complex units  C copies  P planes: real, imaginary
G planes of x: i, f, o, and u, a, b in two each
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.linear import linears
from exlstm.ops.steps import run_steps

PLANES = 9  # of x: three gates, and three complex numbers


class AssocLSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BPN: Tensor
    c_BCPN: Tensor


def bound(z: Tensor, plane: int) -> Tensor:
    """z / max(1, |z|), with a gradient at 0 too. plane: the axis of real and imaginary parts."""
    return z * torch.rsqrt(z.square().sum(plane, keepdim=True).clamp(min=1))


def times(x: Tensor, y: Tensor) -> Tensor:
    """The complex product of [..., P, N]."""
    (a, b), (c, d) = x.unbind(-2), y.unbind(-2)
    return torch.stack([a * c - b * d, a * d + b * c], dim=-2)


def permuted(z_BPN: Tensor, order_CN: Tensor) -> Tensor:
    """The copies [B, C, P, N] of a vector of units, each in its own order."""
    return z_BPN[:, :, order_CN].transpose(1, 2)


def recurrent(h_BPN: Tensor, r_GNPM: Tensor) -> Tensor:
    """R h as [B, G, N], in the dtype of h."""
    raw = linears(h_BPN.flatten(1), [(r_GNPM.flatten(2).flatten(0, 1), None, h_BPN.dtype)])[0]
    return raw.view(h_BPN.shape[0], *r_GNPM.shape[:2])


def assoc_lstm_step(
    x_BGN: Tensor, r_GNPM: Tensor, order_CN: Tensor, state: AssocLSTMState, /
) -> tuple[Tensor, AssocLSTMState]:
    """One time step, computed wide."""
    raw_BGN = upcast(x_BGN) + recurrent(state.h_BPN, r_GNPM)
    i_B1N, f_B1N, o_B1N = torch.sigmoid(raw_BGN[:, :3]).chunk(3, dim=1)
    u_BPN, a_BPN, b_BPN = bound(raw_BGN[:, 3:].reshape(raw_BGN.shape[0], 3, 2, raw_BGN.shape[2]), 2).unbind(1)
    written_B1PN = (i_B1N * u_BPN)[:, None]
    c_BCPN = f_B1N[:, None] * state.c_BCPN + times(permuted(a_BPN, order_CN), written_B1PN)
    h_BPN = o_B1N * bound(times(permuted(b_BPN, order_CN), c_BCPN).mean(1), 1)
    return h_BPN, AssocLSTMState(h_BPN, c_BCPN)


def assoc_lstm_recurrent(
    x_BTGN: Tensor,
    r_GNPM: Tensor,
    order_CN: Tensor,
    state: AssocLSTMState,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, AssocLSTMState]:
    """The definition, one step after another. Where valid_BT is False nothing happens and h = 0."""
    return run_steps(
        lambda x_BGN, before: assoc_lstm_step(x_BGN, r_GNPM, order_CN, before),
        [x_BTGN],
        state,
        reset_BT=reset_BT,
        valid_BT=valid_BT,
    )
