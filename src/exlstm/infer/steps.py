"""Decoding steps that are done again rather than called: what a `TokenLoop` asks of them, whatever does them.

B batch  C classes (vocabulary)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from exlstm.mixers.contract import map_state
from exlstm.models.lm import LM, LMState


class Steps(ABC):
    """The steps of a model, one token per row each, from a state on; made of the next step, which is not done yet.

    tokens_B1: int64, of the right batch. state: None for nothing seen. Neither is changed.
    Making one raises NotRecordable if that step cannot be done again.
    """

    logits_B1C: Tensor  # of the step that was done last

    def __init__(self, model: LM, tokens_B1: Tensor, state: LMState | None) -> None:
        # memory of its own, which every step reads and later ones write to
        self.model, self.tokens_B1 = model, tokens_B1.clone()
        state = model.zero_state(len(tokens_B1)) if state is None else state
        self.first: LMState = map_state(torch.clone, state)
        self.weights = [
            (held, name, held[name].data_ptr()) for held in holders(model) for name in held if held[name] is not None
        ]

    @staticmethod
    @abstractmethod
    def obstacle(model: LM) -> str | None:
        """Why steps of this model are not even tried, or None."""

    @abstractmethod
    def do(self) -> None:
        """One step, from the tokens and the state in memory to `logits_B1C` and the next state there."""

    @abstractmethod
    def last(self) -> LMState:
        """The memory of the state after the last step."""

    def fits(self, tokens_B: Tensor) -> bool:
        """Whether there is one token per row, the model is for use, and its weights are where they were."""
        there = tokens_B.shape == self.tokens_B1.shape[:1] and tokens_B.device == self.tokens_B1.device
        return there and not draws(self.model) and all(
            held[name].data_ptr() == address for held, name, address in self.weights
        )  # fmt: skip

    def step(self, tokens_B: Tensor) -> Tensor:
        """The logits after one more token of every row, [B, C]: a copy, for the next step overwrites them."""
        self.tokens_B1.copy_(tokens_B[:, None])
        self.do()
        return self.logits_B1C[:, 0].clone()

    def state(self) -> LMState:
        """The state after the last step; later steps do not change it."""
        state: LMState = map_state(torch.clone, self.last())
        return state


def draws(model: LM) -> bool:
    """Whether a step draws random numbers, which would be the same ones again and again."""
    return model.training and model.config.dropout > 0


def holders(model: LM) -> Iterator[dict[str, Any]]:
    """Of every module, its parameters and its buffers by name."""
    for module in model.modules():
        yield module._parameters
        yield module._buffers
