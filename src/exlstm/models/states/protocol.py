"""Protocol of the models whose states this folder reads and stores; `exlstm.LM` follows it, and imports the folder.

B batch  T time  D model width  C classes (vocabulary)
"""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from exlstm.mixers.state import LMState


class VocabularyConfig(Protocol):
    """Fields of an architecture that decide shape and dtype of the logits."""

    @property
    def vocab_size(self) -> int:
        """Number of classes."""

    @property
    def logit_cap(self) -> float | None:
        """Bound of the logits; with one they are float32 or wider."""


class StatefulModel(Protocol):
    """Module that reads tokens into a state, and makes logits of hidden states."""

    training: bool

    @property
    def config(self) -> VocabularyConfig:
        """The architecture: a dataclass."""

    @property
    def embed(self) -> nn.Embedding:
        """Its weight has the dtype and the device of the model."""

    def hidden(
        self, tokens_BT: Tensor, state: LMState | None = None, *, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, LMState]:
        """Hidden states [B, T, D], and the state after the last token."""

    def read_out(self, x: Tensor) -> Tensor:
        """Logits [..., C] of hidden states [..., D]."""

    def state_bytes(self, length: int = 0) -> int:
        """Bytes of one sequence's state after `length` tokens."""

    def parameters(self) -> Iterator[Tensor]:
        """The parameters of the module."""

    def buffers(self) -> Iterator[Tensor]:
        """The buffers of the module."""

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers by name."""

    def train(self, mode: bool = True) -> Any:
        """Sets training mode, or evaluation mode."""
