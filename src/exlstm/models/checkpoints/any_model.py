"""Saving and loading any model: a language model in every layout, an `XLSTM` or a `Forecaster` in our own.

Which of them a folder holds is the `model_type` of its config.json.
"""

import os
from pathlib import Path
from typing import Any

import torch

from exlstm.models.checkpoints import loading, saving
from exlstm.models.checkpoints.files import configs_beside, open_tensors
from exlstm.models.checkpoints.own import MODEL_TYPES, OWN, config_to_json, parsed
from exlstm.models.checkpoints.rules import same
from exlstm.models.checkpoints.target import check_target
from exlstm.models.encoder import XLSTM, EncoderConfig
from exlstm.models.forecaster import Forecaster, ForecasterConfig
from exlstm.models.lm import LM
from exlstm.models.weight_formats import Bits


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    weights: Bits | None = None,
) -> Any:
    """The model at `path`, a folder or a file with weights: an `LM`, or an `XLSTM` or a `Forecaster` that `save` wrote.

    A language model may be in the layout "exlstm", "huggingface" (transformers' own xlstm, llama, mistral, gpt2, mamba,
    mamba2, rwkv, recurrent_gemma), "xlstm-large" (single or fused) or "classic" (the paper's package, any cell).

    The layout follows from the names of the tensors, the architecture from their shapes, the rest from the config.json
    or config.yaml beside them; missing settings take the layout's defaults, which are listed on stderr. Kernels that a
    config names are ignored. A .pt or .pth file is read as tensors only, so that no code in it can run.

    dtype: of weights and activations; None keeps what was saved (in a foreign layout: that of the embedding). weights:
    "int8" or "int4" quantises a language model while loading; one that was saved quantised comes back so, without
    gradients for what is quantised, and `dtype` rounds no scale. In memory are the weights and one tensor more.
    Raises ValueError, in one sentence, for a missing or unreadable file, for tensors that are missing, unknown, or of
    another shape, and for settings that this version does not compute.
    """
    place = Path(path)
    config = continuous_config(place)
    if config is None:
        return loading.load(place, dtype=dtype, device=device, weights=weights)
    if weights is not None:
        raise ValueError(f"{place} holds no language model, and weights={weights!r} is for these; leave it out.")
    loading.check_dtype(dtype)
    model = without_numbers(config)
    rules = [same(name, name) for name in model.state_dict()]
    with open_tensors(place) as files:
        loading.check(files, rules, model, OWN)
        tensors = {}
        for name in files.shapes:
            x = files.read(name)
            tensors[name] = loading.to_device(x.to(dtype or x.dtype), x, torch.device(device))
    model.load_state_dict(tensors, assign=True)
    # buffers that the architecture determines are in no checkpoint, and were made on the CPU
    return model.requires_grad_(True).to(device)


def save(
    model: LM | XLSTM | Forecaster, folder: str | os.PathLike[str], *, layout: str = "exlstm", overwrite: bool = False
) -> None:
    """Writes the model into `folder`, its config and weights each whole or not at all.

    layout: "exlstm" (ours); of a language model also "huggingface" (transformers' own model of this kind, see `load`),
    "xlstm-large", or "classic" (the paper's package).
    Weights of more than 2 GiB go into several files. A quantized model is saved as it is, in our own layout only.
    overwrite: replace a model that is in the folder; a tokenizer beside it stays.
    Raises ValueError, before anything is written, for a folder that is not empty (with `overwrite`: that is a run, or
    holds anything else than a model), for a block or a setting that the layout cannot express, and for a model that
    `load` could not read back: with parts that its config does not have, with quantised layers of two kinds, or in two
    dtypes. Raises OSError, and leaves a model that was there before as it was, when the disk is full.
    """
    if isinstance(model, LM):
        saving.save(model, folder, layout=layout, overwrite=overwrite)
        return
    if not isinstance(model, XLSTM | Forecaster):
        raise ValueError(f"the model is {type(model).__name__}; save an LM, an XLSTM or a Forecaster.")
    if layout != OWN.name:
        raise ValueError(f"the layout {layout!r} is one of language models; save {type(model).__name__} as 'exlstm'.")
    check_target(Path(folder), overwrite=overwrite)
    tensors = model.state_dict()
    kind = "a Forecaster" if isinstance(model, Forecaster) else "an XLSTM"
    saving.check_shapes(kind, tensors, without_numbers(model.config).state_dict())
    rules = [same(name, name) for name in tensors]
    saving.write(Path(folder), OWN, config_to_json(model.config), rules, tensors, tensors.__getitem__)


def continuous_config(place: Path) -> EncoderConfig | ForecasterConfig | None:
    """The saved config of an `XLSTM` or a `Forecaster`; None for another model. ValueError for a damaged one."""
    for _, data in configs_beside(place):
        if data.get("model_type") == MODEL_TYPES[EncoderConfig]:
            return parsed(data, EncoderConfig)
        if data.get("model_type") == MODEL_TYPES[ForecasterConfig]:
            return parsed(data, ForecasterConfig)
    return None


def without_numbers(config: EncoderConfig | ForecasterConfig) -> XLSTM | Forecaster:
    """The model of a config on the meta device. ValueError for sizes that no tensor can have."""
    with loading.without_numbers():
        if isinstance(config, ForecasterConfig):
            return Forecaster(config)
        return XLSTM(config.input_size, config.width, config=config)
