"""What one layer of a recurrent net computes in one direction, as `interface` and `cell` use it.

B batch  T time  D input width  E input width with a projected h  U hidden width  V width of h  S width of c
J rows of all gates
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from exlstm.nn.borders import Borders, last_steps
from exlstm.nn.init import Fill

Weights = Mapping[str, Tensor]
Result = tuple[Tensor, Tensor, Tensor]  # y [B, T, V], h [B, V] and c [B, S] after the last step


class Memory(Protocol):
    """The memory of a layer: a frozen dataclass of its sizes and options."""

    @property
    def state_size(self) -> int:
        """Numbers of a row's memory beside h: the width of c."""

    def shapes(self, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name, in the order in which they are registered."""

    def fills(self, index: int, depth: int) -> dict[str, Fill]:
        """Initial values of all weights that there may be, of layer `index` of `depth`."""

    def run(
        self, weights: Weights, x_BTD: Tensor, h_BV: Tensor, c_BS: Tensor, borders: Borders, backend: str
    ) -> Result:
        """A sequence: outputs in the dtype of x, and h and c after the last step, float32 or wider."""

    def unpack(self, h: Tensor, c: Tensor) -> Any:
        """The parts of a state by name, a NamedTuple; h [..., V] and c [..., S] may have any axes before."""

    def pack(self, parts: Any) -> tuple[Tensor, Tensor]:
        """The inverse of `unpack`."""


class Projected(NamedTuple):
    """A layer whose h is projected before it recurs, as one whose h is not."""

    x_BTE: Tensor
    w_JE: Tensor
    u_JU: Tensor


def with_projection(
    x_BTD: Tensor, w_JD: Tensor, u_JV: Tensor, project_VU: Tensor, h_BV: Tensor, reset_BT: Tensor | None
) -> Projected:
    """U P h instead of U (P h): recurrent weights of a wide h, which need no projection inside the loop.

    The h before the first step has been projected already: it is more inputs of that step.
    """
    if reset_BT is not None:
        h_BV = h_BV.masked_fill(reset_BT[:, :1], 0)
    B, T, _ = x_BTD.shape
    first_BTV = torch.cat([h_BV.to(x_BTD.dtype)[:, None], x_BTD.new_zeros(B, T - 1, h_BV.shape[1])], dim=1)
    return Projected(torch.cat([x_BTD, first_BTV], dim=2), torch.cat([w_JD, u_JV], dim=1), u_JV @ project_VU)


def projected(y_BTU: Tensor, project_VU: Tensor, h_BV: Tensor, borders: Borders) -> tuple[Tensor, Tensor]:
    """Outputs P h of every step, and that of each row's last one."""
    y_BTV = torch.nn.functional.linear(y_BTU, project_VU.to(y_BTU.dtype))
    return y_BTV, last_steps(y_BTV, borders.lengths_B, h_BV)
