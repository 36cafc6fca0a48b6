"""Our own layout on disk: a folder with config.json (plain, versioned) and model.safetensors.

A save is written beside its target and renamed into place, so that a reader sees a whole model or none.
"""

import json
import os
import tempfile
from collections.abc import Container
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from exlstm.mixers import MIXERS
from exlstm.models.lm import LM, BlockConfig, LMConfig, MLPConfig
from exlstm.models.quantized import KINDS, Bits, bits_of, exact_tensors, make_room, quantised_layers
from exlstm.nn.linear import QuantizedLinear

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def config_to_json(config: LMConfig) -> dict[str, Any]:
    """Plain data for `json`: every field by name, each mixer with its name in MIXERS as `kind`."""
    kinds = {cls: name for name, cls in MIXERS.items()}
    blocks = [
        {
            "mixer": {"kind": kinds[type(block.mixer)], **asdict(block.mixer)},  # type: ignore[call-overload]
            "mlp": None if block.mlp is None else asdict(block.mlp),
        }
        for block in config.blocks
    ]
    top = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "blocks"}
    return {"format": FORMAT, "model_type": "exlstm", **top, "blocks": blocks}


def config_from_json(data: dict[str, Any]) -> LMConfig:
    """The config that `config_to_json` wrote. ValueError for another format, kind or field."""
    if data.get("model_type") != "exlstm" or data.get("format") != FORMAT:
        raise ValueError(
            f"the config is of type {data.get('model_type')!r}, format {data.get('format')!r}; "
            f"this version reads 'exlstm' of format {FORMAT}."
        )
    try:
        blocks = []
        for block in data["blocks"]:
            mixer = dict(block["mixer"])
            kind = mixer.pop("kind")
            if kind not in MIXERS:
                raise ValueError(f"the config has a mixer of kind {kind!r}; known are {', '.join(MIXERS)}.")
            mlp = None if block["mlp"] is None else MLPConfig(**block["mlp"])
            blocks.append(BlockConfig(mixer=MIXERS[kind](**mixer), mlp=mlp))
        top = {name: value for name, value in data.items() if name not in ("format", "model_type", "blocks")}
        return LMConfig(blocks=tuple(blocks), **top)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the config does not fit format {FORMAT} ({error}); write it with exlstm.save.") from error


def save(model: LM, folder: str | os.PathLike[str]) -> None:
    """Writes config.json and model.safetensors into `folder`, each whole or not at all; replaces a model saved there.

    A quantised model is saved as it is, and config.json says of which kind its weights are. Raises ValueError, before
    anything is written, for a model that `load` could not read back: with parts that its config does not have, with
    quantised layers of two kinds, or in two dtypes. Raises OSError, and leaves a model that was there before as it was,
    when the disk is full.
    """
    folder, bits = Path(folder), bits_of(model)
    _check_savable(model, bits)
    tensors = {name: x.contiguous() for name, x in _stored(model).items()}
    data = config_to_json(model.config) if bits is None else {**config_to_json(model.config), "weights": bits}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
        weights, config = Path(scratch, WEIGHTS), Path(scratch, CONFIG)
        try:
            save_file(tensors, weights, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"cannot write {folder / WEIGHTS}: {error}; free some space and save again.") from error
        config.write_text(json.dumps(data, indent=1) + "\n")
        weights.chmod(config.stat().st_mode)  # safetensors lets only the owner read; the user's umask decides here
        for file in (weights, config):
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
            file.replace(folder / file.name)


def load(path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> LM:
    """The model saved in the folder `path`, its weights as they were saved or as `dtype`, on `device`.

    A quantised model comes back quantised, so without gradients for what is quantised; `dtype` is then that of the rest
    and of activations, and rounds no scale. Raises ValueError for a folder without a model, a truncated file, and
    weights that do not fit the config.
    """
    folder = Path(path)
    config, bits = _read_config(folder)
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
            model = _blank(config, bits, found)
            if wrong := _misfits(model, found):
                name, expected = wrong
                raise ValueError(
                    f"{folder / WEIGHTS} does not fit its config: {name} has shape {found.get(name)}, "
                    f"the config needs {expected}; save the model again."
                )
            exact = exact_tensors(model)
            # copied, for a mapped file is not aligned as new memory is, and other alignment gives other last bits
            mapped = {name: file.get_tensor(name) for name in found}
            tensors = {
                name: x.to(x.dtype if dtype is None or name in exact else dtype, copy=True)
                for name, x in mapped.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error}); it may be cut off: save it again.") from error
    if _head_is_embedding(model):
        tensors["head.weight"] = tensors["embed.weight"]
    model.load_state_dict(tensors, assign=True)
    if _head_is_embedding(model):
        model.head.weight = model.embed.weight
    for layer in quantised_layers(model).values():
        layer.like = model.embed.weight.detach().new_empty(0)
    return model.requires_grad_(True)


def saved_bits(folder: str | os.PathLike[str]) -> Bits | None:
    """How the model saved in `folder` keeps its quantised weights; None for one that is not quantised."""
    return _read_config(Path(folder))[1]


def _read_config(folder: Path) -> tuple[LMConfig, Bits | None]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}; pass a folder that exlstm.save wrote.")
    try:
        data = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not JSON ({error}); save the model again.") from error
    data = data if isinstance(data, dict) else {}
    bits = data.pop("weights", None)
    if bits not in (None, *KINDS):
        raise ValueError(f"the config has weights {bits!r}; known are {', '.join(KINDS)}.")
    return config_from_json(data), bits


def _blank(config: LMConfig, bits: Bits | None, tensors: Container[str]) -> LM:
    """The model without memory for its numbers; its quantised layers are those that have their weights in `tensors`."""
    with torch.device("meta"):
        model = LM(config)
        if bits is not None:
            make_room(model, bits, tensors)
    return model


def _head_is_embedding(model: LM) -> bool:
    """A quantised head is not: the embedding stays as it was."""
    return model.config.tie_embeddings and not isinstance(model.head, QuantizedLinear)


def _stored(model: LM) -> dict[str, Tensor]:
    """What is written, by name: a head that is the embedding is stored once."""
    tensors: dict[str, Tensor] = model.state_dict()
    if _head_is_embedding(model):
        del tensors["head.weight"]
    return tensors


def _misfits(model: LM, shapes: dict[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...] | None] | None:
    """The first name that has another shape in `model` than in `shapes`, with the one in `model`."""
    expected = {name: tuple(x.shape) for name, x in _stored(model).items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    return (wrong[0], expected.get(wrong[0])) if wrong else None


def _check_savable(model: LM, bits: Bits | None) -> None:
    """ValueError unless the config and the kind of the weights say all there is to say."""
    shapes = {name: tuple(x.shape) for name, x in _stored(model).items()}
    if wrong := _misfits(_blank(model.config, bits, shapes), shapes):
        name, expected = wrong
        raise ValueError(
            f"the model is not what its config says: {name} has shape {shapes.get(name)}, "
            f"the config needs {expected}; save an LM of that config."
        )
    dtype = model.embed.weight.dtype
    for name, layer in quantised_layers(model).items():
        if layer.like.dtype != dtype:
            raise ValueError(
                f"{name} stands for {layer.like.dtype} and the embedding is {dtype}; "
                "convert the whole model with model.to(dtype) and save it again."
            )
