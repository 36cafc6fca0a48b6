"""The long convolution, the definition: y_t = sum_l taps_l u_{t-l}, over the R taps of each channel.

B batch  T time  S cached steps  A cached and new steps  E channels  R taps
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps


class LongConvState(NamedTuple):
    """The cache of inputs, batch first and newest last, float32 or wider; at most R - 1 of them.

    seen_B: how many of its entries each row has seen since its last reset. Others count as zero, whatever they hold.
    """

    u_BSE: Tensor
    seen_B: Tensor

    def trimmed(self) -> "LongConvState":
        """The state without entries that no row has seen."""
        longest = int(self.seen_B.max()) if len(self.seen_B) else 0
        return LongConvState(self.u_BSE[:, self.u_BSE.shape[1] - longest :], self.seen_B)

    def padded(self, size: int) -> "LongConvState":
        """The state with unseen entries in front, `size` in all."""
        return LongConvState(pad(self.u_BSE, (0, 0, size - self.u_BSE.shape[1], 0)), self.seen_B)


def seen_alone(state: LongConvState) -> Tensor:
    """u_BSE with zeros where nothing has been seen."""
    S = state.u_BSE.shape[1]
    step_S = torch.arange(S, device=state.seen_B.device)
    return state.u_BSE.masked_fill((step_S < S - state.seen_B[:, None])[..., None], 0)


def cache_size(S: int, T: int, R: int) -> int:
    """Entries of the cache after T steps more."""
    return min(S + T, R - 1)


def long_conv_step(u_BE: Tensor, taps_RE: Tensor, state: LongConvState, /) -> tuple[Tensor, LongConvState]:
    """One time step, computed wide. The cache has R - 1 entries, with zeros where nothing has been seen."""
    window_BRE = torch.cat([state.u_BSE, upcast(u_BE)[:, None]], dim=1)
    return (window_BRE * upcast(taps_RE).flip(0)).sum(1), LongConvState(window_BRE[:, 1:], state.seen_B + 1)


def long_conv_recurrent(
    u_BTE: Tensor, taps_RE: Tensor, state: LongConvState, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, LongConvState]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    (T, S), R = (u_BTE.shape[1], state.u_BSE.shape[1]), len(taps_RE)
    full = LongConvState(pad(seen_alone(state), (0, 0, R - 1 - S, 0)), state.seen_B)
    y_BTE, after = run_steps(
        lambda u_BE, before: long_conv_step(u_BE, taps_RE, before),
        [u_BTE],
        full,
        reset_BT=reset_BT,
        valid_BT=valid_BT,
    )
    size = cache_size(S, T, R)
    return y_BTE, LongConvState(after.u_BSE[:, R - 1 - size :], after.seen_B.clamp(max=size))
