"""Definitions of recurrences: one time step after another.

B batch  T time
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from exlstm.ops.common import broadcast_mask

State = TypeVar("State", bound=tuple[Tensor, ...])


def run_steps(
    step: Callable[..., tuple[Tensor, State]],
    inputs: Sequence[Tensor],
    state: State,
    *,
    reset_BT: Tensor | None = None,
    valid_BT: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Outputs [B, T, ...] of `step(*inputs at t, state) -> (output, state)`, and the state after the last step.

    inputs: [B, T, ...] each. state: a NamedTuple, batch first. reset_BT clears a row's state before that step.
    Where valid_BT is False the state stays and the output is 0. Both select, for a product with 0 would not end NaN.
    """
    outputs = []
    for t in range(inputs[0].shape[1]):
        before = state if reset_BT is None else cleared(state, reset_BT[:, t])
        output, after = step(*(x[:, t] for x in inputs), before)
        if valid_BT is not None:
            output = output.masked_fill(~broadcast_mask(valid_BT[:, t], output), 0)
            after = selected(valid_BT[:, t], after, state)
        state = after
        outputs.append(output[:, None])
    return torch.cat(outputs, dim=1), state


def cleared(state: State, reset_B: Tensor) -> State:
    """The state with zeros in the rows that are reset."""
    return rebuilt(state, [x.masked_fill(broadcast_mask(reset_B, x), 0) for x in state])


def selected(valid_B: Tensor, new: State, old: State) -> State:
    """Rows of the new state where valid_B, else of the old one."""
    return rebuilt(new, [torch.where(broadcast_mask(valid_B, x), x, y) for x, y in zip(new, old, strict=True)])


def rebuilt(like: State, parts: Sequence[Tensor]) -> State:
    """A state of the same NamedTuple."""
    kind: Any = type(like)
    made: State = kind(*parts)
    return made
