"""The LSTM (Hochreiter & Schmidhuber 1997; paper eqs 28-33), run by torch's own fused kernel.

    (i, f, g, o)_t = W x_t + U h_{t-1} + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g) ,  h_t = sigmoid(o) tanh(c_t)

U is dense, or block-diagonal with one block per head: torch's kernel knows dense ones only, so blocks are placed into
one, in which the rest is zero.

B batch  T time  L steps between two cuts  D input width  V hidden width  K hidden width of a head
G the four gates' rows (4 V)
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.shared import blank, exactly, inside, wide


class LSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BV: Tensor
    c_BV: Tensor


def cuts(T: int, reset_BT: Tensor | None, lengths_B: Tensor | None) -> list[int]:
    """Times at which some row is reset or ends, with 0 and T: between them the fused kernel may run freely."""
    times = {0, T}
    if reset_BT is not None:
        times |= set(reset_BT.any(0).nonzero()[:, 0].tolist())
    if lengths_B is not None:
        times |= {min(int(n), T) for n in lengths_B.tolist()}
    return sorted(times)


def placed_in_blocks(u_GK: Tensor) -> Tensor:
    """u_GV: the dense matrix of a block-diagonal U, whose blocks [4, heads, K, K] lie below one another in u_GK."""
    G, K = u_GK.shape
    if G == 4 * K:
        return u_GK  # one head
    # the second axis of each gate's blocks, the head, becomes a row and a column of blocks
    return torch.diag_embed(u_GK.view(4, -1, K, K).permute(0, 2, 3, 1), dim1=1, dim2=3).reshape(G, G // 4)


def lstm(
    x_BTD: Tensor, w_GD: Tensor, u_GV: Tensor, b_G: Tensor, state: LSTMState, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:  # fmt: skip
    """A sequence through the cell, computed wide; any T >= 1. reset_BT clears a row's state before that step.

    lengths_B: steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    Raises ValueError for a state, reset_BT or lengths_B that does not fit x.
    """
    B, T, _ = x_BTD.shape
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    state = checked_state(state, LSTMState, 2 * [(B, u_GV.shape[1])], x_BTD)
    if lengths_B is not None:
        x_BTD = blank(x_BTD, inside(lengths_B, T))
    x_wide_BTD, parts = wide(x_BTD), [wide(w_GD), wide(u_GV), wide(b_G), torch.zeros_like(wide(b_G))]
    times, h = cuts(T, reset_BT, lengths_B), []
    for start, end in pairwise(times):
        h_BV, c_BV = state
        if reset_BT is not None:
            new_B1 = reset_BT[:, start, None]
            h_BV, c_BV = h_BV.masked_fill(new_B1, 0), c_BV.masked_fill(new_B1, 0)
        with exactly(x_BTD):
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
    return torch.cat(h, dim=1).to(x_BTD.dtype), state
