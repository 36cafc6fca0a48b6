"""What every sequence mixer promises. Training, prefill and decoding are the same call.

    y_BTD, state = mixer(x_BTD, state, reset_BT=..., lengths_B=...)

* causal; any T >= 1; cutting time anywhere and passing the state on changes nothing
* state=None means nothing seen yet; a state is a NamedTuple of tensors (or of such), batch first; it is a value:
  returned, never changed in place
* reset_BT (bool) clears a row's state before that step, all of it: what follows cannot tell what came before
* lengths_B (int): steps at or beyond a row's length change nothing in its state and give y = 0
* the numbers do not depend on the backend that ran, beyond rounding

B batch  T time  D model width
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from exlstm.ops.shared import wide_dtype

State = Any  # a NamedTuple of tensors or of states, batch first


class Mixer(Protocol):
    """The call above, and what it costs."""

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> State:
        """Nothing seen yet, for `batch` rows; on the device of the weights, or on another."""

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state after `length` steps."""

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs per token beyond 2 per weight: "prefill" of `length` tokens (forward), or "decode" at that position."""


class MixerConfig(Protocol):
    """A frozen dataclass of plain values that builds its mixer."""

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer for model width `width`, as block `index` of `depth` (some initial values depend on these)."""


def map_state(fn: Callable[[Tensor], Tensor], state: State) -> State:
    """`fn` applied to every tensor of a state, or of a tuple of states."""
    if isinstance(state, Tensor):
        return fn(state)
    parts = [map_state(fn, x) for x in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def leaves(state: State) -> list[Tensor]:
    """The tensors of a state, in order."""
    return [state] if isinstance(state, Tensor) else [leaf for x in state for leaf in leaves(x)]


def rows(state: State, index: Tensor) -> State:
    """The state of some rows of the batch, in the order of `index`; a row may be taken more than once."""
    return map_state(lambda x: x[index], state)


def join(parts: Sequence[State]) -> State:
    """The states of several groups of rows as one: the inverse of taking rows apart, in order."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    joined = [join(group) for group in zip(*parts, strict=True)]
    return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)


def detach(state: State) -> State:
    """The same values, cut off from the graph: for truncated backpropagation through time."""
    return map_state(Tensor.detach, state)


def state_nbytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(x.numel() * x.element_size() for x in leaves(state))


def check_state(state: State, expected: State, where: str) -> None:
    """ValueError unless `state` has the structure and shapes of `expected`; S (cached steps) may differ."""
    if type(state) is not type(expected):
        raise ValueError(
            f"the state of {where} is a {type(state).__name__}, not a {type(expected).__name__}; "
            "pass the state that this model returned, or None."
        )
    for name, x, y in zip(expected._fields, state, expected, strict=True):
        if not isinstance(y, Tensor):
            check_state(x, y, where)
            continue
        if x.shape == y.shape:
            continue
        letters = name.rsplit("_", 1)[1]
        same = [a == b or (c == "S" and "past" not in name) for a, b, c in zip(x.shape, y.shape, letters, strict=True)]
        if not all(same):
            raise ValueError(
                f"{name} in the state of {where} has shape {tuple(x.shape)}, and this model and batch need "
                f"{tuple(y.shape)}; pass the state that this model returned for these rows, or None."
            )


def constant_state_bytes(mixer: Mixer) -> int:
    """Bytes per sequence of a state whose size does not depend on the length."""
    return state_nbytes(mixer.zero_state(1, torch.device("meta")))


def wide_zeros(weight: Tensor, device: torch.device | None) -> Callable[..., Tensor]:
    """`zeros(*shape)` in float32 or wider, on `device` or where the weight is: what states start as."""
    return partial(torch.zeros, dtype=wide_dtype(weight.dtype), device=device or weight.device)


def mask_tail(y_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Zero at and beyond each row's length."""
    if lengths_B is None:
        return y_BTD
    step_T = torch.arange(y_BTD.shape[1], device=y_BTD.device)
    return y_BTD.masked_fill((step_T >= lengths_B[:, None])[..., None], 0)
