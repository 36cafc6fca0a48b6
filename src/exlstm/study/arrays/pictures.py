"""The compared nets of images, which are read as rows of pixels: VisionXLSTM, a Transformer encoder, convolutions.

B images  P pixels  H height  W width of an image  N patches  E model width  C classes
"""

from typing import Any

import torch
from torch import Tensor, nn

from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.models.block import BlockConfig
from exlstm.models.vision import VisionConfig, VisionXLSTM
from exlstm.study.arrays.bodies import transformer


class PixelRows(nn.Module):
    """A net of images [B, 1, H, W] that is given their pixels as rows [B, P, 1], from left to right and downwards."""

    def __init__(self, net: nn.Module, side: int) -> None:
        super().__init__()
        self.net, self.side = net, side

    def forward(self, x_BP1: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits [B, C]."""
        y_BC: Tensor = self.net(x_BP1.view(len(x_BP1), 1, self.side, self.side))
        return y_BC


class VisionTransformer(nn.Module):
    """Patches by a convolution, learned positions, a Transformer encoder, and a map of the mean (Dosovitskiy 2021)."""

    def __init__(
        self, side: int, patch: int, classes: int, width: int, hidden: int, *, heads: int, layers: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.positions_NE = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.encoder = transformer(width, hidden, heads=heads, layers=layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Logits [B, C]."""
        x_BNE = self.embed(x_B1HW).flatten(2).mT + self.positions_NE
        y_BC: Tensor = self.head(self.encoder(x_BNE).mean(1))
        return y_BC


def convolutions(patch: int, classes: int, width: int) -> nn.Module:
    """Patches by a convolution, two of 3 by 3 pixels with batch norms, and a map of the mean over places."""

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    first: list[nn.Module] = [nn.Conv2d(1, width, patch, stride=patch), nn.ReLU()]
    last: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes)]
    return nn.Sequential(*first, *layer(width, width), *layer(width, 2 * width), *last)


def vision(side: int, patch: int, classes: int, width: int, inner: int, **options: Any) -> VisionXLSTM:
    """Two mLSTM blocks over patches, of an inner width, which is a multiple of 4."""
    mixer = MLSTMConfig(heads=options["heads"], up_factor=inner / width, up_multiple=4)
    blocks = (BlockConfig(mixer=mixer),) * options["layers"]
    config = VisionConfig(
        height=side, breadth=side, channels=1, classes=classes, width=width, patch=patch, blocks=blocks
    )
    return VisionXLSTM(config)
