"""Saving a model in any layout, shard by shard, and converting one without holding all of it in memory.

Files are written beside their target and renamed when all are complete: a reader sees a whole model or none.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from exlstm.models.checkpoints.files import CONFIGS, INDEX
from exlstm.models.checkpoints.layout import Layout
from exlstm.models.checkpoints.loading import (
    LAYOUTS,
    Checkpoint,
    Conversion,
    conversion_of,
    converted_model,
    meta_model,
    open_checkpoint,
    to_device,
)
from exlstm.models.checkpoints.own import OWN
from exlstm.models.checkpoints.rules import Rule
from exlstm.models.checkpoints.target import WEIGHT_FILES, check_target
from exlstm.models.lm import LM, LMConfig
from exlstm.models.quantized import bits_of, stored_once
from exlstm.models.summary import quantized_layers
from exlstm.models.weight_formats import Bits
from exlstm.runtime.files import put_in_place, scratch_inside, sync

SHARD_BYTES = 2 << 30
CPU = torch.device("cpu")


def save(model: LM, folder: str | os.PathLike[str], *, layout: str = "exlstm", overwrite: bool = False) -> None:
    """Writes a language model into `folder`, in any layout; arguments and errors are those of `exlstm.save`."""
    target, bits = layout_for(layout, model.config), bits_of(model)
    check_target(Path(folder), overwrite=overwrite)
    check_savable(model, bits)
    tensors = stored_once(model)
    data = saved_settings(target, model, bits)
    write(Path(folder), target, data, target.rules(model, None), tensors, tensors.__getitem__)


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    layout: str = "exlstm",
    dtype: torch.dtype | None = None,
    weights: Bits | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Checkpoint:
    """Writes the model at `source`, in any layout, into `folder` in another layout, dtype, or quantised.

    Streams: about `shard_bytes` of weights are in memory at a time. overwrite: replace a model that is in the folder.
    Errors are those of `load` and `save`, and come before anything is written; `folder` can neither hold `source` nor
    be inside of it. Returns what was read, closed.
    """
    layouts_named(layout)  # raises before anything is read
    check_target(Path(folder), overwrite=overwrite, sources=[Path(source)])
    with open_checkpoint(source) as found:
        target = layout_for(layout, found.config)
        change = conversion_of(found, dtype, weights)
        model = converted_model(found, change)
        data = saved_settings(target, model, found.bits or weights)
        shapes = {name: x.to(change.dtypes.get(name, x.dtype)) for name, x in stored_once(model).items()}
        rules, tensors = target.rules(model, None), ConvertedTensors(found, change)
        write(Path(folder), target, data, rules, shapes, tensors.take, shard_bytes)
    return found


class ConvertedTensors:
    """Converted tensors of a checkpoint, read when they are taken, and then released."""

    def __init__(self, found: Checkpoint, change: Conversion) -> None:
        self.found, self.change = found, change
        self.sources = {new: rule for rule in found.rules for name in rule.ours for new in change.names_after(name)}
        self.waiting: dict[str, Tensor] = {}  # of the same rule as one that was taken

    def take(self, name: str) -> Tensor:
        """Our tensor of this name; each may be taken once."""
        if name not in self.waiting:
            for old, x in self.found.apply(self.sources[name]):
                self.waiting |= {new: to_device(y, x, CPU) for new, y in self.change(old, x).items()}
        return self.waiting.pop(name)


def layouts_named(name: str) -> tuple[Layout, ...]:
    """The layouts of this name. ValueError if there are none."""
    if name not in LAYOUTS:
        raise ValueError(f"there is no layout {name!r}; choose one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def layout_for(name: str, config: LMConfig) -> Layout:
    """The layout of this name for a model of that config. ValueError if there is none."""
    layouts = layouts_named(name)
    found = next((layout for layout in layouts if layout.fits(config)), None)
    if found is None:
        known = ", ".join(layout.model_types[0] for layout in layouts)
        raise ValueError(
            f"block 0 is {type(config.blocks[0].mixer).__name__}, and transformers' models of this layout are {known}; "
            "use the layout 'exlstm'."
        )
    return found


def saved_settings(layout: Layout, model: LM, bits: Bits | None) -> dict[str, Any]:
    """Settings to be saved. ValueError for those that the layout cannot express."""
    if bits is None:
        return layout.write(model.config)
    if layout is not OWN:
        raise ValueError(
            f"the weights are quantised ({bits}), which the layout {layout.name!r} cannot express; use 'exlstm'."
        )
    return {**layout.write(model.config), "weights": bits}


def write(
    folder: Path,
    layout: Layout,
    data: Mapping[str, Any],
    rules: Sequence[Rule],
    like: Mapping[str, Tensor],
    take: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model. like: shapes and dtypes of its tensors by name. take: gives the tensors themselves."""
    shards = plan_shards(rules, like, shard_bytes)
    index: dict[str, str] = {}
    total = 0
    with scratch_inside(folder) as scratch:
        for number, shard in enumerate(shards):
            file = scratch / layout.shard(number, len(shards))
            tensors = shard_tensors(shard, take)
            index |= dict.fromkeys(tensors, file.name)
            total += sum(x.nbytes for x in tensors.values())
            try:
                save_file(tensors, file, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(f"cannot write {folder / file.name}: {error}; free some space and save again.") from error
            del tensors
        config = scratch / layout.config_file
        config.write_text(text_of(data, config.suffix))
        files = [scratch / name for name in dict.fromkeys(index.values())]
        for file in files:
            file.chmod(config.stat().st_mode)  # safetensors makes files that only the owner may read
        last = [config]
        if layout.indexed and len(files) > 1:
            last.append(scratch / INDEX)
            last[-1].write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1) + "\n")
        replace_model(folder, [*files, *last])


def plan_shards(rules: Sequence[Rule], like: Mapping[str, Tensor], shard_bytes: int) -> list[list[Rule]]:
    """Rules by file, so that files stay below `shard_bytes`; tensors of one rule are in one file."""
    shards: list[list[Rule]] = [[]]
    size = 0
    for rule in rules:
        new = sum(x.nbytes for x in (like[name] for name in rule.ours))
        if shards[-1] and size + new > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(rule)
        size += new
    return shards


def shard_tensors(rules: Sequence[Rule], take: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Tensors of one file by name; safetensors wants none to share memory."""
    tensors: dict[str, Tensor] = {}
    for rule in rules:
        theirs = rule.to_theirs([take(name) for name in rule.ours])
        for position, (name, x) in enumerate(zip(rule.theirs, theirs, strict=True)):
            shared = any(x.data_ptr() == other.data_ptr() for other in theirs[:position])
            tensors[name] = x.clone() if shared else x.contiguous()
    return tensors


def text_of(data: Mapping[str, Any], suffix: str) -> str:
    """The settings as JSON or YAML, by the suffix of the file."""
    if suffix == ".json":
        return json.dumps(data, indent=1) + "\n"
    import yaml

    text: str = yaml.safe_dump(dict(data), sort_keys=False)
    return text


def replace_model(folder: Path, files: Sequence[Path]) -> None:
    """Moves files into their folder, once they are on disk, and removes other files of a model saved there."""
    for file in files:
        sync(file)
    # a model in several files cannot be loaded without its index: no reader sees old and new files mixed
    (folder / INDEX).unlink(missing_ok=True)
    names = {file.name for file in files}
    for old in folder.iterdir():
        if old.name not in names and (old.name in CONFIGS or WEIGHT_FILES.fullmatch(old.name)):
            old.unlink()
    put_in_place(files, folder)


def check_savable(model: LM, bits: Bits | None) -> None:
    """ValueError unless config and format of the weights determine the model."""
    tensors = stored_once(model)
    check_shapes("an LM", tensors, stored_once(meta_model(model.config, bits, tensors)))
    dtype = model.embed.weight.dtype
    for name, layer in quantized_layers(model).items():
        if layer.like.dtype != dtype:
            raise ValueError(
                f"{name} stands for {layer.like.dtype} and the embedding is {dtype}; "
                "convert the whole model with model.to(dtype) and save it again."
            )


def check_shapes(what: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """ValueError unless a model's tensors have the names and shapes that its config needs. what: its kind, for it."""
    found, needed = ({name: tuple(x.shape) for name, x in given.items()} for given in (tensors, expected))
    if wrong := sorted(name for name in needed.keys() | found.keys() if needed.get(name) != found.get(name)):
        raise ValueError(
            f"the model is not what its config says: {wrong[0]} has shape {found.get(wrong[0])}, "
            f"the config needs {needed.get(wrong[0])}; save {what} of that config."
        )
