"""The associative LSTM as a mixer (Danihelka et al. 2016, arXiv:1602.03032, section 5).

    (i, f, o, u, a, b)_t = W x_t + R h_{t-1} + bias
    c_t^s = sigmoid(f) c_{t-1}^s + (P_s bound(a)) (sigmoid(i) bound(u))       for every copy s
    h_t = sigmoid(o) bound(mean over s of (P_s bound(b)) c_t^s) ,  y = h
    bound(z) = z / max(1, |z|)

u, a, b, c and h are complex vectors of half the width, real parts first. The permutations P_s are the same for models
of the same width, whatever the seed.

B batch  T time  D model width (2 N)  N, M complex units  P their planes, real and imaginary  C copies
G planes of the pre-activations: i, f, o, and u, a, b in two each
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Finite, Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.assoc_lstm import PLANES, AssocLSTMState, assoc_lstm


@dataclass(frozen=True, kw_only=True)
class AssocLSTMConfig:
    """One associative LSTM layer at the model width, which is even.

    copies: of the memory, each with the units of its keys in another order; the error of reading falls with their
    square root. forget_bias: initial bias of the forget gate; "power_law" is that of the sLSTM (5 to -7, by depth).
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=1.3)

    copies: Size = 4
    forget_bias: Finite | Literal["power_law"] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError for an odd width."""
        return AssocLSTM(width, self, depth, index)


class AssocLSTM(FixedStateMixer):
    """Associative LSTM as a mixer: see `mixers.contract`, and `AssocLSTMConfig` for its options."""

    order_CN: Tensor

    def __init__(self, width: int, config: AssocLSTMConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width)
        if width % 2:
            raise ValueError(f"width is {width}; it must be even, for half of the units are imaginary parts.")
        N, bound = width // 2, width**-0.5
        self.config, self.width, self.backend = config, width, "auto"
        self.x, self.r_GNPM = Linear(width, PLANES * N, bias=True), nn.Parameter(torch.empty(PLANES, N, 2, N))
        self.register_buffer("order_CN", permutations(config.copies, N), persistent=False)
        power_law = config.forget_bias == "power_law"
        forget = init.power_law(index, depth) if power_law else init.constant(float(config.forget_bias))
        init.fill(
            self,
            {
                "r_GNPM": init.uniform(bound),
                "x.weight": init.uniform(bound),
                "x.bias": lambda b_M: (b_M.zero_(), forget(b_M[N : 2 * N])),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: AssocLSTMState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, AssocLSTMState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        (x_BTM,) = linears(x_BTD, (), wide=(self.x,))
        h_BTPN, state = assoc_lstm(
            x_BTM.view(*x_BTD.shape[:2], PLANES, self.width // 2),
            self.r_GNPM,
            self.order_CN,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        return mask_tail(h_BTPN.flatten(2).to(x_BTD.dtype), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> AssocLSTMState:
        """State before the first step, on the device of the weights or on another."""
        zeros, (C, N) = wide_zeros(self.r_GNPM, device), self.order_CN.shape
        return AssocLSTMState(zeros(batch, 2, N), zeros(batch, C, 2, N))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 35 operations per complex unit, and of 16 per copy of it."""
        return (35.0 + 16.0 * self.config.copies) * self.width / 2


def permutations(copies: int, units: int) -> Tensor:
    """order_CN: a permutation of the units for every copy, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    lots_CN = torch.rand(copies, units, generator=generator, dtype=torch.float64, device="cpu")
    return lots_CN.argsort(dim=1)
