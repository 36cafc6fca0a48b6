"""Residual blocks (norm, mixer, perhaps norm and MLP), and the stack of them that models share.

    x = x + mixer(norm(x));  x = x + mlp(norm(x));  ...

B batch  T time  D model width
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from exlstm.mixers.contract import Mixer, MixerConfig
from exlstm.mixers.state import LMState, State, check_state
from exlstm.models.states.flat import flat_size
from exlstm.nn import init
from exlstm.nn.borders import Borders
from exlstm.nn.fields import Size, check_fields
from exlstm.nn.layers import MLP, Activation, WidthNorm
from exlstm.ops.norm import Norm
from exlstm.runtime.tracing import tracer


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A gated MLP, down(act(gate(x)) * up(x)), with `hidden` channels inside; without `gated` down(act(up(x))).

    activation: "gelu" is the exact one, "relu2" the square of relu. bias: of both projections.
    """

    hidden: Size
    activation: Activation = "gelu"
    bias: bool = False
    gated: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """norm -> mixer -> residual, and where there is an MLP: norm -> MLP -> residual."""

    mixer: MixerConfig
    mlp: MLPConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class StackConfig(Protocol):
    """Fields of an architecture that its blocks are made from."""

    @property
    def width(self) -> int:
        """The model width."""

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Every block, in order."""

    @property
    def norm(self) -> Norm:
        """Kind of the norms over the width."""

    @property
    def norm_eps(self) -> float:
        """What they add to the variance."""

    @property
    def norm_bias(self) -> bool:
        """Whether they have a bias."""

    @property
    def dropout(self) -> float:
        """Dropout of the outputs of mixers and MLPs, in training only."""

    @property
    def residual(self) -> bool:
        """False: blocks are x = mixer(x), and x = mlp(x), without norms."""


def draws(config: StackConfig) -> bool:
    """True if training draws random numbers: for dropout, or for the learned graph of an sLSTM."""
    return config.dropout > 0 or any(getattr(block.mixer, "recurrence", None) == "learned" for block in config.blocks)


def width_norm(config: StackConfig) -> WidthNorm:
    """A norm over the width, as this architecture has them."""
    return WidthNorm(config.width, config.norm, config.norm_eps, config.norm_bias)


class Block(nn.Module):
    """Residual block: norm, mixer, and perhaps norm and MLP. Without `residual` only mixer and MLP."""

    def __init__(self, config: StackConfig, index: int) -> None:
        super().__init__()
        block, depth = config.blocks[index], len(config.blocks)
        self.dropout, self.residual = config.dropout, config.residual
        self.mixer_norm = width_norm(config) if config.residual else None
        self.mixer = block.mixer.build(config.width, depth=depth, index=index)
        self.mlp_norm, self.mlp = None, None
        if block.mlp is not None:
            self.mlp_norm = width_norm(config) if config.residual else None
            self.mlp = MLP(config.width, **asdict(block.mlp))
            biases = dict.fromkeys(("up.bias", "down.bias") if block.mlp.bias else (), init.zeros)
            weights = {"up.weight": init.small(config.width), "down.weight": init.wang(config.width, depth)}
            init.fill(self.mlp, weights | biases)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """[B, T, D] -> [B, T, D] and the mixer's state after the last step."""
        into_BTD = x_BTD if self.mixer_norm is None else self.mixer_norm(x_BTD)
        y_BTD, state = self.mixer(into_BTD, state, reset_BT=reset_BT, lengths_B=lengths_B)
        x_BTD = self.added(x_BTD, y_BTD)
        if self.mlp is not None:
            into_BTD = x_BTD if self.mlp_norm is None else self.mlp_norm(x_BTD)
            x_BTD = self.added(x_BTD, self.mlp(into_BTD))
        return x_BTD, state

    def added(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """The output of a mixer or an MLP, beside its input."""
        return x_BTD + self.drop(y_BTD) if self.residual else self.drop(y_BTD)

    def drop(self, y_BTD: Tensor) -> Tensor:
        """Dropout, in training."""
        return functional.dropout(y_BTD, self.dropout) if self.dropout and self.training else y_BTD


class StatefulPart(Protocol):
    """A part of a model with an entry in the model's state."""

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> State:
        """State before the first step for `batch` rows, on the device of the weights or on another."""

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state after `length` steps."""


class BlockStack(nn.Module):
    """A model of residual blocks. Runs them, and knows their states.

    A subclass makes `blocks`, a Block for each of the config's, and what stands around them. The state is a tuple with
    one entry per stateful part; it is a value, never changed in place.
    gradient_checkpointing: set to True, the backward recomputes the activations inside of every block.
    """

    blocks: nn.ModuleList

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.shapes_cache: tuple[tuple[int, torch.dtype], LMState] | None = None
        self.gradient_checkpointing = False

    @property
    def any_weight(self) -> Tensor:
        """A parameter with the dtype and the device of the model."""
        return next(self.parameters())

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of every block, in order."""
        return [cast("Mixer", block.mixer) for block in self.blocks]

    @property
    def stateful(self) -> Sequence[StatefulPart]:
        """The modules with a state, in the order of the model's state: mixers, then what is `beside` them."""
        return self.mixers

    @property
    def beside(self) -> tuple[str, ...]:
        """Names, for errors, of the stateful parts that are no blocks."""
        return ()

    def run_blocks(self, x_BTD: Tensor, state: LMState | None, borders: Borders) -> tuple[Tensor, LMState]:
        """[B, T, D] through all blocks, and the state of each after the last step."""
        after = []
        for index in range(len(self.blocks)):
            x_BTD, block_state = self.run_block(index, x_BTD, state, borders)
            after.append(block_state)
        return x_BTD, tuple(after)

    def run_block(self, index: int, x_BTD: Tensor, state: LMState | None, borders: Borders) -> tuple[Tensor, State]:
        """[B, T, D] through one block, and its state after the last step. state: the model's."""
        block, before = self.blocks[index], None if state is None else state[index]
        run = self.checkpointed(block) if self.gradient_checkpointing and torch.is_grad_enabled() else block
        y_BTD, block_state = run(x_BTD, before, reset_BT=borders.reset_BT, lengths_B=borders.lengths_B)
        return y_BTD, block_state

    def checkpointed(self, block: nn.Module) -> Callable[..., tuple[Tensor, State]]:
        """The block with activations that the backward recomputes, with the same random numbers."""
        return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=draws(self.config))

    def check_state(self, state: Any, batch: int) -> None:
        """ValueError, in one sentence, unless `state` fits this model and batch."""
        names = [f"block {index}" for index in range(len(self.blocks))] + [f"the {name}" for name in self.beside]
        if not isinstance(state, tuple) or len(state) != len(names):
            raise ValueError(
                f"the state has {len(state) if isinstance(state, tuple) else type(state).__name__} entries for "
                f"{' and '.join([f'{len(self.blocks)} blocks', *self.beside])}; "
                "pass the state that this model returned, or None."
            )
        for name, given, expected in zip(names, state, self.shapes(batch), strict=True):
            check_state(given, expected, name)

    def shapes(self, batch: int) -> LMState:
        """The expected state on the meta device: structure, shapes and dtypes. The last one is cached, for decoding."""
        key = batch, self.any_weight.dtype
        if self.shapes_cache is not None and self.shapes_cache[0] == key:
            return self.shapes_cache[1]
        shapes = tuple(part.zero_state(batch, torch.device("meta")) for part in self.stateful)
        if tracer() is None:
            self.shapes_cache = key, shapes
        return shapes

    @property
    def state_size(self) -> int:
        """Numbers of a row in `flat_state`. ValueError for a state that grows."""
        return flat_size(self)

    def zero_state(self, batch: int) -> LMState:
        """State before the first step for `batch` rows, the same as state=None."""
        return tuple(part.zero_state(batch) for part in self.stateful)

    def state_bytes(self, length: int = 0) -> int:
        """Bytes of one sequence's state after `length` steps. Only attention makes it depend on the length."""
        return sum(part.state_bytes(length) for part in self.stateful)
