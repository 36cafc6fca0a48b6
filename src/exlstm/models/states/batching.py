"""Rows of states, taken and joined; rows of a cache may hold different numbers of steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from exlstm.mixers.state import LMState, State, join, map_state
from exlstm.models.states.protocol import StatefulModel
from exlstm.ops.attention import AttentionState
from exlstm.ops.chunk_attention import WholeState
from exlstm.ops.long_conv import LongConvState

CACHES = (AttentionState, LongConvState, WholeState)  # states that grow with the steps that they have seen


def grows(model: StatefulModel) -> bool:
    """True if a sequence's state grows with its length, as a cache does."""
    return model.state_bytes(1 << 20) != model.state_bytes(0)


def take_rows(state: LMState, index: Sequence[int]) -> LMState:
    """The state of some rows, in that order, in memory of its own, without the steps that none of them may see."""
    taken: LMState = map_state(lambda x: x[torch.tensor(index, device=x.device)], state)
    trimmed: LMState = map_state(lambda cache: cache.trimmed(), taken, kind=CACHES)
    return trimmed


def join_rows(parts: Sequence[LMState]) -> LMState:
    """The states of several groups of rows as one, in order."""
    joined: LMState = map_state(_joined, *parts, kind=(*CACHES, Tensor))
    return joined


def _joined(*parts: State) -> State:
    if not isinstance(parts[0], CACHES):
        return torch.cat(parts)
    size = max(part[0].shape[1] for part in parts)
    return join([part.padded(size) for part in parts])
