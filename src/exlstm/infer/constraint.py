"""Constraints on tokens: a grammar, for example, that a completion has to follow."""

from typing import Protocol

from torch import Tensor


class Constraint(Protocol):
    """What may come next in one completion. An exception of it ends that completion with an error, and no other."""

    def allowed(self) -> Tensor:
        """Which tokens may come next, bool [C], over the tokenizer's vocabulary; a stop token is one of them."""

    def accept(self, token: int) -> None:
        """Notes a token that was sampled."""

    @property
    def complete(self) -> bool:
        """True if nothing may follow."""

    def copy(self) -> "Constraint":
        """The same for another sample: what one accepts, the other does not see."""
