"""The Elman net, the plain recurrent net, as a mixer (Elman 1990, doi:10.1207/s15516709cog1402_1).

    h_t = tanh(W x_t + U h_{t-1} + b) ,  y = h

U starts as an orthogonal matrix times 0.9: what was seen fades slowly, and small differences do not grow.

B batch  T time  D model width (that of the hidden state too)  V width of a head
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.ops.elman import ElmanState, elman


@dataclass(frozen=True, kw_only=True)
class ElmanConfig:
    """One Elman layer at the model width.

    heads: blocks of the block-diagonal recurrent weights; 1: dense. radius: of the eigenvalues that U starts with.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=1.3)

    heads: Size = 1
    radius: Positive = 0.9

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return Elman(width, self)


class Elman(FixedStateMixer):
    """Elman net as a mixer: see `mixers.contract`, and `ElmanConfig` for its options."""

    def __init__(self, width: int, config: ElmanConfig) -> None:
        super().__init__()
        check_width(width, config.heads)
        H = config.heads
        self.config, self.width, self.backend = config, width, "auto"
        self.w_DD = nn.Parameter(torch.empty(width, width))
        # rows (head, unit); columns are those of the row's own head, all others are zero
        self.u_DV = nn.Parameter(torch.empty(width, width // H))
        self.b_D = nn.Parameter(torch.empty(width))
        orthogonal = init.orthogonal(config.radius)
        init.fill(
            self,
            {
                "w_DD": init.uniform(width**-0.5),  # as torch's RNN
                "u_DV": lambda u_DV: orthogonal(u_DV.view(H, -1, u_DV.shape[1])),
                "b_D": init.uniform(width**-0.5),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: ElmanState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, ElmanState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        rows = {"reset_BT": reset_BT, "lengths_B": lengths_B}
        y_BTD, state = elman(x_BTD, self.w_DD, self.u_DV, self.b_D, state, **rows, backend=self.backend)
        return mask_tail(y_BTD, lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> ElmanState:
        """State before the first step, on the device of the weights or on another."""
        return ElmanState(wide_zeros(self.b_D, device)(batch, self.width))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of 5 pointwise operations per channel, and the zeros of U, which torch's kernel multiplies too."""
        zeros = self.width - self.u_DV.shape[1] if mode == "prefill" else 0
        return 5.0 * self.width + 2.0 * self.width * zeros
