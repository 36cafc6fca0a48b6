"""Models with weights of fewer bits: less to read per token, which is what decoding on a CPU waits for."""

import copy

import torch

from exlstm.models.lm import LM
from exlstm.models.locate import Weights
from exlstm.models.quantized import KINDS, Bits, quantised_layers, to_quantise


def quantize(model: LM, weights: Bits) -> LM:
    """A copy of `model` whose projections, MLPs and head keep their weights as `weights`, rounded to the nearest.

    int8: one scale per output, about a quarter of float32. int4: a scale and an offset per 128 inputs, about a seventh;
    the model gets measurably worse: `exlstm eval --weights int4` says how much. Gates, norms, convolutions, recurrent
    weights, embedding and states stay as they are, and so does the dtype of activations. The copy has no gradients for
    what is quantised; it is saved and loaded as any model. Raises ValueError for anything but "int8" and "int4", and
    for a model that is quantised already.
    """
    if weights not in KINDS:
        raise ValueError(f"weights are {weights!r}; they can be one of {', '.join(KINDS)}.")
    if quantised_layers(model):
        raise ValueError("the model is quantised already; quantise the original.")
    # deepcopy takes these as the copies of their layers, so that there are never two of a large model
    memo = {id(layer): KINDS[weights](layer) for layer in to_quantise(model).values()}
    return copy.deepcopy(model, memo)


def with_weights(model: LM, weights: Weights) -> LM:
    """`model` with its weights as they were saved, in another dtype (activations follow), or quantised."""
    if weights == "as-saved":
        return model
    if weights in ("float32", "bfloat16"):
        return model.to(getattr(torch, weights))
    return quantize(model, "int8" if weights == "int8" else "int4")
