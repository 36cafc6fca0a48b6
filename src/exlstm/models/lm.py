"""A language model: embed, a stack of blocks (mixer, then perhaps an MLP, each with norm and residual), read out.

    x = embed(tokens);  x = x + mixer(norm(x));  x = x + mlp(norm(x));  ...;  logits = head(norm(x))

Between the embedding and the first block some models scale it, add learned positions, or norm it.

B batch  T time  D model width  C classes (vocabulary)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from exlstm.mixers.contract import mask_tail
from exlstm.mixers.state import LMState
from exlstm.models.block import Block, BlockConfig, BlockStack, StatefulPart, draws, width_norm
from exlstm.models.states.snapshot import Snapshot, Tokens, read
from exlstm.models.summary import summary
from exlstm.nn import init
from exlstm.nn.borders import Borders
from exlstm.nn.fields import Positive, Share, Size, check_fields
from exlstm.nn.layers import soft_cap
from exlstm.nn.linear import Linear
from exlstm.nn.positions import PositionTable
from exlstm.ops.arguments import checked_rows
from exlstm.ops.norm import Norm
from exlstm.runtime.tracing import tracer


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
        """True if training draws random numbers."""
        return draws(self)


class Embedding(nn.Embedding):
    """torch's Embedding without a draw on the meta device, for which torch would import its compiler for seconds."""

    def reset_parameters(self) -> None:
        """torch's draw on real devices, although LM overwrites it: the random numbers of later layers depend on it."""
        if not self.weight.is_meta:
            super().reset_parameters()


class LM(BlockStack):
    """Language model of an `LMConfig`.

        logits_BTC, state = model(tokens_BT)                  # train, prefill
        logits_BTC, state = model(next_token_B1, state)       # decode: the same call

    The state is a tuple with one entry per block, and one more where there are learned positions; it is a value, never
    changed in place.
    gradient_checkpointing: set to True, the backward recomputes the activations inside of every block.
    """

    config: LMConfig

    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
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
        x_BTD, after = self.run_blocks(x_BTD, state, Borders(reset_BT, lengths_B))
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
            self.check_state(state, batch)
        if self.positions is not None:
            self.positions.check(tokens, None if state is None else state[-1], reset, lengths)

    @property
    def any_weight(self) -> Tensor:
        """That of the embedding."""
        return self.embed.weight

    @property
    def stateful(self) -> Sequence[StatefulPart]:
        """The modules with a state, in the order of the model's state: mixers, and positions if there are any."""
        return [*self.mixers, *([] if self.positions is None else [self.positions])]

    @property
    def beside(self) -> tuple[str, ...]:
        """The positions, if there are any."""
        return () if self.positions is None else ("positions",)

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
