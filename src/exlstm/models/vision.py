"""An image as a row of patches: blocks that read it in turns from the first patch and from the last.

    x = patches(image) + positions;  x = block(x);  x = reversed(block(reversed(x)));  ...;  y = head(norm(x))

After Vision-LSTM (Alkin et al. 2024, arXiv:2406.04303), whose blocks have a convolution in two dimensions besides.

B images  I channels  H height  W width of an image  N patches  D model width  E input width of the head  C classes
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from exlstm.models.block import BlockConfig
from exlstm.models.encoder import XLSTM, EncoderConfig
from exlstm.models.pattern import blocks_from_pattern
from exlstm.nn import init
from exlstm.nn.fields import Positive, Share, Size, check_fields
from exlstm.nn.linear import Linear
from exlstm.ops.arguments import described
from exlstm.ops.norm import Norm

_POSITION = 0.02  # deviation of the first positions


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The whole architecture of a `VisionXLSTM`.

    height, breadth: of an image in pixels, multiples of `patch`, the side of a patch. pool: what the head reads: the
    mean over patches, or the first and the last side by side. blocks: all blocks; every second one reads backwards.
    """

    height: Size
    breadth: Size
    channels: Size
    classes: Size
    width: Size
    blocks: tuple[BlockConfig, ...]
    patch: Size = 16
    pool: Literal["mean", "ends"] = "mean"
    norm: Norm = "layer"
    norm_eps: Positive = 1e-6
    norm_bias: bool = True
    dropout: Share = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.blocks:
            raise ValueError("blocks is (); a model of images needs at least 1.")
        if self.height % self.patch or self.breadth % self.patch:
            raise ValueError(
                f"patch is {self.patch}; it must divide the height {self.height} and the breadth {self.breadth}."
            )


def vision_from_pattern(
    pattern: str, *, height: int, breadth: int, channels: int, classes: int, width: int, patch: int = 16, heads: int = 4
) -> VisionConfig:
    """A model of images of the blocks of a pattern; "mlstm*24" at width 192 is as wide and deep as the smallest ViL."""
    blocks = blocks_from_pattern(pattern, width=width, heads=heads)
    return VisionConfig(
        height=height, breadth=breadth, channels=channels, classes=classes, width=width, patch=patch, blocks=blocks
    )


class VisionXLSTM(nn.Module):
    """Classes of images: patches by a convolution, learned positions, blocks in alternating directions, a head.

    config = vision_from_pattern("mm", height=32, breadth=32, channels=3, classes=10, width=64, patch=4)
    logits = exlstm.VisionXLSTM(config)(images)      # [B, 3, 32, 32] -> [B, 10]
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config, D = config, config.width
        self.embed = nn.Conv2d(config.channels, D, config.patch, stride=config.patch)
        self.positions_ND = nn.Parameter(
            torch.empty((config.height // config.patch) * (config.breadth // config.patch), D)
        )
        around = {name: getattr(config, name) for name in ("norm", "norm_eps", "norm_bias", "dropout")}
        encoder = EncoderConfig(input_size=D, width=D, blocks=config.blocks, bidirectional=True, **around)
        self.encoder = XLSTM(D, D, config=encoder)
        inputs = 2 * D if config.pool == "ends" else D
        self.head = Linear(inputs, config.classes)
        init.fill(self.head, {"weight": init.small(inputs), "bias": init.zeros})
        if not self.positions_ND.is_meta:
            nn.init.normal_(self.positions_ND, std=_POSITION)

    def forward(self, images_BIHW: Tensor) -> Tensor:
        """[B, channels, height, breadth] -> logits [B, classes]. ValueError for images of another shape or dtype."""
        y_BND = self.features(images_BIHW)
        pooled_BE = y_BND.mean(1) if self.config.pool == "mean" else y_BND[:, [0, -1]].flatten(1)
        logits_BC: Tensor = self.head(pooled_BE)
        return logits_BC

    def features(self, images_BIHW: Tensor) -> Tensor:
        """[B, channels, height, breadth] -> a vector of every patch [B, N, D], row by row."""
        config, weight = self.config, self.embed.weight
        wanted = (config.channels, config.height, config.breadth)
        if not isinstance(images_BIHW, Tensor) or images_BIHW.ndim != 4 or tuple(images_BIHW.shape[1:]) != wanted:
            raise ValueError(
                f"images are {described(images_BIHW)}; pass [batch, {', '.join(map(str, wanted))}] of {weight.dtype}."
            )
        if images_BIHW.dtype is not weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(f"images are {images_BIHW.dtype} and the weights {weight.dtype}; convert one of them.")
        x_BND = self.embed(images_BIHW).flatten(2).mT + self.positions_ND
        y_BND: Tensor = self.encoder(x_BND)[0]
        return y_BND
