"""Rows of states, taken and joined; rows of attention may hold different numbers of cached steps.

S cached steps
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.mixers.state import LMState, State, join, map_state
from exlstm.models.states.protocol import StatefulModel
from exlstm.ops.attention import AttentionState


def grows(model: StatefulModel) -> bool:
    """True if a sequence's state grows with its length, as with attention."""
    return model.state_bytes(1 << 20) != model.state_bytes(0)


def take_rows(state: LMState, index: Sequence[int]) -> LMState:
    """The state of some rows, in that order, in memory of its own, without the steps that none of them may see."""
    taken: LMState = map_state(lambda x: x[torch.tensor(index, device=x.device)], state)
    trimmed: LMState = map_state(_trimmed, taken, kind=AttentionState)
    return trimmed


def join_rows(parts: Sequence[LMState]) -> LMState:
    """The states of several groups of rows as one, in order."""
    joined: LMState = map_state(_joined, *parts, kind=(AttentionState, Tensor))
    return joined


def _joined(*parts: State) -> State:
    if not isinstance(parts[0], AttentionState):
        return torch.cat(parts)
    size = max(part.position_BS.shape[1] for part in parts)
    return join([_padded(part, size) for part in parts])


def _trimmed(state: AttentionState) -> AttentionState:
    """The state without cached steps that are masked in every row."""
    seen_S = (state.position_BS >= 0).any(dim=0)
    return AttentionState(state.k_BSGK[:, seen_S], state.v_BSGK[:, seen_S], state.position_BS[:, seen_S], state.next_B)


def _padded(state: AttentionState, size: int) -> AttentionState:
    """The state with masked steps in front, `size` in all."""
    more = size - state.position_BS.shape[1]
    k_BSGK, v_BSGK = (pad(x, (0, 0, 0, 0, more, 0)) for x in (state.k_BSGK, state.v_BSGK))
    return AttentionState(k_BSGK, v_BSGK, pad(state.position_BS, (more, 0), value=-1), state.next_B)
