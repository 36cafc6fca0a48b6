"""Linear layers whose products with few rows run on our own kernels, and their quantized forms.

K inputs  N outputs  G groups of 128 inputs  P bytes of a group
"""

from collections.abc import Callable, Sequence
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from exlstm.ops import linear as op
from exlstm.ops import products
from exlstm.ops.common import without_autocast
from exlstm.runtime.internals import has_hooks, held_tensors
from exlstm.runtime.tracing import tracer


class Linear(nn.Linear):
    """torch's Linear with faster products of few rows in inference; parameters and initial values are the same.

    backend: see `exlstm.ops.linear.linear`; not saved.
    """

    backend = "auto"

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and the device of results."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., K] -> [..., N]."""
        weight, bias = self.weight, self.bias
        fits = x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)
        if not fits or x.shape[-1:] != weight.shape[1:]:
            return functional.linear(x, weight, bias)  # torch raises the error
        if x.dtype == weight.dtype and self.backend == "auto" and decoding():
            return without_gradients(x, (self,))[0]
        return op.linear(x, weight, bias, backend=self.backend)

    def stored(self) -> tuple[Tensor | None, ...]:
        """The tensors of the layer, bias included, by which a plan tells whether they changed."""
        held, _ = held_tensors(self)
        if "weight" in held and "bias" in held:
            return held["weight"], held["bias"]  # faster than attributes of a module
        return self.weight, self.bias  # parametrizations and pruning replace the parameter by an attribute

    def packed(self) -> op.Weight:
        """The weights in the form of the op."""
        return self.weight


class QuantizedLinear(nn.Module):
    """Linear map with weights of fewer bits in buffers, made from a Linear, without gradients.

    The bias stays as it was. With many rows, and on other devices than CPUs, weights are expanded to x's dtype.
    """

    bias: Tensor | None
    like: Tensor  # empty, with the dtype and the device of the original weight
    backend = "auto"

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.register_buffer("like", layer.weight.detach().new_empty(0), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves scales by `to`, `half` and the like without rounding them."""
        kept = {name: x for name, x in self.named_buffers(recurse=False) if name not in ("bias", "like")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, x in kept.items():
            if getattr(self, name).dtype != x.dtype:
                setattr(self, name, x.to(getattr(self, name).device))
        return self

    def packed(self) -> op.Weight:
        """The weights in the form of the op."""
        raise NotImplementedError

    def stored(self) -> tuple[Tensor | None, ...]:
        """The tensors of the layer, bias included, by which a plan tells whether they changed."""
        return tuple(held_tensors(self)[1].values())

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., K] -> [..., N] in x's dtype."""
        if self.backend == "auto" and decoding():
            return without_gradients(x, (self,))[0]
        return op.linear(x, self.packed(), self.bias, backend=self.backend)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Linear(QuantizedLinear):
    """int8 weights: one byte each, one scale per output."""

    weight_NK: Tensor
    scale_N: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        q_NK, scale_N = op.to_int8(layer.weight)
        self.register_buffer("weight_NK", q_NK)
        self.register_buffer("scale_N", scale_N)

    def packed(self) -> op.Weight:
        """The weights [N, K] in the form of the op."""
        return op.Int8Weight(self.weight_NK, self.scale_N)


class Int4Linear(QuantizedLinear):
    """int4 weights: half a byte each, a scale and an offset per group of 128 inputs."""

    weight_NGP: Tensor
    scale_NG: Tensor
    offset_NG: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        q_NGP, scale_NG, offset_NG, _ = op.to_int4(layer.weight)
        self.register_buffer("weight_NGP", q_NGP)
        self.register_buffer("scale_NG", scale_NG)
        self.register_buffer("offset_NG", offset_NG)

    def packed(self) -> op.Weight:
        """The weights [N, K] in the form of the op."""
        return op.Int4Weight(self.weight_NGP, self.scale_NG, self.offset_NG, self.in_features)


AnyLinear = Linear | QuantizedLinear
KNOWN = (Linear, Int8Linear, Int4Linear)
# plans for groups of layers in inference, keyed by the group's first layer
prepared: WeakKeyDictionary[nn.Module, op.Prepared] = WeakKeyDictionary()


def linears(x: Tensor, layers: Sequence[AnyLinear], wide: Sequence[AnyLinear] = ()) -> list[Tensor]:
    """[layer(x) for every layer], then `wide_linear` of x for every layer in `wide`.

    In decoding they are one launch: projections of one x, such as q, k, v and gates, cost what one large matrix does.
    """
    if not decoding() or not all(map(unwatched, (*layers, *wide))):
        return [*(layer(x) for layer in layers), *wide_linears(wide, x)]
    return without_gradients(x, layers, wide)


def decoding() -> bool:
    """True without autograd and tracing: then plans of earlier calls may be used."""
    return not torch.is_grad_enabled() and tracer() is None


def without_gradients(x: Tensor, layers: Sequence[AnyLinear], wide: Sequence[AnyLinear] = ()) -> list[Tensor]:
    """`linears` by a plan, which is made at the first call and again when tensors, addresses or dtypes change."""
    every = (*layers, *wide)
    tensors = [tensor for layer in every for tensor in layer.stored()]
    found = prepared.get(every[0])
    if found is None or found.maps[0][2] != x.dtype or not found.current(tensors):
        if any(isinstance(layer, Linear) and layer.weight.dtype != x.dtype for layer in every):
            return [*(layer(x) for layer in layers), *wide_linears(wide, x)]
        outputs = [*([x.dtype] * len(layers)), *([torch.promote_types(x.dtype, torch.float32)] * len(wide))]
        maps = [(layer.packed(), layer.bias, dtype) for layer, dtype in zip(every, outputs, strict=True)]
        found = prepared[every[0]] = op.Prepared(maps, tensors)
    return found(x)


def unwatched(layer: nn.Module) -> bool:
    """True if `layer.forward` may be bypassed: known class, default backend, no hooks."""
    return type(layer) in KNOWN and layer.backend == "auto" and not has_hooks(layer)


def wide_linears(layers: Sequence[AnyLinear], x: Tensor) -> list[Tensor]:
    """`wide_linear` of x for every layer, as one product: x is read once, and its gradient is written once."""
    weights = [layer.weight for layer in layers if isinstance(layer, Linear) and not has_hooks(layer)]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len(layers) < 2 or not len(weights) == len(biases) == len(layers):
        return [wide_linear(layer, x) for layer in layers]
    dtype = torch.promote_types(torch.promote_types(x.dtype, weights[0].dtype), torch.float32)
    with without_autocast(x):
        y = products.linear(x.to(dtype), torch.cat(weights).to(dtype), torch.cat(biases).to(dtype))
    return list(torch.split(y, [len(bias) for bias in biases], dim=-1))


def wide_linear(layer: AnyLinear, x: Tensor) -> Tensor:
    """`layer(x)` in float32 or wider, also under autocast, for pre-activations of gates."""
    weight = layer.packed()
    stored = weight if isinstance(weight, Tensor) else weight[1]
    dtype = torch.promote_types(torch.promote_types(x.dtype, stored.dtype), torch.float32)
    with without_autocast(x):
        return op.linears(x, [(weight, layer.bias, dtype)])[0]
