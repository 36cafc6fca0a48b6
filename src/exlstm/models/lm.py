"""A language model: embed, a stack of blocks (mixer, then perhaps an MLP, each with norm and residual), read out.

    x = embed(tokens);  x = x + mixer(norm(x));  x = x + mlp(norm(x));  ...;  logits = head(norm(x))

Between the embedding and the first block some models scale it, add learned positions, or norm it.

B batch  T time  D model width  C classes (vocabulary)
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from exlstm.mixers.contract import Mixer, MixerConfig, mask_tail
from exlstm.mixers.state import LMState, State, check_state
from exlstm.models.states.snapshot import Snapshot, Tokens, read
from exlstm.models.summary import summary
from exlstm.nn import init
from exlstm.nn.fields import Positive, Share, Size, check_fields
from exlstm.nn.layers import MLP, Activation, WidthNorm, soft_cap
from exlstm.nn.linear import Linear
from exlstm.nn.positions import PositionTable
from exlstm.ops.arguments import checked_rows
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


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """The whole architecture. blocks lists every block in order.

    logit_cap: bound of the logits, by cap * tanh(x / cap). dropout: of the embedding and of the outputs of mixers and
    MLPs, in training only. norm_bias: norms over the width have a bias. out_norm: a norm between the last block and the
    head.
    embed_scale: factor of the embedding. positions: size of a table of learned positions, which bounds the length of a
    sequence; None: no positions but those of mixers. embed_norm: a norm after the embedding. residual: False is for
    comparisons with plain stacks, whose blocks are x = mixer(x), and x = mlp(x), without norms.
    """

    vocab_size: Size
    width: Size
    blocks: tuple[BlockConfig, ...]
    norm: Norm = "layer"
    norm_eps: Positive = 1e-5
    tie_embeddings: bool = False
    logit_cap: Positive | None = None
    dropout: Share = 0.0
    norm_bias: bool = False
    out_norm: bool = True
    embed_scale: Positive | None = None
    positions: Size | None = None
    embed_norm: bool = False
    residual: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.blocks:
            raise ValueError("blocks is (); a model needs at least 1.")

    @property
    def draws(self) -> bool:
        """True if training draws random numbers: for dropout, or for the learned graph of an sLSTM."""
        return self.dropout > 0 or any(getattr(block.mixer, "recurrence", None) == "learned" for block in self.blocks)


def width_norm(config: LMConfig) -> WidthNorm:
    """A norm over the width, as this architecture has them."""
    return WidthNorm(config.width, config.norm, config.norm_eps, config.norm_bias)


class Block(nn.Module):
    """Residual block: norm, mixer, and perhaps norm and MLP. Without `residual` only mixer and MLP."""

    def __init__(self, config: LMConfig, index: int) -> None:
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


class Embedding(nn.Embedding):
    """torch's Embedding without a draw on the meta device, for which torch would import its compiler for seconds."""

    def reset_parameters(self) -> None:
        """torch's draw on real devices, although LM overwrites it: the random numbers of later layers depend on it."""
        if not self.weight.is_meta:
            super().reset_parameters()


class LM(nn.Module):
    """Language model of an `LMConfig`.

        logits_BTC, state = model(tokens_BT)                  # train, prefill
        logits_BTC, state = model(next_token_B1, state)       # decode: the same call

    The state is a tuple with one entry per block, and one more where there are learned positions; it is a value, never
    changed in place.
    gradient_checkpointing: set to True, the backward recomputes the activations inside of every block.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.shapes_cache: tuple[tuple[int, torch.dtype], LMState] | None = None
        self.gradient_checkpointing = False
        self.embed = Embedding(config.vocab_size, config.width)
        self.positions = None if config.positions is None else PositionTable(config.positions, config.width)
        self.embed_norm = width_norm(config) if config.embed_norm else None
        self.blocks = nn.ModuleList(Block(config, index) for index in range(len(config.blocks)))
        self.norm = width_norm(config) if config.out_norm else None
        self.head = Linear(config.width, config.vocab_size, bias=False)
        for matrix in (self.embed, self.head):
            init.fill(matrix, {"weight": init.small(config.width)})
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(
        self, tokens_BT: Tensor, state: LMState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LMState]:  # fmt: skip
        """Logits for the token after each position, and the state after the last one.

        tokens: [B, T] integers below vocab_size, T >= 1. state: what an earlier call returned for these rows, or None.
        reset_BT (bool): clears the state before that step, as at the start of a document.
        lengths_B (int): tokens at or beyond a row's length are padding: they change no state, their logits are noise.
        A batch of no rows gives empty results.
        Returns logits [B, T, C], float32 or wider if there is a cap. Raises ValueError for input that does not fit.
        """
        self.check(tokens_BT, state, reset_BT, lengths_B)
        return self.advance(tokens_BT, state, reset_BT=reset_BT, lengths_B=lengths_B)

    def advance(
        self, tokens_BT: Tensor, state: LMState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LMState]:  # fmt: skip
        """`forward` of checked input."""
        x_BTD, after = self.stack(tokens_BT, state, reset_BT=reset_BT, lengths_B=lengths_B)
        return self.read_out(x_BTD), after

    def hidden(
        self, tokens_BT: Tensor, state: LMState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LMState]:  # fmt: skip
        """Hidden states [B, T, D], of which `read_out` makes logits, and the state: `forward` without its last layer.

        For losses that make logits of a few tokens at a time.
        """
        self.check(tokens_BT, state, reset_BT, lengths_B)
        return self.stack(tokens_BT, state, reset_BT=reset_BT, lengths_B=lengths_B)

    def stack(
        self, tokens_BT: Tensor, state: LMState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LMState]:  # fmt: skip
        """`hidden` of checked input."""
        x_BTD, position = self.enter(self.embed(tokens_BT), state, reset_BT=reset_BT, lengths_B=lengths_B)
        after = []
        for index, block in enumerate(self.blocks):
            before = None if state is None else state[index]
            run = self.checkpointed(block) if self.gradient_checkpointing and torch.is_grad_enabled() else block
            x_BTD, block_state = run(x_BTD, before, reset_BT=reset_BT, lengths_B=lengths_B)
            after.append(block_state)
        return x_BTD if self.norm is None else self.norm(x_BTD), (*after, *position)

    def enter(
        self,
        x_BTD: Tensor,
        state: LMState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LMState]:
        """The input of the first block, from embeddings, and the end of the state: () or that of the positions."""
        after: LMState = ()
        if self.config.embed_scale is not None:
            x_BTD = x_BTD * self.config.embed_scale
        if self.positions is not None:
            before = None if state is None else state[-1]
            x_BTD, position = self.positions(x_BTD, before, reset_BT=reset_BT, lengths_B=lengths_B)
            after = (position,)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        return functional.dropout(mask_tail(x_BTD, lengths_B), self.config.dropout, self.training), after

    def checkpointed(self, block: nn.Module) -> Callable[..., tuple[Tensor, State]]:
        """The block with activations that the backward recomputes, with the same random numbers."""
        return partial(checkpoint, block, use_reentrant=False, preserve_rng_state=self.config.draws)

    def read_out(self, x: Tensor) -> Tensor:
        """Logits [..., C] of hidden states [..., D]."""
        logits: Tensor = self.head(x)
        if self.config.logit_cap is None:
            return logits
        return soft_cap(logits.float() if logits.dtype.itemsize < 4 else logits, self.config.logit_cap)

    def check(self, tokens: Any, state: Any, reset: Any, lengths: Any) -> None:
        """ValueError, in one sentence, for input that does not fit this model."""
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int32, torch.int64):
            found = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens are {found}; pass a tensor of integers (int32 or int64), [batch, time].")
        if tokens.ndim != 2 or not tokens.shape[1]:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; pass [batch, time], with a time of at least 1.")
        (batch, steps), vocab = tokens.shape, self.config.vocab_size
        checked_rows(tokens, reset, lengths)
        # values are checked on CPUs only: reading them would wait for a GPU, where the embedding reports them;
        # traced and transformed tensors have no values
        if tokens.device.type == "cpu" and batch and tracer() is None:
            if wrong := [int(n) for n in tokens.aminmax() if not 0 <= n < vocab]:
                raise ValueError(
                    f"token {wrong[0]} is outside the vocabulary of {vocab}; use the model's own tokenizer."
                )
            if lengths is not None and (bad := [n for n in lengths.tolist() if not 0 <= n <= steps]):
                raise ValueError(
                    f"lengths_B holds {bad[0]}; it must lie between 0 and the {steps} steps of these tokens."
                )
        if state is not None:
            names = [f"block {index}" for index in range(len(self.blocks))]
            names += [] if self.positions is None else ["the positions"]
            if not isinstance(state, tuple) or len(state) != len(names):
                raise ValueError(
                    f"the state has {len(state) if isinstance(state, tuple) else type(state).__name__} entries for "
                    f"{len(self.blocks)} blocks{' and positions' if self.positions is not None else ''}; "
                    "pass the state that this model returned, or None."
                )
            for name, given, expected in zip(names, state, self.shapes(batch), strict=True):
                check_state(given, expected, name)
        if self.positions is not None:
            self.positions.check(tokens, None if state is None else state[-1], reset, lengths)

    def shapes(self, batch: int) -> LMState:
        """The expected state on the meta device: structure, shapes and dtypes. The last one is cached, for decoding."""
        key = batch, self.embed.weight.dtype
        if self.shapes_cache is not None and self.shapes_cache[0] == key:
            return self.shapes_cache[1]
        shapes = tuple(part.zero_state(batch, torch.device("meta")) for part in self.stateful)
        if tracer() is None:
            self.shapes_cache = key, shapes
        return shapes

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of every block, in order."""
        return [cast("Mixer", block.mixer) for block in self.blocks]

    @property
    def stateful(self) -> "list[Mixer | PositionTable]":
        """The modules with a state, in the order of the model's state: mixers, and positions if there are any."""
        return [*self.mixers, *([] if self.positions is None else [self.positions])]

    def zero_state(self, batch: int) -> LMState:
        """State before the first token for `batch` rows, the same as state=None."""
        return tuple(part.zero_state(batch) for part in self.stateful)

    def state_bytes(self, length: int = 0) -> int:
        """Bytes of one sequence's state after `length` tokens. Only attention makes it depend on the length."""
        return sum(part.state_bytes(length) for part in self.stateful)

    def read(
        self, prompts: "Tokens | Sequence[Tokens]", after: "Snapshot | None" = None, *, chunk_len: int = 512
    ) -> "Snapshot":
        """Snapshot after one prompt, or after several of any lengths, read without gradients and dropout.

        prompts: ids, at least one each. after: a snapshot to go on from, one row per prompt.
        At most `chunk_len` tokens of a prompt are in flight, and logits are made of its last token only: memory does
        not grow with the prompt. Raises ValueError for prompts that cannot be read and for another model's snapshot.
        """
        return read(self, prompts, after, chunk_len=chunk_len)

    def summary(self, length: int = 2048) -> str:
        """Blocks, parameters, FLOPs per token and state bytes as a table in plain text; `length` is the context."""
        return summary(self, length)
