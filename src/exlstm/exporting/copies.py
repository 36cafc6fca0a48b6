"""The model that is traced: a copy in float32 on the CPU, in evaluation mode, with states of a fixed size.

B batch  T time  D width  V width of h  S width of c
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from exlstm.mixers.attention import Attention
from exlstm.mixers.contract import Mixer
from exlstm.mixers.hyena import Hyena
from exlstm.mixers.state import LMState, State, leaves, with_leaves
from exlstm.models.block import BlockStack
from exlstm.nn.borders import Borders
from exlstm.nn.fixed import FixedNumbers
from exlstm.nn.linear import Linear, QuantizedLinear
from exlstm.ops.attention import empty_window
from exlstm.ops.linear import dequantised
from exlstm.rnn.memory import Memory, Result, Weights
from exlstm.runtime.internals import scan_over_time

Model = TypeVar("Model", bound=nn.Module)


def plain_copy(model: Model) -> Model:
    """The model in float32 on the CPU, for evaluation without gradients; it shares the memory of what is so already.

    Quantised layers are expanded, and backends that were chosen by name are not kept. The model stays as it is.
    """
    shared: dict[int, Any] = {id(x): x for x in model.buffers() if is_plain(x)}
    shared |= {id(x): nn.Parameter(x.detach(), requires_grad=False) for x in model.parameters() if is_plain(x)}
    copy = deepcopy(model, shared).eval().requires_grad_(False)
    for name, layer in list(copy.named_modules()):
        if isinstance(layer, QuantizedLinear):
            copy.set_submodule(name, expanded(layer))
        elif isinstance(layer, FixedNumbers):
            copy.set_submodule(name, HeldNumbers(layer))
        elif hasattr(layer, "backend"):
            layer.backend = "auto"
    return copy.to("cpu", torch.float32)


class HeldNumbers(nn.Module):
    """Fixed numbers in float32 as a buffer: a loop in a graph may read a buffer twice, another tensor only once."""

    numbers: Tensor

    def __init__(self, fixed: FixedNumbers) -> None:
        super().__init__()
        self.register_buffer("numbers", fixed.on(torch.device("cpu"), torch.float32), persistent=False)

    def like(self, _x: Tensor) -> Tensor:
        """See `FixedNumbers.like`."""
        return self.numbers


def is_plain(x: Tensor) -> bool:
    """Whether a graph may have this tensor as it is."""
    return x.is_cpu and (x.dtype is torch.float32 or not x.is_floating_point())


def expanded(layer: QuantizedLinear) -> Linear:
    """The layer with the weights that its few bits stand for."""
    plain = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    with torch.no_grad():
        plain.weight.copy_(dequantised(layer.packed(), torch.float32))
        if layer.bias is not None and plain.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain


def fixed_state(model: BlockStack, context: int | None) -> LMState:
    """The state before the first step of one row, in tensors whose sizes do not change.

    context: steps that attention without a window keeps. Raises ValueError for a state that grows without bound.
    """
    return tuple(fixed_part(part, index, context) for index, part in enumerate(model.stateful))


def fixed_part(part: Any, index: int, context: int | None) -> State:
    """The state of one part of a model."""
    state: Any = part.zero_state(1)
    if isinstance(part, Hyena):
        # its filter reaches no farther, so that this is all that later steps depend on
        return state._replace(cache=state.cache.padded(part.config.filter_len - 1))
    if part.state_bytes(0) == part.state_bytes(1 << 20):
        return state
    kind = type(part).__name__
    if not isinstance(part, Attention):
        raise ValueError(
            f"the state of block {index}, a {kind}, grows with every step, and a graph has tensors of fixed sizes; "
            "use a mixer with a state of fixed size, such as one with chunks."
        )
    if context is None:
        raise ValueError(
            f"the state of block {index}, attention without a window, grows with every step; "
            "keep the newest ones with context=1024 (--context 1024)."
        )
    if context < 1:
        raise ValueError(f"context is {context}; it must be at least 1.")
    keys_BTGK = state.k_BSGK
    return empty_window(keys_BTGK, context + 1)


class ScannedBlock(nn.Module):
    """A block that reads any number of steps in a loop inside of the graph, one after another."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    @property
    def mixer(self) -> Mixer:
        """The mixer of the block."""
        mixer: Mixer = self.block.mixer  # type: ignore[assignment]
        return mixer

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D] and the mixer's state after the last step; without resets and lengths."""
        assert reset_BT is None
        assert lengths_B is None
        before = self.mixer.zero_state(x_BTD.shape[0]) if state is None else state

        def step(carry: list[Tensor], x_BD: Tensor) -> tuple[list[Tensor], Tensor]:
            y_B1D, after = self.block(x_BD[:, None], with_leaves(before, carry))
            return [x.clone() for x in leaves(after)], y_B1D[:, 0].clone()

        carry, y_TBD = scan_over_time(step, leaves(before), x_BTD.transpose(0, 1))
        return y_TBD.transpose(0, 1), with_leaves(before, carry)


class HeldWeights(nn.Module):
    """The weights of a layer as attributes of a module: others that a loop reads have sizes of any number for torch."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.names = tuple(weights)
        for name, weight in weights.items():
            setattr(self, name, weight)

    def by_name(self) -> Weights:
        """The weights."""
        return {name: getattr(self, name) for name in self.names}


@dataclass(frozen=True)
class ScannedMemory:
    """A layer of a recurrent net that reads any number of steps in a loop inside of the graph, see `Memory`."""

    one_step: Memory

    @property
    def state_size(self) -> int:
        """The width of c."""
        return self.one_step.state_size

    def run(
        self, weights: Weights, x_BTD: Tensor, h_BV: Tensor, c_BS: Tensor, borders: Borders, backend: str
    ) -> Result:
        """See `Memory.run`; without resets and lengths."""
        assert borders == Borders()
        layer = HeldWeights(weights)

        def step(carry: list[Tensor], x_BD: Tensor) -> tuple[list[Tensor], Tensor]:
            y_B1V, h_BV, c_BS = self.one_step.run(layer.by_name(), x_BD[:, None], carry[0], carry[1], borders, backend)
            return [h_BV.clone(), c_BS.clone()], y_B1V[:, 0].clone()

        (h_BV, c_BS), y_TBV = scan_over_time(step, [h_BV, c_BS], x_BTD.transpose(0, 1))
        return y_TBV.transpose(0, 1), h_BV, c_BS
