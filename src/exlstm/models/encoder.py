"""An encoder of continuous inputs: the residual blocks of a language model, between a projection and a norm.

    x = project(x);  x = x + mixer(norm(x));  x = x + mlp(norm(x));  ...;  y = norm(x)

B batch  T time  I input width  D model width
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.mixers import MIXERS
from exlstm.mixers.contract import mask_tail
from exlstm.mixers.state import LMState
from exlstm.models.block import Block, BlockConfig, BlockStack, StatefulPart, width_norm
from exlstm.models.pattern import blocks_from_pattern, norm_of
from exlstm.nn.borders import Borders, Reversal
from exlstm.nn.fields import Positive, Share, Size, check_fields
from exlstm.nn.linear import Linear
from exlstm.ops.arguments import described
from exlstm.ops.common import length_mask
from exlstm.ops.norm import Norm
from exlstm.rnn.arguments import checked_lengths, checked_reset
from exlstm.runtime.tracing import tracer

NO_BORDERS = Borders()


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The whole architecture of an `XLSTM`. blocks lists every block in order.

    A linear map with a bias takes inputs of another width than `width` to it. dropout: of the outputs of mixers and
    MLPs, in training only. norm_bias: norms over the width have a bias. out_norm: a norm after the last block.
    residual: False is for comparisons with plain stacks, whose blocks are x = mixer(x), and x = mlp(x), without norms.
    bidirectional: every second layer reads from a row's last step to its first. A layer is a block, or two of them if a
    mixer has a partner (`BlockStyle`).
    """

    input_size: Size
    width: Size
    blocks: tuple[BlockConfig, ...]
    norm: Norm = "layer"
    norm_eps: Positive = 1e-5
    norm_bias: bool = False
    dropout: Share = 0.0
    out_norm: bool = True
    residual: bool = True
    bidirectional: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.blocks:
            raise ValueError("blocks is (); an encoder needs at least 1.")


def encoder_from_pattern(
    pattern: str,
    *,
    input_size: int,
    width: int,
    num_layers: int | None = None,
    heads: int = 4,
    dropout: float = 0.0,
    bidirectional: bool = False,
) -> EncoderConfig:
    """An encoder of these blocks, with RMS norms where every block is published with them, else layer norms.

    num_layers: so many letters or names of the pattern, which is repeated; None: the pattern once.
    """
    blocks = blocks_from_pattern(pattern, width=width, heads=heads, num_layers=num_layers)
    kind, eps = norm_of(blocks)
    around: Any = {"norm": kind, "norm_eps": eps, "dropout": dropout, "bidirectional": bidirectional}
    return EncoderConfig(input_size=input_size, width=width, blocks=blocks, **around)


def layer_numbers(blocks: Sequence[BlockConfig]) -> list[int]:
    """The layer of every block, from 0: a partner is in the layer of the block before it."""
    numbers = [0]
    for before, block in pairwise(blocks):
        partner = before.mixer.style.partner
        together = partner is not None and isinstance(block.mixer, MIXERS[partner.name])
        numbers.append(numbers[-1] + (not together))
    return numbers


class XLSTM(BlockStack):
    """The residual stack of xLSTM (Beck et al. 2024, arXiv:2405.04517) as an encoder of continuous inputs.

        encoder = exlstm.XLSTM(10, 64, num_layers=4)
        y, state = encoder(x)                                   # [B, T, 10] -> [B, T, 64]
        y, state = encoder(x, state, lengths=n, reset=done)     # goes on; clears rows where an episode begins

    Inputs of another width than hidden_size are projected to it; others enter as they are, so that an encoder may
    stand in place of a `torch.nn.TransformerEncoder`.
    pattern: letters or names of the blocks (`exlstm.models.pattern`), repeated up to num_layers; None: as many as the
    pattern has, which are 2 of "ms". num_heads: of every block. dropout: of the outputs of mixers and MLPs.
    bidirectional: every second layer reads from the end, at the same width, as in Vision-LSTM (Alkin et al. 2024,
    arXiv:2406.04303). There is no state then: () is returned, and none is taken.
    config: the whole architecture, in place of all options before it.
    gradient_checkpointing: set to True, the backward recomputes the activations inside of every block.
    """

    config: EncoderConfig

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int | None = None,
        *,
        pattern: str = "ms",
        num_heads: int = 4,
        dropout: float = 0.0,
        bidirectional: bool = False,
        config: EncoderConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, Any] = {"num_layers": num_layers, "dropout": dropout, "bidirectional": bidirectional}
        if config is None:
            config = encoder_from_pattern(pattern, input_size=input_size, width=hidden_size, heads=num_heads, **options)
        else:
            check_agreement(config, input_size, hidden_size)
            check_left_out({"pattern": pattern, "num_heads": num_heads, **options})
        super().__init__(config)
        layers = layer_numbers(config.blocks)
        self.input_size, self.hidden_size, self.num_layers = config.input_size, config.width, layers[-1] + 1
        self.bidirectional = config.bidirectional
        self.turned = [config.bidirectional and layer % 2 == 1 for layer in layers]
        with nullcontext() if device is None else torch.device(device):
            same = config.input_size == config.width
            self.projection = None if same else Linear(config.input_size, config.width)
            self.blocks = nn.ModuleList(Block(config, index) for index in range(len(config.blocks)))
            self.norm = width_norm(config) if config.out_norm else None
        if dtype is not None:
            self.to(dtype)

    def forward(
        self, x_BTI: Tensor, state: LMState | None = None, *, lengths: Any = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LMState]:
        """[B, T, input_size] -> [B, T, hidden_size], and the state after the last step; T >= 1.

        state: what an earlier call returned for these rows, or None. lengths: integers [B]; later steps of a row are
        padding, whatever they hold: y is 0 there. reset (bool) [B, T]: clears a row's memory before that step, and in
        a layer that reads from the end after it.
        A batch of no rows gives empty results. Raises ValueError for input that does not fit.
        """
        borders = self.checked_borders(x_BTI, state, lengths, reset)
        return self.advance(x_BTI, state, borders)

    def advance(
        self, x_BTI: Tensor, state: LMState | None = None, borders: Borders = NO_BORDERS
    ) -> tuple[Tensor, LMState]:
        """`forward` of checked input."""
        x_BTI = mask_tail(x_BTI, borders.lengths_B)
        x_BTD = x_BTI if self.projection is None else self.projection(x_BTI)
        after: LMState = ()
        if self.bidirectional:
            x_BTD = self.run_both_ways(x_BTD, borders)
        else:
            x_BTD, after = self.run_blocks(x_BTD, state, borders)
        y_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
        return mask_tail(y_BTD, borders.lengths_B), after

    def run_both_ways(self, x_BTD: Tensor, borders: Borders) -> Tensor:
        """[B, T, D] through all blocks, in turned layers with time reversed."""
        reverse = Reversal.of(borders.lengths_B, x_BTD.shape[1])
        reversed_borders, is_reversed = reverse.borders(borders), False
        for index, turned in enumerate(self.turned):
            if turned != is_reversed:
                x_BTD, is_reversed = reverse(x_BTD), turned
            x_BTD, _ = self.run_block(index, x_BTD, None, reversed_borders if turned else borders)
        return reverse(x_BTD) if is_reversed else x_BTD

    def checked_borders(self, x: Any, state: Any, lengths: Any, reset: Any) -> Borders:
        """Lengths in int64 and resets. ValueError, in one sentence, for input that does not fit this model."""
        if not isinstance(x, Tensor) or x.ndim != 3 or not x.shape[1] or x.shape[2] != self.input_size:
            found = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
            raise ValueError(f"x {found}; pass [batch, time, {self.input_size}], with a time of at least 1.")
        weight = self.any_weight
        if x.device != weight.device or (x.dtype is not weight.dtype and not torch.is_autocast_enabled(x.device.type)):
            raise ValueError(
                f"x is {x.dtype} on {x.device}, and the weights are {weight.dtype} on {weight.device}; "
                "convert one of them."
            )
        if state is not None:
            self.check_state(state, x.shape[0])
        return Borders(
            None if reset is None else checked_reset(reset, tuple(x.shape[:2]), x.device),
            None if lengths is None else checked_lengths(lengths, x).long(),
        )

    def check_state(self, state: Any, batch: int) -> None:
        """ValueError, in one sentence, unless `state` fits this model and batch."""
        if self.bidirectional:
            raise ValueError(
                f"the state is a {type(state).__name__}, and a bidirectional XLSTM has none to go on from; pass None."
            )
        super().check_state(state, batch)

    @property
    def stateful(self) -> Sequence[StatefulPart]:
        """The modules with a state: mixers, and none if time is read both ways."""
        return () if self.bidirectional else self.mixers

    def extra_repr(self) -> str:
        """Sizes, and what differs from the defaults."""
        both = ", bidirectional=True" if self.bidirectional else ""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{both}"


def check_agreement(config: EncoderConfig, input_size: int, hidden_size: int) -> None:
    """ValueError unless these are the config's sizes."""
    for name, given, own in (("input_size", input_size, config.input_size), ("hidden_size", hidden_size, config.width)):
        if given != own:
            raise ValueError(f"{name} is {given!r}, and that of the config {own}; pass the same.")


def check_left_out(options: dict[str, Any]) -> None:
    """ValueError unless all of these options of `XLSTM` have their defaults."""
    defaults = signature(XLSTM).parameters
    for name, given in options.items():
        if given != defaults[name].default:
            raise ValueError(
                f"{name} is {given!r} beside a config, which has the whole architecture; leave {name} out."
            )


def lengths_of(src_key_padding_mask: Tensor) -> Tensor:
    """Lengths [B], as `XLSTM` takes them, of a Transformer's padding mask: bool [B, T], True for padding.

    Raises ValueError for another kind of mask, and for padding before a row's last real step.
    """
    mask_BT = src_key_padding_mask
    if not isinstance(mask_BT, Tensor) or mask_BT.dtype is not torch.bool or mask_BT.ndim != 2:
        raise ValueError(
            f"src_key_padding_mask is {described(mask_BT)}; pass torch.bool of [batch, time], True for padding."
        )
    lengths_B = (~mask_BT).sum(1)
    if tracer((mask_BT,)) is None:
        wrong_B = (mask_BT == length_mask(lengths_B, mask_BT.shape[1])).any(1)
        if wrong_B.any():
            row = int(wrong_B.nonzero()[0])
            where = "at the left" if mask_BT[row, 0] else "between real steps"
            raise ValueError(
                f"row {row} of src_key_padding_mask has padding {where}; move it to the right end of the row."
            )
    return lengths_B
