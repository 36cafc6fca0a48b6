"""The models of problems: a language model, or its blocks between another input and another output.

B batch  T time  D width of the input or of the model  C classes
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import Mixer
from exlstm.models.lm import LM, LMConfig
from exlstm.nn import init
from exlstm.nn.linear import Linear


class Regressor(nn.Module):
    """The blocks of a language model between a linear map of real inputs and one number per step."""

    def __init__(self, architecture: LMConfig, inputs: int) -> None:
        super().__init__()
        lm = LM(replace(architecture, vocab_size=1))
        self.config, self.blocks, self.norm = architecture, lm.blocks, lm.norm
        self.embed = Linear(inputs, architecture.width)
        self.head = Linear(architecture.width, 1)
        for layer, width in ((self.embed, inputs), (self.head, architecture.width)):
            init.fill(layer, {"weight": init.small(width), "bias": init.zeros})

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Real inputs [B, T, D] -> a number per step, [B, T]."""
        x = self.embed(x_BTD)
        for block in self.blocks:
            x, _ = block(x)
        y_BT: Tensor = self.head(x if self.norm is None else self.norm(x))[..., 0]
        return y_BT

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of every block, in order."""
        return [cast("Mixer", block.mixer) for block in self.blocks]


class Classifier(nn.Module):
    """A class of a row of tokens: the blocks of a language model, the mean of their outputs over time, a linear map.

    both_ways: a second stack of blocks reads every row from its end; the means of both are added.
    """

    def __init__(self, architecture: LMConfig, classes: int, *, both_ways: bool) -> None:
        super().__init__()
        self.config = architecture
        self.stacks = nn.ModuleList(LM(architecture) for _ in range(1 + both_ways))
        for lm in self.stacks:
            lm.head = nn.Identity()  # it has no part in this, and would count
        self.head = Linear(architecture.width, classes)
        init.fill(self.head, {"weight": init.small(architecture.width), "bias": init.zeros})

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Tokens and the length of each row -> logits [B, C]."""
        rows = [tokens_BT, *([backwards(tokens_BT, lengths_B)] if len(self.stacks) > 1 else [])]
        valid_BT1 = (torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None])[..., None]
        # padding costs time even if there is none
        padded_B = None if bool(valid_BT1.all()) else lengths_B
        means = []
        for stack, row_BT in zip(self.stacks, rows, strict=True):
            x_BTD, _ = cast("LM", stack).hidden(row_BT, lengths_B=padded_B)
            means.append(x_BTD.where(valid_BT1, 0).sum(1) / lengths_B[:, None])
        y_BC: Tensor = self.head(torch.stack(means).sum(0))
        return y_BC

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of all stacks."""
        return nn.ModuleList(block for stack in self.stacks for block in cast("LM", stack).blocks)

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of every block of all stacks, in order."""
        return [mixer for stack in self.stacks for mixer in cast("LM", stack).mixers]


Model = LM | Regressor | Classifier


def backwards(tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Every row from its end to its beginning; padding stays where it is."""
    steps_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    place_BT = lengths_B[:, None] - 1 - steps_T
    return tokens_BT.gather(1, place_BT.clamp(min=0)).where(place_BT >= 0, 0)
