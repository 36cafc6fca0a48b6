"""How the tensors of a foreign layout become ours and back: a list of small invertible rules per model.

A rule takes some tensors of theirs to some of ours. Run on tensors without numbers (device "meta") it tells shapes, so
that a file is checked before any of it is read.

D width  H heads  G gates  V, K channels of a head
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

TensorMap = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Rule:
    """`to_ours` makes the tensors named `ours` of those named `theirs`, in order; `to_theirs` is its inverse."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: TensorMap
    to_theirs: TensorMap


def one(ours: str, theirs: str, to_ours: Callable[[Tensor], Tensor], to_theirs: Callable[[Tensor], Tensor]) -> Rule:
    """One tensor of one."""
    return Rule((ours,), (theirs,), lambda xs: [to_ours(xs[0])], lambda xs: [to_theirs(xs[0])])


def same(ours: str, theirs: str) -> Rule:
    """The same tensor under another name."""
    return one(ours, theirs, torch.Tensor.detach, torch.Tensor.detach)


def gain(ours: str, theirs: str) -> Rule:
    """A norm's gain that is stored less one there."""
    return one(ours, theirs, lambda w_D: wide(w_D) + 1, lambda w_D: (wide(w_D) - 1).to(w_D.dtype))


def concatenated(ours: str, theirs: Sequence[str], sizes: Sequence[int]) -> Rule:
    """One of ours is several of theirs, one below the other, `sizes` rows each."""
    return Rule((ours,), tuple(theirs), lambda xs: [torch.cat(list(xs))], partial(split_rows, sizes=sizes))


def split(ours: Sequence[str], theirs: str, sizes: Sequence[int]) -> Rule:
    """Several of ours are one of theirs, cut into `sizes` rows each."""
    return Rule(tuple(ours), (theirs,), partial(split_rows, sizes=sizes), lambda xs: [torch.cat(list(xs))])


def split_rows(xs: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Pieces of so many rows. What does not add up is left to the check of shapes."""
    (x,) = xs
    if x.shape[0] != sum(sizes):
        return [x.new_empty((0,))] * len(sizes)
    return list(torch.split(x, list(sizes)))


def repeated(ours: str, theirs: Sequence[str]) -> Rule:
    """One of ours is stored under several names, all with the same numbers."""

    def to_ours(xs: Sequence[Tensor]) -> list[Tensor]:
        if not all(x.is_meta or torch.equal(x, xs[0]) for x in xs[1:]):
            raise ValueError(
                f"{' and '.join(theirs)} differ, though the config says that they are one; correct the config."
            )
        return [xs[0]]

    return Rule((ours,), tuple(theirs), to_ours, lambda xs: [xs[0]] * len(theirs))


def absent(ours: str, shape: Sequence[int], value: float) -> Rule:
    """A tensor that the layout has no place for: there all its numbers are `value`."""

    def to_theirs(xs: Sequence[Tensor]) -> list[Tensor]:
        if not xs[0].is_meta and not bool((xs[0] == value).all()):
            raise ValueError(f"{ours} is not {value:g} everywhere, and this layout has no place for it; use another.")
        return []

    return Rule((ours,), (), lambda _: [torch.full(tuple(shape), value)], to_theirs)


def wide(x: Tensor) -> Tensor:
    """In float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
