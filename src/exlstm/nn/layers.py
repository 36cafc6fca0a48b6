"""Modules that hold parameters and call one op each.

B batch  T time  D width  H blocks or heads  K input and V output width of each  W window  F hidden width of an MLP
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from exlstm.nn.linear import Linear
from exlstm.ops.block_linear import block_linear
from exlstm.ops.conv import ConvActivation, ConvState, causal_conv
from exlstm.ops.norm import Norm, head_norm, layer_norm, rms_norm

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "sigmoid", "selu"]


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, arXiv:2109.08668)."""
    return functional.relu(x).square()


def positive(x: Tensor) -> Tensor:
    """x + 1/2 for x >= 0, else sigmoid(x): continuous, and positive (Feng et al. 2024, arXiv:2410.01201)."""
    return functional.relu(x) + torch.sigmoid(-functional.relu(-x))


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,  # exact, with erf
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
    "relu2": squared_relu,
    "sigmoid": torch.sigmoid,
    "selu": functional.selu,
}


class WidthNorm(nn.Module):
    """Layer norm or RMS norm over the model width, then a gain (at first 1) and perhaps a bias (at first 0)."""

    def __init__(self, width: int, kind: Norm, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.kind, self.eps = kind, eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return (layer_norm if self.kind == "layer" else rms_norm)(x, self.weight, self.eps, self.bias)


class HeadNorm(nn.Module):
    """Layer norm or RMS norm within each head, with a gain per channel and perhaps a bias."""

    def __init__(self, heads: int, head_width: int, eps: float, bias: bool = False, kind: Norm = "layer") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads * head_width))
        self.bias = nn.Parameter(torch.zeros(heads * head_width)) if bias else None
        self.heads, self.eps, self.kind = heads, eps, kind

    def forward(self, x_BTHV: Tensor) -> Tensor:
        """[B, T, H, V] -> [B, T, H V]."""
        b_HV = None if self.bias is None else self.bias.view(self.heads, -1)
        return head_norm(x_BTHV, self.weight.view(self.heads, -1), self.eps, b_HV, norm=self.kind).flatten(2)


class BlockLinear(nn.Module):
    """Block-diagonal linear map of `blocks` equal matrices, and perhaps a bias."""

    backend = "auto"

    def __init__(self, width: int, blocks: int, bias: bool = False) -> None:
        super().__init__()
        size = width // blocks
        self.weight_HVK = nn.Parameter(torch.empty(blocks, size, size))
        self.bias_D = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y_BTD = block_linear(x_BTD, self.weight_HVK, backend=self.backend)
        return y_BTD if self.bias_D is None else y_BTD + self.bias_D.to(y_BTD.dtype)


class CausalConv(nn.Module):
    """Causal depthwise convolution over time, perhaps with a bias."""

    def __init__(self, width: int, window: int, bias: bool = True) -> None:
        super().__init__()
        self.weight_DW = nn.Parameter(torch.empty(width, window))
        self.bias_D = nn.Parameter(torch.empty(width)) if bias else None

    def forward(
        self, x_BTD: Tensor, state: ConvState, *,
        reset_BT: Tensor | None, lengths_B: Tensor | None, activation: ConvActivation = "none",
    ) -> tuple[Tensor, ConvState]:  # fmt: skip
        """[B, T, D] -> [B, T, D]; see `causal_conv`."""
        w_DW = self.weight_DW.to(x_BTD.dtype)
        b_D = None if self.bias_D is None else self.bias_D.to(x_BTD.dtype)
        return causal_conv(x_BTD, w_DW, b_D, state, reset_BT=reset_BT, lengths_B=lengths_B, activation=activation)


class MLP(nn.Module):
    """MLP: down(act(up(x))), or gated down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202), perhaps with biases.

    Gate and up are one matrix, gate first. ValueError for an activation that is not one of ACTIVATIONS.
    """

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool = False, gated: bool = True) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
        self.up = Linear(width, (2 if gated else 1) * hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)
        self.activation, self.gated = activation, gated

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        act, up = ACTIVATIONS[self.activation], self.up(x_BTD)
        if self.gated:
            gate_BTF, value_BTF = up.chunk(2, dim=-1)
            up = act(gate_BTF) * value_BTF
        else:
            up = act(up)
        y_BTD: Tensor = self.down(up)
        return y_BTD


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """Soft clipping to (-cap, cap): cap * tanh(x / cap). None: x."""
    if cap is None:
        return x
    # in place without gradients: autograd alone would read the intermediate
    return torch.tanh(x / cap) * cap if torch.is_grad_enabled() else (x / cap).tanh_().mul_(cap)


def round_up(x: float, multiple: int) -> int:
    """The smallest multiple that is at least x; widths of the paper's models are rounded so."""
    return -int(-x // multiple) * multiple
