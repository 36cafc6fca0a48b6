"""Linformer in a causal form: softmax over slots that learned vectors write (Wang et al. 2020, arXiv:2006.04768).

    q, k, v = W x           e_t, f_t: learned for the position t of a sequence, shared by all heads
    K~_t = K~_{t-1} + k_t e_t^T ,  V~_t = V~_{t-1} + f_t v_t^T                      Q slots per head
    o_t = V~_t^T softmax(K~_t^T q_t / sqrt K)        y = W_o o

The published model projects over time, K~ = K E with all N steps in each slot: every step would see those after it, and
a state could not end at a step. Here the sum ends at the present one, as ABC reads it (Peng et al. 2021,
arXiv:2110.02488); after N steps the slots are the published ones. Slots that nothing was written to have the score 0.

There are vectors for `length` positions and no more: a later step is a ValueError. A reset starts from the first again.

B batch  T time  D model width  H heads  K head width  Q slots  N positions
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.bounded_memory import BoundedMemoryState, bounded_memory
from exlstm.ops.position_table import checked_positions, last_position
from exlstm.ops.positions import PositionState
from exlstm.runtime.capture import refuse
from exlstm.runtime.tracing import tracer


class LinformerState(NamedTuple):
    """State of the layer: the position of the next step, and the slots."""

    next: PositionState
    cell: BoundedMemoryState


@dataclass(frozen=True, kw_only=True)
class LinformerConfig:
    """Causal Linformer. slots: of each head. length: steps that a sequence can have."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=4.0, gated=False, bias=True)

    heads: Size = 4
    slots: Size = 64
    length: Size = 2048
    bias: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return Linformer(width, self, depth)


class Linformer(FixedStateMixer):
    """Causal Linformer as a mixer: see `mixers.contract`, and `LinformerConfig` for its options."""

    def __init__(self, width: int, config: LinformerConfig, depth: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.backend = config, width, "auto"
        self.q, self.k, self.v, self.out = (Linear(width, width, bias=config.bias) for _ in range(4))
        self.e_NQ, self.f_NQ = (nn.Parameter(torch.empty(config.length, config.slots)) for _ in range(2))
        table = dict.fromkeys(("q.weight", "k.weight", "v.weight"), init.small(width))
        table |= dict.fromkeys(("e_NQ", "f_NQ"), init.uniform(config.slots**-0.5))
        biases = ("q.bias", "k.bias", "v.bias", "out.bias") if config.bias else ()
        init.fill(self, {**table, "out.weight": init.wang(width, depth), **dict.fromkeys(biases, init.zeros)})

    def forward(
        self,
        x_BTD: Tensor,
        state: LinformerState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LinformerState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`.

        Raises ValueError for a step beyond `length` since the beginning of a row.
        """
        refuse("its write vectors come to an end, which a replay would not notice")
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        before = self.zero_state(x_BTD.shape[0]) if state is None else state
        H, rows = self.config.heads, {"reset_BT": reset_BT, "lengths_B": lengths_B}
        position_BT, after = checked_positions(x_BTD, before.next, **rows)
        if state is not None or x_BTD.shape[1] > self.config.length:
            self.check(x_BTD, before.next, reset_BT, lengths_B)
        e_BTHQ, f_BTHQ = (embedding(position_BT, t)[:, :, None].expand(-1, -1, H, -1) for t in (self.e_NQ, self.f_NQ))
        q_BTHK, k_BTHK, v_BTHK = (torch.unflatten(x, -1, (H, -1)) for x in linears(x_BTD, (self.q, self.k, self.v)))
        o_BTHK, cell = bounded_memory(
            q_BTHK * q_BTHK.shape[-1] ** -0.5,
            k_BTHK,
            v_BTHK,
            None,
            before.cell,
            write_BTHQ=e_BTHQ,
            value_write_BTHQ=f_BTHQ,
            backend=self.backend,
            **rows,
        )
        return mask_tail(self.out(o_BTHK.flatten(2)), lengths_B), LinformerState(after, cell)

    def check(self, x_BTD: Tensor, state: PositionState, reset_BT: Tensor | None, lengths_B: Tensor | None) -> None:
        """ValueError for a step beyond the last write vector. It waits for a GPU, and reads no values of a tracer."""
        if x_BTD.is_meta or tracer() is not None:
            return
        if (last := last_position(state.next_B, x_BTD.shape[1], reset_BT, lengths_B)) >= self.config.length:
            raise ValueError(
                f"a row has {last + 1:,} steps since its beginning, and write vectors end at "
                f"length={self.config.length}; cut sequences to that length, or reset at the beginning of each."
            )

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> LinformerState:
        """State before the first step, on the device of the weights or on another."""
        H, Q, K = self.config.heads, self.config.slots, self.width // self.config.heads
        zeros = wide_zeros(self.e_NQ, device)
        position_B = torch.zeros(batch, dtype=torch.int64, device=device or self.e_NQ.device)
        slots = BoundedMemoryState(zeros(batch, H, K, Q), zeros(batch, H, Q, K))
        return LinformerState(PositionState(position_B), slots)

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of a write and a read of keys and values of all slots, and of softmax over them."""
        return self.config.slots * (8.0 * self.width + 3.0 * self.config.heads)
