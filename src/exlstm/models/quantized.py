"""Quantised layers inside a model: of which kind they are, and how to make room for them."""

import copy
from collections.abc import Container

from torch import Tensor

from exlstm.models.lm import LM
from exlstm.models.summary import quantized_layers
from exlstm.models.weight_formats import Bits
from exlstm.nn.linear import Int4Linear, Int8Linear, Linear, QuantizedLinear
from exlstm.ops.linear import to_int4, to_int8

KINDS: dict[Bits, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}
GATES = ("i", "f")  # decide what is remembered for how long, and are small
# the buffers of each kind, first the one that no other kind has
PARTS: dict[Bits, tuple[str, ...]] = {
    "int8": ("weight_NK", "scale_N"),
    "int4": ("weight_NGP", "scale_NG", "offset_NG"),
}


def bits_of(model: LM) -> Bits | None:
    """How the quantised layers keep their weights; None where there are none. ValueError unless all are of one kind."""
    names = {cls: bits for bits, cls in KINDS.items()}
    found = {type(layer) for layer in quantized_layers(model).values()}
    known = [bits for cls, bits in names.items() if cls in found]
    if len(found) > 1 or len(found) != len(known):
        kinds = " and ".join(sorted(cls.__name__ for cls in found))
        raise ValueError(f"the model has layers of kind {kinds}; all must be of one of {', '.join(KINDS)}.")
    return known[0] if known else None


def layers_to_quantize(model: LM) -> dict[str, Linear]:
    """The layers that quantising changes, by name: projections, MLPs and the head, not the gates."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Linear) and name.rpartition(".")[2] not in GATES
    }


def quantize_weight(w_NK: Tensor, bits: Bits) -> dict[str, Tensor]:
    """The weights of a layer as the buffers of a quantised one, by name."""
    parts = to_int8(w_NK) if bits == "int8" else to_int4(w_NK)[:3]
    return dict(zip(PARTS[bits], parts, strict=True))


def head_is_embedding(model: LM) -> bool:
    """A quantised head is not: the embedding stays as it was."""
    return model.config.tie_embeddings and not isinstance(model.head, QuantizedLinear)


def stored_once(model: LM) -> dict[str, Tensor]:
    """The state dict without a head that is the embedding."""
    tensors: dict[str, Tensor] = model.state_dict()
    if head_is_embedding(model):
        del tensors["head.weight"]
    return tensors


def make_room(model: LM, bits: Bits, tensors: Container[str]) -> None:
    """Puts a quantised layer in the place of every linear one whose weights among the named `tensors` are quantised.

    For a model on the meta device, where it takes no memory: its numbers are to be loaded.
    """
    made: dict[tuple[int, int, bool], QuantizedLinear] = {}  # copies are made a hundred times faster
    for name, layer in list(model.named_modules()):
        if type(layer) is Linear and f"{name}.{PARTS[bits][0]}" in tensors:
            kind = (layer.in_features, layer.out_features, layer.bias is not None)
            if kind not in made:
                made[kind] = KINDS[bits](layer)
            model.set_submodule(name, copy.deepcopy(made[kind]))


def exact_tensors(model: LM) -> set[str]:
    """Names of the weights, scales and offsets of quantised layers, which no change of dtype may round."""
    return {
        f"{layer_name}.{name}"
        for layer_name, layer in quantized_layers(model).items()
        for name, _ in layer.named_buffers()
        if name not in ("bias", "like")
    }
