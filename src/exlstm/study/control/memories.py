"""Memories of an agent behind one call: a sequence, the state before it, and where episodes begin.

    y_BTD, state = memory(x_BTD, state, begins_BT)

Ours clear rows inside the sequence by `reset=`, in one call. Those of torch cannot: the sequence is cut wherever an
episode of any row begins, which is never more calls than a loop over time.

B rows  T time  S steps of a part  D width of the input  V width of the output
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.state import map_state, rows
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.encoder import XLSTM, EncoderConfig
from exlstm.rnn import LSTM, MLSTM, SLSTM

HEADS = 2
WINDOW = 128  # steps that attention sees: a state of constant size, as the others have
_STEP = 4  # widths are multiples of it


@dataclass(frozen=True, kw_only=True)
class MemorySize:
    """The size of a memory. hidden: width of the MLP in a block of attention, 0 for all others."""

    width: int
    hidden: int = 0


class PolicyMemory(nn.Module):
    """A memory of this call. A state is a value, None for an empty one."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.net, self.width = net, width

    def forward(self, x_BTD: Tensor, state: Any, begins_BT: Tensor) -> tuple[Tensor, Any]:
        """Outputs [B, T, V], and the state after the last step."""
        raise NotImplementedError

    def rows_of(self, state: Any, index: Tensor) -> Any:
        """The state of some rows."""
        raise NotImplementedError


class ResetMemory(PolicyMemory):
    """A drop-in of ours, in one call."""

    def forward(self, x_BTD: Tensor, state: Any, begins_BT: Tensor) -> tuple[Tensor, Any]:
        """See `PolicyMemory`."""
        y_BTV, state = self.net(x_BTD, state, reset=begins_BT)
        return y_BTV, state

    def rows_of(self, state: Any, index: Tensor) -> Any:
        """Rows are behind the layers."""
        return None if state is None else tuple(part[:, index] for part in state)


class EncoderMemory(ResetMemory):
    """A stack of blocks, in one call. Its state has rows first."""

    def rows_of(self, state: Any, index: Tensor) -> Any:
        """Rows come first."""
        return None if state is None else rows(state, index)


class LoopMemory(PolicyMemory):
    """A recurrent net of torch, with a call for every part of the sequence in which no episode begins."""

    def forward(self, x_BTD: Tensor, state: Any, begins_BT: Tensor) -> tuple[Tensor, Any]:
        """See `PolicyMemory`."""
        begins_T = begins_BT.any(0)
        edges = sorted({0, x_BTD.shape[1], *begins_T.nonzero()[:, 0].tolist()})
        parts = []
        for first, last in pairwise(edges):
            if state is not None and bool(begins_T[first]):
                stays_B1 = (~begins_BT[:, first])[:, None].to(x_BTD.dtype)
                state = map_state(lambda part, stays_B1=stays_B1: part * stays_B1, state)
            y_BSV, state = self.net(x_BTD[:, first:last], state)
            parts.append(y_BSV)
        return torch.cat(parts, dim=1), state

    def rows_of(self, state: Any, index: Tensor) -> Any:
        """Rows are behind the layers."""
        return None if state is None else map_state(lambda part: part[:, index], state)


class NoMemory(PolicyMemory):
    """A layer that sees the newest input alone."""

    def forward(self, x_BTD: Tensor, state: Any, begins_BT: Tensor) -> tuple[Tensor, Any]:
        """See `PolicyMemory`; the state is empty."""
        return torch.tanh(self.net(x_BTD)), ()

    def rows_of(self, state: Any, index: Tensor) -> Any:
        """There is nothing to take."""
        return state


def _ours(kind: Callable[..., nn.Module], **options: Any) -> Callable[[int, MemorySize], PolicyMemory]:
    def build(inputs: int, size: MemorySize) -> PolicyMemory:
        net = kind(inputs, size.width, batch_first=True, **options)
        return ResetMemory(net, size.width)

    return build


def _torch(kind: Callable[..., nn.Module]) -> Callable[[int, MemorySize], PolicyMemory]:
    return lambda inputs, size: LoopMemory(kind(inputs, size.width, batch_first=True), size.width)


def _attention(inputs: int, size: MemorySize) -> PolicyMemory:
    mixer = AttentionConfig(heads=HEADS, window=WINDOW)
    block = BlockConfig(mixer=mixer, mlp=MLPConfig(hidden=size.hidden or size.width))
    config = EncoderConfig(input_size=inputs, width=size.width, blocks=(block,))
    return EncoderMemory(XLSTM(inputs, size.width, config=config), size.width)


MEMORIES: Mapping[str, Callable[[int, MemorySize], PolicyMemory]] = MappingProxyType(
    {
        "none": lambda inputs, size: NoMemory(nn.Linear(inputs, size.width), size.width),
        "slstm": _ours(SLSTM, num_heads=HEADS),
        "mlstm": _ours(MLSTM, num_heads=HEADS),
        "lstm": _ours(LSTM),
        "attention": _attention,
        "torch.lstm": _torch(nn.LSTM),
        "torch.gru": _torch(nn.GRU),
    }
)


def build_memory(kind: str, inputs: int, size: MemorySize) -> PolicyMemory:
    """The memory of this name. ValueError for a name that there is not."""
    if kind not in MEMORIES:
        raise ValueError(f"there is no memory {kind!r}; use one of {', '.join(MEMORIES)}.")
    return MEMORIES[kind](inputs, size)


@lru_cache(maxsize=256)
def memory_size(kind: str, inputs: int, target: int) -> MemorySize:
    """The size at which a memory has about `target` parameters. ValueError if there is none within 5 %."""
    found = [MemorySize(width=width) for width in range(_STEP, 1024, _STEP)]
    if kind == "attention":  # its width is the input's, so that nothing is projected twice
        found = [MemorySize(width=inputs, hidden=hidden) for hidden in range(_STEP, 4096, _STEP)]
    low, high = 0, len(found) - 1
    while low < high:  # parameters grow with the size
        middle = (low + high) // 2
        low, high = (middle + 1, high) if _parameters(kind, inputs, found[middle]) < target else (low, middle)
    near = found[max(0, low - 1) : low + 1]
    best = min(near, key=lambda size: abs(_parameters(kind, inputs, size) - target))
    if abs(_parameters(kind, inputs, best) - target) > 0.05 * target:
        raise ValueError(
            f"a memory {kind} of {inputs} inputs cannot have {target:,} parameters, the nearest is "
            f"{_parameters(kind, inputs, best):,}; choose another number."
        )
    return best


def _parameters(kind: str, inputs: int, size: MemorySize) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_memory(kind, inputs, size).parameters())
