"""Causal softmax attention, by default with rotary positions and over all steps. Its state, the cache, grows with time.

B batch  T time  S cached steps  H query heads  G key and value heads  K head width  A all keys (S + T)
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from exlstm.ops.arguments import checked_rows, exact_in, misfit
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

    def padded(self, size: int) -> "AttentionState":
        """The state with masked steps in front, `size` in all."""
        more = size - self.position_BS.shape[1]
        k_BSGK, v_BSGK = (pad(x, (0, 0, 0, 0, more, 0)) for x in (self.k_BSGK, self.v_BSGK))
        return AttentionState(k_BSGK, v_BSGK, pad(self.position_BS, (more, 0), value=-1), self.next_B)


def zero_state(k_BTGK: Tensor, /) -> AttentionState:
    """The empty cache, for keys like these."""
    B = k_BTGK.shape[0]
    return AttentionState(
        k_BTGK[:, :0], k_BTGK[:, :0], k_BTGK.new_zeros(B, 0, dtype=torch.long), k_BTGK.new_zeros(B, dtype=torch.long)
    )


def checked_cache(state: AttentionState, k_BTGK: Tensor) -> AttentionState:
    """The state, checked against keys like these. ValueError for another shape or device, or for wider numbers.

    Under autocast the cache may be wider: autocast rounds it before the product.
    """
    if not isinstance(state, AttentionState):
        raise ValueError(f"the state is a {type(state).__name__}; it must be the AttentionState of an earlier call.")
    (B, _, G, K), S, dtype, device = k_BTGK.shape, state.k_BSGK.shape[1], k_BTGK.dtype, k_BTGK.device
    rounded = torch.is_autocast_enabled(device.type)
    for name, x, shape in zip(type(state)._fields, state, ((B, S, G, K), (B, S, G, K), (B, S), (B,)), strict=True):
        number = dtype if len(shape) == 4 else torch.int64
        if (
            x.shape != shape
            or x.device != device
            or not (exact_in(x.dtype, number) or (rounded and x.is_floating_point() and len(shape) == 4))
        ):
            raise misfit(f"{name} of the state", x, number, shape, device)
    return state


def attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, state: AttentionState | None = None, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, window: int | None = None,
    rope_base: float | None = 10_000.0, rope_share: float = 1.0,
) -> tuple[Tensor, AttentionState]:  # fmt: skip
    """Every step sees itself and the steps before it in its row (the last `window` of them, itself included).

    q: [B, T, H, K]; k, v: [B, T, G, K], H a multiple of G. reset_BT: what came before that step is forgotten, and
    positions restart. lengths_B: steps at or beyond a row's length are seen by none, and give h = 0, whatever is there.
    rope_base, rope_share: base and share of `rope`; a base of None rotates nothing.
    Returns h [B, T, H, K] and the state, whose size grows with T, up to `window` entries.
    Raises ValueError for a state, reset_BT or lengths_B that does not fit q, k and v.
    """
    B, T, H, _ = q_BTHK.shape
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    plain = state is None and reset_BT is None and lengths_B is None
    old = zero_state(k_BTGK) if state is None else checked_cache(state, k_BTGK)
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
    segment_BA = pad(segment_BT, (old.position_BS.shape[1], 0))
    q_BHTK, k_BGAK, v_BGAK = (x.transpose(1, 2) for x in (q_BTHK, k_BAGK, v_BAGK))
    seen_B1TA = None
    if not plain or (window is not None and window < T):
        seen_B1TA = visible(position_BT, segment_BT, position_BA, segment_BA, window)[:, None]
    h_BHTK = attend(q_BHTK, k_BGAK, v_BGAK, seen_B1TA)
    h_BTHK = h_BHTK.transpose(1, 2)
    if valid_BT is not None:
        h_BTHK = zero_padding(h_BTHK, valid_BT)
    return h_BTHK, cache_of(k_BAGK, v_BAGK, position_BA, segment_BA, position_BT, lengths_B, old.next_B, window)


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


def cache_of(k_BAGK: Tensor, v_BAGK: Tensor, position_BA: Tensor, segment_BA: Tensor, position_BT: Tensor,
             lengths_B: Tensor | None, next_B: Tensor, window: int | None) -> AttentionState:  # fmt: skip
    """The state after the sequence: entries of each row's last segment, at most window - 1 of them if there is one."""
    B, T = position_BT.shape
    A = position_BA.shape[1]
    ends_B = torch.full((B,), T, device=next_B.device) if lengths_B is None else lengths_B
    last_B1 = (ends_B - 1).clamp(min=0)[:, None]
    grown_B = torch.where(ends_B > 0, position_BT.gather(1, last_B1)[:, 0] + 1, next_B)
    segment_B1 = segment_BA.gather(1, last_B1 + A - T)
    retained_BA = (segment_BA == segment_B1) | (ends_B == 0)[:, None]
    left_BA = position_BA.masked_fill(~retained_BA, -1)
    size = A if window is None else min(A, window - 1)
    if size < A:
        # entries in use to the end, in order, so that the last `size` columns hold every row's newest
        order_BS = (left_BA >= 0).int().argsort(dim=1, stable=True)[:, A - size :]
        spread = order_BS[..., None, None].expand(-1, -1, *k_BAGK.shape[2:])
        return AttentionState(k_BAGK.gather(1, spread), v_BAGK.gather(1, spread), left_BA.gather(1, order_BS), grown_B)
    return AttentionState(k_BAGK, v_BAGK, left_BA, grown_B)
