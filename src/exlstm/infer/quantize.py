"""Quantization of models: fewer bytes of weights to read per token, which bound decoding on a CPU."""

import copy

import torch

from exlstm.models.lm import LM
from exlstm.models.quantized import LAYER_TYPES, layers_to_quantize
from exlstm.models.summary import quantized_layers
from exlstm.models.weight_formats import Bits, WeightFormat


def quantize(model: LM, weights: Bits) -> LM:
    """A copy of `model` whose projections, MLPs and head keep their weights as `weights`, rounded to the nearest.

    int8: one scale per output, about a quarter of float32. int4: a scale and an offset per 128 inputs, about a seventh;
    the loss is measurably higher, and `exlstm eval --weights int4` measures it. Gates, norms, convolutions, recurrent
    weights, embedding, states and the dtype of activations stay as they are. Quantized weights have no gradients. The
    copy is saved and loaded as any model. Raises ValueError for anything but "int8" and "int4", and for a model that is
    quantized already.
    """
    if weights not in LAYER_TYPES:
        raise ValueError(f"weights are {weights!r}; they can be one of {', '.join(LAYER_TYPES)}.")
    if quantized_layers(model):
        raise ValueError("the model is quantised already; quantise the original.")
    # in the memo of deepcopy, quantized layers stand for the copies of theirs, which are never made
    memo = {id(layer): LAYER_TYPES[weights](layer) for layer in layers_to_quantize(model).values()}
    return copy.deepcopy(model, memo)


def with_weights(model: LM, weights: WeightFormat) -> LM:
    """`model` as it is, in another dtype (of weights and activations), or quantized."""
    if weights == "as-saved":
        return model
    if weights in ("float32", "bfloat16"):
        return model.to(getattr(torch, weights))
    return quantize(model, "int8" if weights == "int8" else "int4")
