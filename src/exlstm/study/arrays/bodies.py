"""The compared nets behind one call, without what stands before and behind them.

    y_BTV, state = body(x_BTD, lengths_B, state)

Nets with a memory go on from a state, which is a value. Nets without one have the newest steps as their state, and read
those again. A causal net sees no later step; others read a row from both ends.

B rows  T time  S steps that are seen  D numbers of a step  E width of a Transformer  V width of the output
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from exlstm.models.encoder import XLSTM
from exlstm.ops.common import length_mask

WINDOW = 64  # steps that a causal net without a memory sees again
LAGS = 32  # steps of the linear map of a causal row


class Body(nn.Module):
    """A net of this call. width: of its outputs."""

    width: int

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs [B, T, V] and the state behind the last step. lengths_B: None for rows that all have T steps."""
        raise NotImplementedError


class DropInBody(Body):
    """A recurrent net of ours."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.net, self.width = net, width

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """See `Body`."""
        y_BTV, state = self.net(x_BTD, state, lengths=lengths_B)
        return y_BTV, state


class TorchBody(DropInBody):
    """A recurrent net of torch, which takes rows of several lengths packed."""

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """See `Body`."""
        if lengths_B is None:
            y_BTV, state = self.net(x_BTD, state)
            return y_BTV, state
        packed = pack_padded_sequence(x_BTD, lengths_B, batch_first=True, enforce_sorted=False)
        out, state = self.net(packed, state)
        y_BTV, _ = pad_packed_sequence(out, batch_first=True, total_length=x_BTD.shape[1])
        return y_BTV, state


class StackBody(Body):
    """A residual stack of blocks."""

    def __init__(self, net: XLSTM) -> None:
        super().__init__()
        self.net, self.width = net, net.hidden_size

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """See `Body`."""
        y_BTV, state = self.net(x_BTD, state, lengths=lengths_B)
        return y_BTV, state


class WindowBody(Body):
    """A net without a memory: the steps of its window are its state."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """See `Body`. A state is for causal nets."""
        seen_BSD = x_BTD if state is None else torch.cat([state, x_BTD], dim=1)
        y_BTV = self.run(seen_BSD, lengths_B)[:, seen_BSD.shape[1] - x_BTD.shape[1] :]
        return y_BTV, seen_BSD[:, -self.window :]

    def run(self, x_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Outputs of all steps."""
        raise NotImplementedError


class AttentionBody(WindowBody):
    """torch's Transformer encoder with norms before its parts (Vaswani et al. 2017; Xiong et al. 2020)."""

    def __init__(self, inputs: int, width: int, hidden: int, *, heads: int, layers: int, causal: bool) -> None:
        super().__init__(WINDOW)
        self.width, self.causal = width, causal
        self.embed = nn.Linear(inputs, width)
        self.encoder = transformer(width, hidden, heads=heads, layers=layers)

    def run(self, x_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """See `WindowBody`."""
        T = x_BTD.shape[1]
        x_BTE = self.embed(x_BTD) + sinusoids(T, self.width)
        mask = torch.ones(T, T, dtype=torch.bool).triu(1) if self.causal else None
        padding = None if lengths_B is None else ~length_mask(lengths_B, T)
        y_BTE: Tensor = self.encoder(x_BTE, mask=mask, src_key_padding_mask=padding, is_causal=self.causal)
        return y_BTE


def transformer(width: int, hidden: int, *, heads: int, layers: int) -> nn.TransformerEncoder:
    """Layers of attention and an MLP, and a norm behind the last."""
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)


def sinusoids(steps: int, width: int) -> Tensor:
    """Sines and cosines of the place [T, E], of periods from 2 pi to 10,000 times as long (Vaswani et al. 2017)."""
    half = width // 2
    rate_E = torch.exp(-math.log(10_000) * torch.arange(half) / half)
    angle_TE = torch.arange(steps)[:, None] * rate_E
    return torch.cat([angle_TE.sin(), angle_TE.cos()], dim=1)


class ConvolutionBody(WindowBody):
    """Three convolutions over time with residuals; of a causal net none looks ahead, and there are no batch norms."""

    KERNEL, DILATIONS = 5, (1, 2, 4)

    def __init__(self, inputs: int, width: int, *, causal: bool) -> None:
        super().__init__((self.KERNEL - 1) * sum(self.DILATIONS))
        self.width, self.causal = width, causal
        self.layers = nn.ModuleList(
            nn.Conv1d(width if index else inputs, width, self.KERNEL, dilation=dilation)
            for index, dilation in enumerate(self.DILATIONS)
        )
        self.norms = nn.ModuleList(nn.Identity() if causal else nn.BatchNorm1d(width) for _ in self.DILATIONS)

    def run(self, x_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """See `WindowBody`. Padding stays 0 in every layer."""
        own_B1T = None if lengths_B is None else length_mask(lengths_B, x_BTD.shape[1])[:, None]
        x_BVT = x_BTD.mT
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            reach = (self.KERNEL - 1) * self.DILATIONS[index]
            around = (reach, 0) if self.causal else (reach // 2, reach - reach // 2)
            y_BVT = functional.relu(norm(layer(functional.pad(x_BVT, around))))
            y_BVT = y_BVT + x_BVT if index else y_BVT
            x_BVT = y_BVT if own_B1T is None else y_BVT.where(own_B1T, 0)
        return x_BVT.mT


class LinearBody(WindowBody):
    """The newest steps side by side, for the linear map behind it; 0 before the first."""

    def __init__(self, inputs: int) -> None:
        super().__init__(LAGS - 1)
        self.width = LAGS * inputs

    def run(self, x_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """See `WindowBody`."""
        return functional.pad(x_BTD, (0, 0, LAGS - 1, 0)).unfold(1, LAGS, 1).flatten(2)
