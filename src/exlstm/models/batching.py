"""States taken apart into rows and put together again, also those that grow: rows may have seen more or less.

S cached steps
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.mixers.contract import State, map_state
from exlstm.models.lm import LM, LMState
from exlstm.ops.attention import AttentionState


def grows(model: LM) -> bool:
    """Whether a sequence's state grows with its length."""
    return model.state_bytes(1 << 20) != model.state_bytes(0)


def take_rows(state: LMState, index: Sequence[int]) -> LMState:
    """The state of some rows, in that order, in memory of its own, without what none of them looks at."""
    return cast("LMState", _taken(state, index))


def join_rows(parts: Sequence[LMState]) -> LMState:
    """The states of several groups of rows as one, in order."""
    return cast("LMState", _joined(parts))


def _taken(state: State, index: Sequence[int]) -> State:
    if isinstance(state, AttentionState):
        return _trimmed(map_state(lambda x: x[torch.tensor(index, device=x.device)], state))
    if isinstance(state, Tensor):
        return state[torch.tensor(index, device=state.device)]
    taken = [_taken(x, index) for x in state]
    return type(state)(*taken) if hasattr(state, "_fields") else tuple(taken)


def _joined(parts: Sequence[State]) -> State:
    first = parts[0]
    if isinstance(first, AttentionState):
        size = max(part.position_BS.shape[1] for part in parts)
        return AttentionState(*(torch.cat(group) for group in zip(*(_padded(x, size) for x in parts), strict=True)))
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    joined = [_joined(group) for group in zip(*parts, strict=True)]
    return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)


def _trimmed(state: AttentionState) -> AttentionState:
    """Without the entries that no row may see."""
    kept_S = (state.position_BS >= 0).any(dim=0)
    return AttentionState(state.k_BSGK[:, kept_S], state.v_BSGK[:, kept_S], state.position_BS[:, kept_S], state.next_B)


def _padded(state: AttentionState, size: int) -> AttentionState:
    """With entries that no row may see in front, `size` in all."""
    more = size - state.position_BS.shape[1]
    k_BSGK, v_BSGK = (pad(x, (0, 0, 0, 0, more, 0)) for x in (state.k_BSGK, state.v_BSGK))
    return AttentionState(k_BSGK, v_BSGK, pad(state.position_BS, (more, 0), value=-1), state.next_B)
