"""States as trees: tensors inside NamedTuples and tuples, and the one way to walk them.

A mixer's state is a NamedTuple of tensors or of such; a model's is a tuple with one entry per block. All of them are
batch first and values: every function here returns a new tree and changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.arguments import exact_in

State = Any  # a NamedTuple of tensors or of states, batch first
LMState = tuple[State, ...]  # of a model: the state of every block


def map_state(fn: Callable[..., Any], *states: State, kind: type | tuple[type, ...] = Tensor) -> State:
    """`fn` applied to every tensor of a state, or to the tensors in the same place of several.

    kind: the nodes that `fn` is applied to as they are, if not tensors; tensors outside of them stay.
    """
    first = states[0]
    if isinstance(first, kind):
        return fn(*states)
    if isinstance(first, Tensor):
        return first
    parts = [map_state(fn, *group, kind=kind) for group in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def leaves(state: State, kind: type | tuple[type, ...] = Tensor) -> list[Any]:
    """The tensors of a state in order, or its nodes of another kind."""
    if isinstance(state, kind):
        return [state]
    return [] if isinstance(state, Tensor) else [leaf for part in state for leaf in leaves(part, kind)]


def named_leaves(state: State, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a state with its path, behind `prefix`: ".0.cell.c_BHKV"."""
    if isinstance(state, Tensor):
        yield prefix, state
        return
    for name, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
        yield from named_leaves(part, f"{prefix}.{name}")


def with_leaves(like: State, tensors: Iterable[Tensor]) -> State:
    """A state of the structure of `like` made of these tensors, in the order of `leaves`."""
    rest = iter(tensors)
    return map_state(lambda _: next(rest), like)


def rows(state: State, index: Tensor) -> State:
    """The state of some rows of the batch, in the order of `index`; a row may be taken more than once."""
    return map_state(lambda x: x[index], state)


def join(parts: Sequence[State]) -> State:
    """The states of several groups of rows as one, in order: the inverse of `rows`."""
    return map_state(lambda *group: torch.cat(group), *parts)


def detach(state: State) -> State:
    """The same values, cut off from the graph: for truncated backpropagation through time."""
    return map_state(Tensor.detach, state)


def state_nbytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(x.numel() * x.element_size() for x in leaves(state))


def check_state(state: State, expected: State, where: str) -> None:
    """ValueError unless `state` has the structure and shapes of `expected`, and numbers that are no wider.

    S (cached steps) may differ. Ops widen narrower numbers, and check the device.
    """
    if type(state) is not type(expected):
        raise ValueError(
            f"the state of {where} is a {type(state).__name__}, not a {type(expected).__name__}; "
            "pass the state that this model returned, or None."
        )
    for name, x, y in zip(type(expected)._fields, state, expected, strict=True):
        if isinstance(y, Tensor):
            check_tensor(name, x, y, where)
        else:
            check_state(x, y, where)


def check_tensor(name: str, x: Tensor, expected: Tensor, where: str) -> None:
    """ValueError unless `x` fits in the place of `expected`. name: of the field, whose suffix names the axes."""
    if x.dtype is not expected.dtype and not exact_in(x.dtype, expected.dtype):
        raise ValueError(
            f"{name} in the state of {where} is {x.dtype}, and this model needs {expected.dtype}; "
            "convert the state with `map_state`, or pass None."
        )
    if x.shape == expected.shape:
        return
    letters = name.rsplit("_", 1)[1]
    axes = zip(x.shape, expected.shape, letters, strict=True)
    if not all(a == b or (letter == "S" and "past" not in name) for a, b, letter in axes):
        raise ValueError(
            f"{name} in the state of {where} has shape {tuple(x.shape)}, and this model and batch need "
            f"{tuple(expected.shape)}; pass the state that this model returned for these rows, or None."
        )
