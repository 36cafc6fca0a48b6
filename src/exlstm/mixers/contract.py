"""What every sequence mixer promises. Training, prefill and decoding are the same call.

    y_BTD, state = mixer(x_BTD, state, reset_BT=..., lengths_B=...)

* causal; any T >= 1; cutting time anywhere and passing the state on changes nothing
* state=None means nothing seen yet; a state is a NamedTuple of tensors (or of such), batch first; it is a value:
  returned, never changed in place
* reset_BT (bool) clears a row's state before that step, all of it: what follows cannot tell what came before
* lengths_B (int): steps at or beyond a row's length change nothing in its state, nor in any gradient, and give y = 0,
  whatever is there
* a batch of no rows gives empty results; narrower numbers in a state are widened; what does not fit is a ValueError
* the numbers do not depend on the backend that ran, beyond rounding

B batch  T time  D model width
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from exlstm.ops.arguments import checked_rows, exact_in
from exlstm.ops.common import blank, inside, wide_dtype

State = Any  # a NamedTuple of tensors or of states, batch first


class Mixer(Protocol):
    """The call above, and what it costs."""

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> State:
        """Nothing seen yet, for `batch` rows; on the device of the weights, or on another."""

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state after `length` steps."""

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs per token beyond 2 per weight: "prefill" of `length` tokens (forward), or "decode" at that position."""


@runtime_checkable
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
    """ValueError unless `state` has the structure and shapes of `expected`, and numbers that are no wider.

    S (cached steps) may differ. Narrower numbers are widened by the ops, which also see where the tensors lie.
    """
    if type(state) is not type(expected):
        raise ValueError(
            f"the state of {where} is a {type(state).__name__}, not a {type(expected).__name__}; "
            "pass the state that this model returned, or None."
        )
    for name, x, y in zip(expected._fields, state, expected, strict=True):
        if not isinstance(y, Tensor):
            check_state(x, y, where)
            continue
        if x.dtype is not y.dtype and not exact_in(x.dtype, y.dtype):
            raise ValueError(
                f"{name} in the state of {where} is {x.dtype}, and this model needs {y.dtype}; "
                "convert the state with `map_state`, or pass None."
            )
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


def checked(x_BTD: Tensor, width: int, reset_BT: Tensor | None, lengths_B: Tensor | None
            ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """What a mixer is called with: x with zeros in its padding, reset_BT, and lengths_B in int64.

    Whatever the padding holds, perhaps NaN, then meets nothing in a product, forward or backward.
    Raises ValueError for an x that is not [B, T >= 1, width], and for reset_BT and lengths_B that do not fit it.
    """
    if x_BTD.ndim != 3 or x_BTD.shape[2] != width:
        raise ValueError(f"x has shape {tuple(x_BTD.shape)}; this mixer takes [batch, time, {width}].")
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    return mask_tail(x_BTD, lengths_B), reset_BT, lengths_B


def check_width(width: int) -> None:
    """ValueError for a model width that no mixer can have."""
    if width < 1:
        raise ValueError(f"width is {width}; a mixer needs at least 1.")


def mask_tail(y_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Zero at and beyond each row's length."""
    return y_BTD if lengths_B is None else blank(y_BTD, inside(lengths_B, y_BTD.shape[1]))
