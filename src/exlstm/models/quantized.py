"""Quantized layers of a model: their kind, their buffers, and models on the meta device that have them."""

import copy
from collections.abc import Container

from torch import Tensor

from exlstm.models.lm import LM
from exlstm.models.summary import quantized_layers
from exlstm.models.weight_formats import Bits
from exlstm.nn.linear import Int4Linear, Int8Linear, Linear, QuantizedLinear
from exlstm.ops.linear import to_int4, to_int8

LAYER_TYPES: dict[Bits, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}
GATES = ("i", "f")  # stay as they are: small, and the memory's length is sensitive to them
# the buffers of each kind; the first tells the kind
BUFFERS: dict[Bits, tuple[str, ...]] = {
    "int8": ("weight_NK", "scale_N"),
    "int4": ("weight_NGP", "scale_NG", "offset_NG"),
}


def bits_of(model: LM) -> Bits | None:
    """Format of the quantized layers, None without any. ValueError unless all have the same."""
    names = {cls: bits for bits, cls in LAYER_TYPES.items()}
    found = {type(layer) for layer in quantized_layers(model).values()}
    known = [bits for cls, bits in names.items() if cls in found]
    if len(found) > 1 or len(found) != len(known):
        kinds = " and ".join(sorted(cls.__name__ for cls in found))
        raise ValueError(f"the model has layers of kind {kinds}; all must be of one of {', '.join(LAYER_TYPES)}.")
    return known[0] if known else None


def layers_to_quantize(model: LM) -> dict[str, Linear]:
    """Layers by name that are to be quantized: projections, MLPs and the head, not the gates."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Linear) and name.rpartition(".")[2] not in GATES
    }


def quantize_weight(w_NK: Tensor, bits: Bits) -> dict[str, Tensor]:
    """Buffers by name of the quantized layer with these weights."""
    parts = to_int8(w_NK) if bits == "int8" else to_int4(w_NK)[:3]
    return dict(zip(BUFFERS[bits], parts, strict=True))


def head_is_embedding(model: LM) -> bool:
    """True if head and embedding share their weight; a quantized head has its own."""
    return model.config.tie_embeddings and not isinstance(model.head, QuantizedLinear)


def stored_once(model: LM) -> dict[str, Tensor]:
    """The state dict without a tied head."""
    tensors: dict[str, Tensor] = model.state_dict()
    if head_is_embedding(model):
        del tensors["head.weight"]
    return tensors


def make_room(model: LM, bits: Bits, tensors: Container[str]) -> None:
    """Replaces linear layers by quantized ones where the names in `tensors` are those of quantized weights.

    The model is on the meta device, and its numbers are loaded later.
    """
    made: dict[tuple[int, int, bool], QuantizedLinear] = {}  # copying a layer is a hundred times faster than making one
    for name, layer in list(model.named_modules()):
        if type(layer) is Linear and f"{name}.{BUFFERS[bits][0]}" in tensors:
            kind = (layer.in_features, layer.out_features, layer.bias is not None)
            if kind not in made:
                made[kind] = LAYER_TYPES[bits](layer)
            model.set_submodule(name, copy.deepcopy(made[kind]))


def exact_tensors(model: LM) -> set[str]:
    """Names of the weights, scales and offsets of quantized layers, which a change of dtype may not round."""
    return {
        f"{layer_name}.{name}"
        for layer_name, layer in quantized_layers(model).items()
        for name, _ in layer.named_buffers()
        if name not in ("bias", "like")
    }
