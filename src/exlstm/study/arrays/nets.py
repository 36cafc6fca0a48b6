"""The compared nets of arrays, at equal parameters: patches of steps, a body, and a linear map behind it.

    net_of("slstm", shape, 20_000)      an sLSTM whose width makes 20,000 parameters, within 5 %

B rows  T time  D numbers of a step  V width of a body's output  C classes, or targets of a step
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from exlstm.mixers.mamba import MambaConfig
from exlstm.models.block import BlockConfig
from exlstm.models.encoder import XLSTM, EncoderConfig, encoder_from_pattern
from exlstm.ops.common import length_mask
from exlstm.rnn import MLSTM, SLSTM
from exlstm.study.arrays.bodies import (
    AttentionBody,
    Body,
    ConvolutionBody,
    DropInBody,
    LinearBody,
    StackBody,
    TorchBody,
)
from exlstm.study.arrays.pictures import PixelRows, VisionTransformer, convolutions, vision

# layers of stacks and of the mLSTM, in which nothing recurs; other recurrent nets have one, in one direction or two
HEADS, LAYERS = 2, 2
_CLOSE = 0.05  # relative difference of parameter counts that are called equal
_WIDEST = 1024


class NetSize(NamedTuple):
    """The size of a net. inner: of an MLP, of keys, or of an up-projection, in a net that has one."""

    width: int
    inner: int


@dataclass(frozen=True, kw_only=True)
class NetShape:
    """What a net is made for. steps: the most of a row. patch: so many steps, or pixels of a side, are one.

    causal: targets at every step, which see no later step; else a class of the whole row.
    """

    inputs: int
    outputs: int
    steps: int
    causal: bool
    patch: int = 1


class ArrayNet(nn.Module):
    """Patches of steps, a body, and a linear map: of the mean over a row's steps, or of every step if it is causal."""

    def __init__(self, body: Body, shape: NetShape) -> None:
        super().__init__()
        self.body, self.shape = body, shape
        self.head = nn.Linear(body.width, shape.outputs)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits [B, C], or of a causal net targets [B, T, C]. lengths_B: None for rows that all have T steps."""
        if self.shape.causal:
            return self.read(x_BTD, None)[0]
        x_BTD, lengths_B = patches(x_BTD, lengths_B, self.shape.patch)
        y_BTV, _ = self.body(x_BTD, lengths_B)
        if lengths_B is None:
            pooled_BV = y_BTV.mean(1)
        else:
            own_BT1 = length_mask(lengths_B, y_BTV.shape[1])[..., None]
            pooled_BV = y_BTV.where(own_BT1, 0).sum(1) / lengths_B[:, None]
        y_BC: Tensor = self.head(pooled_BV)
        return y_BC

    def read(self, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Targets [B, T, C] of a causal net, and the state behind the last step."""
        y_BTV, state = self.body(x_BTD, None, state)
        return self.head(y_BTV), state


class FlatLinear(nn.Module):
    """A linear map of a whole row, 0 behind its end (logistic regression)."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.steps = shape.steps
        self.head = nn.Linear(shape.steps * shape.inputs, shape.outputs)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits [B, C]."""
        y_BC: Tensor = self.head(functional.pad(x_BTD, (0, 0, 0, self.steps - x_BTD.shape[1])).flatten(1))
        return y_BC


def patches(x_BTD: Tensor, lengths_B: Tensor | None, patch: int) -> tuple[Tensor, Tensor | None]:
    """Steps of so many steps each, 0 behind the end of a row, and the lengths of rows in these."""
    if patch == 1:
        return x_BTD, lengths_B
    whole = functional.pad(x_BTD, (0, 0, 0, -x_BTD.shape[1] % patch))
    cut = torch.unflatten(whole, 1, (-1, patch)).flatten(2)
    return cut, None if lengths_B is None else -(-lengths_B // patch)


class NetKind(NamedTuple):
    """How to make a net of a kind. unit: of its width, 0 for none. usual: its inner size at a width, 0 for none."""

    build: Callable[[NetShape, NetSize], nn.Module]
    unit: int = 1
    usual: Callable[[int], int] = lambda width: 0
    inner_unit: int = 1


def _inputs(shape: NetShape) -> int:
    return shape.inputs * (1 if shape.causal else shape.patch)


def _recurrent(kind: Callable[..., nn.Module], body: type[DropInBody], **options: Any) -> Callable[..., nn.Module]:
    def build(shape: NetShape, size: NetSize) -> nn.Module:
        both = not shape.causal
        more = {"qk_size": size.inner} if size.inner else {}
        net = kind(_inputs(shape), size.width, batch_first=True, bidirectional=both, **options, **more)
        return ArrayNet(body(net, size.width * (1 + both)), shape)

    return build


def _stack(config_of: Callable[[NetShape, NetSize], EncoderConfig]) -> Callable[..., nn.Module]:
    def build(shape: NetShape, size: NetSize) -> nn.Module:
        config = config_of(shape, size)
        return ArrayNet(StackBody(XLSTM(config.input_size, config.width, config=config)), shape)

    return build


def _xlstm(shape: NetShape, size: NetSize) -> EncoderConfig:
    """An mLSTM block and an sLSTM block, whose MLP has the inner size."""
    config = encoder_from_pattern(
        "ms", input_size=_inputs(shape), width=size.width, heads=HEADS, bidirectional=not shape.causal
    )
    blocks = tuple(
        block if block.mlp is None else replace(block, mlp=replace(block.mlp, hidden=size.inner))
        for block in config.blocks
    )
    return replace(config, blocks=blocks)


def _mamba(shape: NetShape, size: NetSize) -> EncoderConfig:
    """Blocks of Mamba of an inner size."""
    blocks = (BlockConfig(mixer=MambaConfig(up_factor=size.inner / size.width)),) * LAYERS
    return EncoderConfig(
        input_size=_inputs(shape), width=size.width, blocks=blocks, norm="rms", bidirectional=not shape.causal
    )


def _attention(shape: NetShape, size: NetSize) -> nn.Module:
    body = AttentionBody(_inputs(shape), size.width, size.inner, heads=HEADS, layers=LAYERS, causal=shape.causal)
    return ArrayNet(body, shape)


def _convolution(shape: NetShape, size: NetSize) -> nn.Module:
    return ArrayNet(ConvolutionBody(_inputs(shape), size.width, causal=shape.causal), shape)


def _linear(shape: NetShape, size: NetSize) -> nn.Module:
    return ArrayNet(LinearBody(shape.inputs), shape) if shape.causal else FlatLinear(shape)


def _picture(build: Callable[[int, NetShape, NetSize], nn.Module]) -> Callable[[NetShape, NetSize], nn.Module]:
    def of_rows(shape: NetShape, size: NetSize) -> nn.Module:
        side = isqrt(shape.steps)
        if side * side != shape.steps or shape.inputs != 1 or side % shape.patch:
            raise ValueError(
                f"rows of {shape.steps} steps of {shape.inputs} numbers are no square image in patches of side "
                f"{shape.patch}; give rows of pixels."
            )
        return PixelRows(build(side, shape, size), side)

    return of_rows


def _vision(side: int, shape: NetShape, size: NetSize) -> nn.Module:
    return vision(side, shape.patch, shape.outputs, *size, heads=HEADS, layers=LAYERS)


def _transformer(side: int, shape: NetShape, size: NetSize) -> nn.Module:
    return VisionTransformer(side, shape.patch, shape.outputs, *size, heads=HEADS, layers=LAYERS)


NETS: Mapping[str, NetKind] = MappingProxyType(
    {
        "slstm": NetKind(_recurrent(SLSTM, DropInBody, num_heads=HEADS), HEADS),
        "mlstm": NetKind(
            _recurrent(MLSTM, DropInBody, num_heads=HEADS, num_layers=LAYERS), HEADS, lambda width: width // HEADS // 2
        ),
        "xlstm": NetKind(_stack(_xlstm), 4, lambda width: 4 * width // 3),
        "lstm": NetKind(_recurrent(nn.LSTM, TorchBody)),
        "gru": NetKind(_recurrent(nn.GRU, TorchBody)),
        "attention": NetKind(_attention, 2 * HEADS, lambda width: 2 * width),
        "mamba": NetKind(_stack(_mamba), 2, lambda width: 2 * width),
        "cnn": NetKind(_convolution),
        "linear": NetKind(_linear, 0),
        "vision": NetKind(_picture(_vision), 4, lambda width: 2 * width, inner_unit=4),
        "vit": NetKind(_picture(_transformer), 2 * HEADS, lambda width: 2 * width),
        "cnn2d": NetKind(_picture(lambda side, shape, size: convolutions(shape.patch, shape.outputs, size.width))),
    }
)


def check_net(kind: str) -> None:
    """ValueError for a name that is not in NETS."""
    if kind not in NETS:
        raise ValueError(f"there is no net {kind!r}; use one of {', '.join(NETS)}.")


def net_of(kind: str, shape: NetShape, target: int) -> nn.Module:
    """A net of so many parameters, of torch's random numbers. ValueError for a name that is not in NETS."""
    return NETS[kind].build(shape, size_of(kind, shape, target))


@lru_cache(maxsize=256)
def size_of(kind: str, shape: NetShape, target: int) -> NetSize:
    """The size at which a net has about `target` parameters; that of a linear map is given by its shape.

    ValueError for a name that is not in NETS, and if no size is within 5 %.
    """
    check_net(kind)
    unit, usual, inner_unit = NETS[kind].unit, NETS[kind].usual, NETS[kind].inner_unit
    if not unit:
        return NetSize(0, 0)

    def at(width: int) -> NetSize:
        return NetSize(width, -(-usual(width) // inner_unit) * inner_unit)

    def count(size: NetSize) -> int:
        return _parameters(kind, shape, size)

    def inner_near(size: NetSize) -> list[int]:
        enough = _first(lambda number: count(size._replace(inner=inner_unit * number)) >= target, 4 * _WIDEST)
        return [number for number in (enough - 1, enough) if number >= 1]

    width = unit * _first(lambda number: count(at(unit * number)) >= target, _WIDEST // unit)
    near = [at(each) for each in (width - unit, width) if each >= unit]
    if usual(width):
        near = [size._replace(inner=inner_unit * number) for size in near for number in inner_near(size)]
    best = min(near, key=lambda size: abs(count(size) - target))
    if abs(count(best) - target) > _CLOSE * target:
        raise ValueError(
            f"a net {kind} of {shape.inputs} inputs cannot have {target:,} parameters, the nearest is "
            f"{count(best):,}; choose another number."
        )
    return best


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest number from 1 for which this holds; it holds for all larger ones."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _parameters(kind: str, shape: NetShape, size: NetSize) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in NETS[kind].build(shape, size).parameters())
