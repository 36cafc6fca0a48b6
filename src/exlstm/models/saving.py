"""Our own layout on disk: a folder with config.json (plain, versioned) and model.safetensors.

A save is written beside its target and renamed into place, so that a reader sees a whole model or none.
"""

import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from exlstm.mixers import MIXERS
from exlstm.models.lm import LM, BlockConfig, LMConfig, MLPConfig

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

    Raises OSError, and leaves a model that was there before as it was, when the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # a tied head is the embedding: stored once
    tensors = {name: x.contiguous() for name, x in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["head.weight"]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
        weights, config = Path(scratch, WEIGHTS), Path(scratch, CONFIG)
        try:
            save_file(tensors, weights, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"cannot write {folder / WEIGHTS}: {error}; free some space and save again.") from error
        config.write_text(json.dumps(config_to_json(model.config), indent=1) + "\n")
        weights.chmod(config.stat().st_mode)  # safetensors lets only the owner read; the user's umask decides here
        for file in (weights, config):
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
            file.replace(folder / file.name)


def load(path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> LM:
    """The model saved in the folder `path`, its weights as they were saved or as `dtype`, on `device`.

    Raises ValueError for a folder without a model, a truncated file, and weights that do not fit the config.
    """
    folder = Path(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}; pass a folder that exlstm.save wrote.")
    try:
        data = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not JSON ({error}); save the model again.") from error
    config = config_from_json(data if isinstance(data, dict) else {})
    with torch.device("meta"):
        model = LM(config)
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    if config.tie_embeddings:
        del expected["head.weight"]
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            if wrong:
                name = wrong[0]
                raise ValueError(
                    f"{folder / WEIGHTS} does not fit its config: {name} has shape {found.get(name)}, "
                    f"the config needs {expected.get(name)}; save the model again."
                )
            # copied, for a mapped file is not aligned as new memory is, and other alignment gives other last bits
            mapped = {name: file.get_tensor(name) for name in found}
            tensors = {name: x.to(dtype or x.dtype, copy=True) for name, x in mapped.items()}
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error}); it may be cut off: save it again.") from error
    if config.tie_embeddings:
        tensors["head.weight"] = tensors["embed.weight"]
    model.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embed.weight
    return model.requires_grad_(True)
