"""The LSTM (Hochreiter & Schmidhuber 1997; paper eqs 28-33): sequences run by torch's own fused kernel.

    (i, f, g, o)_t = W x_t + U h_{t-1} + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g) ,  h_t = sigmoid(o) tanh(c_t)

U is dense, or block-diagonal with one block per head: torch's kernel knows dense ones only, so blocks are placed into
one whose other weights are zero. A single step is the definition, whose products read few rows as linear layers do.

B batch  T time  L steps between two borders  D input width  V hidden width  K hidden width of a head
G the four gates' rows (4 V)  N gates and heads
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.common import length_mask, upcast, without_autocast, zero_padding
from exlstm.ops.linear import linears
from exlstm.ops.linear.headwise import headwise
from exlstm.ops.steps import run_steps
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import tracer


class LSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BV: Tensor
    c_BV: Tensor


def borders(T: int, reset_BT: Tensor | None, lengths_B: Tensor | None) -> list[int]:
    """Times at which some row is reset or ends, with 0 and T: the fused kernel runs from one to the next."""
    times = {0, T}
    if reset_BT is not None:
        times |= set(reset_BT.any(0).nonzero()[:, 0].tolist())
    if lengths_B is not None:
        times |= {min(int(n), T) for n in lengths_B.tolist()}
    return sorted(times)


def dense_recurrence(u_GK: Tensor) -> Tensor:
    """u_GV: the dense matrix of a block-diagonal U, whose blocks [4, heads, K, K] lie below one another in u_GK."""
    G, K = u_GK.shape
    if G == 4 * K:
        return u_GK  # one head
    # the second axis of each gate's blocks, the head, becomes a row and a column of blocks
    return torch.diag_embed(u_GK.view(4, -1, K, K).permute(0, 2, 3, 1), dim1=1, dim2=3).reshape(G, G // 4)


def recurrent_product(h_BV: Tensor, u_GK: Tensor) -> Tensor:
    """U h in the dtype of h, for a dense or block-diagonal U; see `lstm`."""
    G, K = u_GK.shape
    if G == 4 * K:
        return linears(h_BV, [(u_GK, None, h_BV.dtype)])[0]
    H = G // 4 // K
    blocks_NKK = u_GK.to(h_BV.dtype).view(4 * H, K, K)
    h_NBK = torch.cat([h_BV.view(-1, H, K).transpose(0, 1)] * 4)
    return headwise(h_NBK, blocks_NKK).transpose(0, 1).reshape(-1, G)


def lstm_step(x_BD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /) -> tuple[Tensor, LSTMState]:
    """One time step: the definition. Computed wide; h_BV is returned as wide."""
    x_BD = upcast(x_BD)
    raw_BG = linears(x_BD, [(w_GD, b_G, x_BD.dtype)])[0] + recurrent_product(state.h_BV, u_GK)
    i_BV, f_BV, g_BV, o_BV = raw_BG.chunk(4, dim=1)
    c_BV = torch.sigmoid(f_BV) * state.c_BV + torch.sigmoid(i_BV) * torch.tanh(g_BV)
    h_BV = torch.sigmoid(o_BV) * torch.tanh(c_BV)
    return h_BV, LSTMState(h_BV, c_BV)


def lstm_recurrent(
    x_BTD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:  # fmt: skip
    """The definition, one step after another, in plain torch."""
    valid_BT = None if lengths_B is None else length_mask(lengths_B, x_BTD.shape[1])
    return run_steps(
        lambda x_BD, before: lstm_step(x_BD, w_GD, u_GK, b_G, before),
        [x_BTD],
        state,
        reset_BT=reset_BT,
        valid_BT=valid_BT,
    )


def lstm_fused(
    x_BTD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:  # fmt: skip
    """The same numbers by torch's kernel, which runs from border to border."""
    u_GV = dense_recurrence(u_GK)
    x_wide_BTD, parts = upcast(x_BTD), [upcast(w_GD), upcast(u_GV), upcast(b_G), torch.zeros_like(upcast(b_G))]
    times, h = borders(x_BTD.shape[1], reset_BT, lengths_B), []
    for start, end in pairwise(times):
        h_BV, c_BV = state
        if reset_BT is not None:
            new_B1 = reset_BT[:, start, None]
            h_BV, c_BV = h_BV.masked_fill(new_B1, 0), c_BV.masked_fill(new_B1, 0)
        h_BLV, h_1BV, c_1BV = torch.lstm(
            x_wide_BTD[:, start:end], (h_BV[None], c_BV[None]), parts, True, 1, 0.0, False, False, True
        )
        after = LSTMState(h_1BV[0], c_1BV[0])
        if lengths_B is not None:
            runs_B1 = (start < lengths_B)[:, None]
            after = LSTMState(*(torch.where(runs_B1, new, old) for new, old in zip(after, state, strict=True)))
            h_BLV = h_BLV.masked_fill(~runs_B1[..., None], 0)
        state = after
        h.append(h_BLV)
    return torch.cat(h, dim=1), state


def lstm(
    x_BTD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, backend: str = "auto",
) -> tuple[Tensor, LSTMState]:  # fmt: skip
    """A sequence through the cell, computed wide; any T >= 1. reset_BT clears a row's state before that step.

    x: [B, T, D]. w: [4 V, D] and b: [4 V], rows in the order of the gates i, f, g, o. u: [4 V, V], or the blocks of a
    block-diagonal one below one another, [4 V, K] in the order (gate, head, unit).
    lengths_B: steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    backend: "auto", "fused" (torch's kernel) or "recurrent" (the definition; for a single step "auto" takes it).

    Returns h [B, T, V] in x's dtype and the state after the last step. ValueError for what does not fit x and
    for a backend that cannot run.
    """
    B, T, _ = x_BTD.shape
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    state = checked_state(state, LSTMState, 2 * [(B, len(b_G) // 4)], x_BTD)
    if lengths_B is not None:
        x_BTD = zero_padding(x_BTD, length_mask(lengths_B, T))
    obstacle = None
    if backend == "auto" and T == 1:
        obstacle = "a single step needs no kernel"
    elif (reset_BT is not None or lengths_B is not None) and tracer() is not None:
        obstacle = "it stops where a row is reset or ends, and torch traces this call, without these numbers"
    tensors = x_BTD, w_GD, u_GK, b_G, *state
    run = lstm_recurrent
    if choose("lstm", backend, [("fused", obstacle), ("recurrent", None)], tensors) == "fused":
        run = lstm_fused
    with without_autocast(x_BTD):
        h_BTV, state = run(x_BTD, w_GD, u_GK, b_G, state, reset_BT=reset_BT, lengths_B=lengths_B)
    return h_BTV.to(x_BTD.dtype), state
