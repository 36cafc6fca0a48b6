"""Attention of one head with learned biases of distances, within chunks or over all steps: the definition.

    w_ts = f(q_t k_s, n_t) of the steps s that t sees: itself and those before it in its chunk, n_t of them
    softmax    w_ts = softmax over s of (q_t k_s / sqrt(K) + bias_{t-s})
    laplace    w_ts = (1 + erf((x_ts - sqrt(1/2)) / (sqrt(1/(4 pi)) sqrt(2)))) / 2 ,  x_ts = q_t k_s / n_t + bias_{t-s}
    o_t = sum_s w_ts v_s

Chunks are counted from a row's beginning, or from its last reset (Ma et al. 2022, arXiv:2209.10655).

B batch  T time  S cached steps  N blocks  L queries of a block  I its keys  K key width  V value width
R distances with a bias
"""

from math import pi, sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.common import broadcast_mask, upcast
from exlstm.ops.steps import run_steps

AttentionFunction = Literal["softmax", "laplace"]
MEAN, DEVIATION = sqrt(0.5), sqrt(0.25 / pi)  # where laplace has the value and the slope of relu^2 at sqrt(1/2)


class ChunkState(NamedTuple):
    """The cache of keys and values, newest last, float32 or wider: one entry less than a chunk has steps.

    seen_B: how many of its entries each row has seen in its present chunk. Others are not read.
    """

    past_k_BSK: Tensor
    past_v_BSV: Tensor
    seen_B: Tensor


class WholeState(NamedTuple):
    """The cache of keys and values without chunks, newest last, float32 or wider; it grows with every step.

    seen_B: how many of its entries each row has seen since its last reset. Others are not read.
    """

    k_BSK: Tensor
    v_BSV: Tensor
    seen_B: Tensor

    def trimmed(self) -> "WholeState":
        """The state without entries that no row has seen."""
        S = self.k_BSK.shape[1]
        longest = int(self.seen_B.max()) if len(self.seen_B) else 0
        return WholeState(self.k_BSK[:, S - longest :], self.v_BSV[:, S - longest :], self.seen_B)

    def padded(self, size: int) -> "WholeState":
        """The state with unseen entries in front, `size` in all."""
        more = size - self.k_BSK.shape[1]
        return WholeState(pad(self.k_BSK, (0, 0, more, 0)), pad(self.v_BSV, (0, 0, more, 0)), self.seen_B)


def seen_alone(x_BSK: Tensor, seen_B: Tensor) -> Tensor:
    """Cached keys or values with zeros where a row has seen nothing."""
    S = x_BSK.shape[1]
    unseen_BS = torch.arange(S, device=seen_B.device) < S - seen_B[:, None]
    return x_BSK.masked_fill(broadcast_mask(unseen_BS, x_BSK), 0)


def attended(
    q_BNLK: Tensor,
    k_BNIK: Tensor,
    v_BNIV: Tensor,
    bias_R: Tensor,
    position_BNL: Tensor,
    function: AttentionFunction,
) -> Tensor:
    """o_BNLV: the last L of I keys are the queries' own steps; a query sees itself and `position` steps before it."""
    (L, K), I, R = q_BNLK.shape[2:], k_BNIK.shape[2], len(bias_R)  # noqa: E741
    step_I = torch.arange(L - I, L, device=bias_R.device)
    lag_LI = torch.arange(L, device=bias_R.device)[:, None] - step_I
    bias_LI = bias_R[lag_LI.clamp(0, R - 1)]
    hidden_BNLI = (lag_LI < 0) | (lag_LI > position_BNL[..., None])
    x_BNLI = q_BNLK @ k_BNIK.mT
    if function == "softmax":
        x_BNLI = (x_BNLI * K**-0.5 + bias_LI).masked_fill(hidden_BNLI, -torch.inf)
        return torch.softmax(x_BNLI, dim=-1) @ v_BNIV
    x_BNLI = x_BNLI / (position_BNL[..., None] + 1) + bias_LI
    w_BNLI = 0.5 * (1 + torch.erf((x_BNLI - MEAN) / (DEVIATION * sqrt(2))))
    return w_BNLI.masked_fill(hidden_BNLI, 0) @ v_BNIV


def chunk_attention_step(
    q_BK: Tensor,
    k_BK: Tensor,
    v_BV: Tensor,
    bias_R: Tensor,
    state: ChunkState,
    /,
    *,
    chunk: int,
    function: AttentionFunction,
) -> tuple[Tensor, ChunkState]:
    """One time step, computed wide."""
    k_BIK = torch.cat([state.past_k_BSK, upcast(k_BK)[:, None]], dim=1)
    v_BIV = torch.cat([state.past_v_BSV, upcast(v_BV)[:, None]], dim=1)
    position_B11 = state.seen_B[:, None, None]
    o_B11V = attended(
        upcast(q_BK)[:, None, None], k_BIK[:, None], v_BIV[:, None], upcast(bias_R), position_B11, function
    )
    seen_B = (state.seen_B + 1) % chunk
    after = ChunkState(seen_alone(k_BIK[:, 1:], seen_B), seen_alone(v_BIV[:, 1:], seen_B), seen_B)
    return o_B11V[:, 0, 0], after


def chunk_attention_recurrent(
    q_BTK: Tensor,
    k_BTK: Tensor,
    v_BTV: Tensor,
    bias_R: Tensor,
    state: ChunkState,
    /,
    *,
    chunk: int,
    function: AttentionFunction,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, ChunkState]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    return run_steps(
        lambda q_BK, k_BK, v_BV, before: chunk_attention_step(
            q_BK, k_BK, v_BV, bias_R, before, chunk=chunk, function=function
        ),
        [q_BTK, k_BTK, v_BTV],
        state,
        reset_BT=reset_BT,
        valid_BT=valid_BT,
    )
