"""The cache of transformers as the state of an exlstm model, whose size does not depend on how much was read."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from exlstm.mixers.state import LMState, leaves, rows


class ExlstmCache(Cache):  # type: ignore[misc]
    """The state after `length` columns of input, padding included; state=None before the first call.

    A call of the model returns a new cache and leaves its argument unchanged, so one cache can be continued many times.
    The three methods of beam search replace the state of this object; no tensor is changed in place.
    """

    def __init__(self, state: LMState | None = None, length: int = 0) -> None:
        super().__init__(layers=[])
        self.state = state
        self.length = length

    def __repr__(self) -> str:
        return f"ExlstmCache(length={self.length}, batch_size={self.batch_size})"

    def __len__(self) -> int:
        """The number of blocks whose state it holds."""
        return 0 if self.state is None else len(self.state)

    @property
    def batch_size(self) -> int:
        """The number of rows, -1 before the first call."""
        return -1 if self.state is None else len(leaves(self.state)[0])

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of input read so far, padding included."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the length of the input is not limited."""
        return -1

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self.state is not None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces row i by row beam_idx[i]."""
        if self.state is not None:
            self.state = rows(self.state, beam_idx.to(leaves(self.state)[0].device))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times; copies stand beside each other."""
        if self.state is not None:
            self.reorder_cache(torch.arange(self.batch_size).repeat_interleave(repeats))

    def reset(self) -> None:
        """Clears the state."""
        self.state, self.length = None, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError: a recurrent state cannot be cut back."""
        raise ValueError(
            f"a recurrent state cannot forget its last {tokens_to_remove} tokens; keep the cache of an earlier call."
        )

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        """Raises ValueError: the cache holds states, not keys and values."""
        raise ValueError("an ExlstmCache holds states, not keys and values; pass it to an exlstm model only.")
