"""Causal softmax attention in torch, and the caches that are its states.

B batch  T time  S cached steps  H query heads  G key and value heads  K head width  A all keys (S + T)
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from exlstm.ops.common import length_mask, zero_padding
from exlstm.ops.positions import positions
from exlstm.ops.rope import rope
from exlstm.runtime.tracing import TRANSFORMED, tracer


class AttentionState(NamedTuple):
    """The cache of keys and values, batch first. Keys are stored rotated; both keep the dtype that they came in.

    position_BS is -1 for an entry that is masked: padding, or from before a reset.
    """

    k_BSGK: Tensor
    v_BSGK: Tensor
    position_BS: Tensor
    next_B: Tensor

    def trimmed(self) -> "AttentionState":
        """The state without cached steps that are masked in every row."""
        seen_S = (self.position_BS >= 0).any(dim=0)
        return AttentionState(self.k_BSGK[:, seen_S], self.v_BSGK[:, seen_S], self.position_BS[:, seen_S], self.next_B)

    def with_room(self, size: int) -> "WindowState":
        """The state with room for `size` steps in all, which must be those of the longest row at least."""
        return newest(self, size, ragged=True)

    def padded(self, size: int) -> "AttentionState":
        """The state with masked steps in front, `size` in all."""
        more = size - self.position_BS.shape[1]
        k_BSGK, v_BSGK = (pad(x, (0, 0, 0, 0, more, 0)) for x in (self.k_BSGK, self.v_BSGK))
        return AttentionState(k_BSGK, v_BSGK, pad(self.position_BS, (more, 0), value=-1), self.next_B)


class WindowState(NamedTuple):
    """The cache of attention with a window: its newest window - 1 steps, newest last, batch first, at any length.

    Keys are stored rotated; both keep the dtype that they came in. next_B: the position of a row's next step, and so
    the number of entries that it has seen if they are that many. Others are not read.
    """

    k_BSGK: Tensor
    v_BSGK: Tensor
    next_B: Tensor

    def entries(self) -> AttentionState:
        """The same cache with a position for every entry, and zeros in those that are masked."""
        S = self.k_BSGK.shape[1]
        position_BS = self.next_B[:, None] + torch.arange(-S, 0, device=self.next_B.device)
        k_BSGK, v_BSGK = (zero_padding(x, position_BS >= 0) for x in self[:2])
        return AttentionState(k_BSGK, v_BSGK, position_BS.clamp(min=-1), self.next_B)

    def without_room(self) -> AttentionState:
        """The cache of the steps that were read, as attention without a window has it."""
        return self.entries().trimmed()


def attention_torch(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    old: AttentionState,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    window: int | None,
    rope_base: float | None,
    rope_share: float,
) -> tuple[Tensor, AttentionState]:
    """The numbers of `attention`, and the cache of all steps, those that the window has passed among them."""
    T, S = q_BTHK.shape[1], old.position_BS.shape[1]
    valid_BT = None if lengths_B is None else length_mask(lengths_B, T)
    if valid_BT is not None:
        q_BTHK, k_BTGK, v_BTGK = (zero_padding(x, valid_BT) for x in (q_BTHK, k_BTGK, v_BTGK))
    position_BT, segment_BT = positions(old.next_B, T, reset_BT)
    if rope_base is not None:
        q_BTHK = rope(q_BTHK, position_BT, base=rope_base, share=rope_share)
        k_BTGK = rope(k_BTGK, position_BT, base=rope_base, share=rope_share)
    stored_BT = position_BT if valid_BT is None else position_BT.masked_fill(~valid_BT, -1)
    k_BAGK, v_BAGK = torch.cat([old.k_BSGK, k_BTGK], dim=1), torch.cat([old.v_BSGK, v_BTGK], dim=1)
    position_BA = torch.cat([old.position_BS, stored_BT], dim=1)
    segment_BA = pad(segment_BT, (S, 0))
    q_BHTK, k_BGAK, v_BGAK = (x.transpose(1, 2) for x in (q_BTHK, k_BAGK, v_BAGK))
    seen_B1TA = None
    if S or reset_BT is not None or valid_BT is not None or (window is not None and window < T):
        seen_B1TA = visible(position_BT, segment_BT, position_BA, segment_BA, window)[:, None]
    h_BTHK = attend(q_BHTK, k_BGAK, v_BGAK, seen_B1TA).transpose(1, 2)
    if valid_BT is not None:
        h_BTHK = zero_padding(h_BTHK, valid_BT)
    left_BA, next_B = retained(position_BA, segment_BA, position_BT, lengths_B, old.next_B)
    return h_BTHK, AttentionState(k_BAGK, v_BAGK, left_BA, next_B)


def attend(q_BHTK: Tensor, k_BGAK: Tensor, v_BGAK: Tensor, seen_B1TA: Tensor | None) -> Tensor:
    """torch's attention over the keys of a mask; None: causal attention."""
    run = partial(
        scaled_dot_product_attention, q_BHTK, k_BGAK, v_BGAK,
        attn_mask=seen_B1TA, is_causal=seen_B1TA is None, enable_gqa=True,
    )  # fmt: skip
    if tracer() is not TRANSFORMED:
        return run()
    # the fused forms have first derivatives in reverse mode only
    with sdpa_kernel(SDPBackend.MATH):
        return run()


def visible(
    position_BT: Tensor, segment_BT: Tensor, position_BA: Tensor, segment_BA: Tensor, window: int | None
) -> Tensor:
    """seen_BTA: same segment, stored, not later, not too old. A step always sees itself, so that no row is empty."""
    T, A = position_BT.shape[1], position_BA.shape[1]
    itself_TA = torch.ones(T, A, dtype=torch.bool, device=position_BT.device).triu(A - T).tril(A - T)
    causal_TA = torch.ones(T, A, dtype=torch.bool, device=position_BT.device).tril(A - T)
    seen_BTA = causal_TA & (segment_BT[:, :, None] == segment_BA[:, None]) & (position_BA >= 0)[:, None]
    if window is not None:
        seen_BTA &= position_BT[:, :, None] - position_BA[:, None] < window
    return seen_BTA | itself_TA


def retained(
    position_BA: Tensor, segment_BA: Tensor, position_BT: Tensor, lengths_B: Tensor | None, next_B: Tensor
) -> tuple[Tensor, Tensor]:
    """(position_BA, next_B) after the sequence: entries that are not of a row's last segment are masked."""
    (B, T), A = position_BT.shape, position_BA.shape[1]
    ends_B = torch.full((B,), T, device=next_B.device) if lengths_B is None else lengths_B
    last_B1 = (ends_B - 1).clamp(min=0)[:, None]
    grown_B = torch.where(ends_B > 0, position_BT.gather(1, last_B1)[:, 0] + 1, next_B)
    segment_B1 = segment_BA.gather(1, last_B1 + A - T)
    retained_BA = (segment_BA == segment_B1) | (ends_B == 0)[:, None]
    return position_BA.masked_fill(~retained_BA, -1), grown_B


def newest(cache: AttentionState, size: int, *, ragged: bool) -> WindowState:
    """The newest `size` entries of every row. ragged: masked entries may lie behind others, as padding does."""
    cache = cache.padded(max(size, cache.position_BS.shape[1]))
    k_BAGK, v_BAGK, position_BA, next_B = cache
    first = position_BA.shape[1] - size
    if not ragged:
        k_BSGK, v_BSGK, position_BS = k_BAGK[:, first:], v_BAGK[:, first:], position_BA[:, first:]
    else:
        order_BS = (position_BA >= 0).int().argsort(dim=1, stable=True)[:, first:]
        spread = order_BS[..., None, None].expand(-1, -1, *k_BAGK.shape[2:])
        k_BSGK, v_BSGK = k_BAGK.gather(1, spread), v_BAGK.gather(1, spread)
        position_BS = position_BA.gather(1, order_BS)
    seen_BS = position_BS >= 0
    return WindowState(zero_padding(k_BSGK, seen_BS), zero_padding(v_BSGK, seen_BS), next_B)
