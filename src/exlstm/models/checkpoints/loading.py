"""Loading a model from any layout, tensor by tensor: memory holds the weights and one tensor more."""

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.models.checkpoints.classic import CLASSIC
from exlstm.models.checkpoints.files import Tensors, configs_beside, open_tensors
from exlstm.models.checkpoints.large import LARGE
from exlstm.models.checkpoints.layout import Layout, SavedSettings
from exlstm.models.checkpoints.own import MODEL_TYPES, OWN
from exlstm.models.checkpoints.rules import Rule
from exlstm.models.checkpoints.transformers import TRANSFORMERS
from exlstm.models.lm import LM, LMConfig
from exlstm.models.quantized import (
    BUFFERS,
    LAYER_TYPES,
    exact_tensors,
    head_is_embedding,
    layers_to_quantize,
    make_room,
    quantize_weight,
)
from exlstm.models.summary import quantized_layers
from exlstm.models.weight_formats import Bits

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # dtypes of weights on disk
# by name; of several the model decides
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    layouts[0].name: layouts for layouts in ((OWN,), TRANSFORMERS, (LARGE,), (CLASSIC,))
}


@dataclass(frozen=True)
class Checkpoint:
    """Model on disk: its architecture, from names, shapes and the config, and its tensors, read by `tensors`.

    bits: format of quantized weights. assumed: settings in neither shapes nor config, with the layout's defaults.
    """

    files: Tensors
    layout: Layout
    config: LMConfig
    bits: Bits | None
    rules: list[Rule]
    assumed: Mapping[str, Any]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Our tensors by name, as they were saved. They may lie in a mapped file: clone those that outlive it."""
        for rule in self.rules:
            yield from self.apply(rule)

    def apply(self, rule: Rule) -> Iterator[tuple[str, Tensor]]:
        """Our tensors by name that a rule makes."""
        yield from zip(rule.ours, rule.to_ours([self.files.read(name) for name in rule.theirs]), strict=True)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the embedding."""
        rule = next(rule for rule in self.rules if "embed.weight" in rule.ours)
        return self.files.dtypes[rule.theirs[0]]

    def notes(self) -> str:
        """A sentence on the assumed settings; empty without any."""
        if not self.assumed:
            return ""
        settings = ", ".join(f"{name} {value}" for name, value in self.assumed.items())
        return (
            f"{self.files.place} does not say; the defaults of its layout, {self.layout.name}, are taken: {settings}."
        )


@contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """The checkpoint at `path`, with names and shapes checked. ValueError, in one sentence, if they do not fit."""
    place = Path(path)
    with open_tensors(place) as files:
        layout = layout_of(files)
        settings = settings_of(place, layout)
        check_is_language_model(place, layout, settings)
        config = layout.read(files.shapes, settings)
        bits = settings.data.get("weights") if layout is OWN else None
        if bits not in (None, *LAYER_TYPES):
            raise ValueError(f"the config has weights {bits!r}; known are {', '.join(LAYER_TYPES)}.")
        model = meta_model(config, bits, files.shapes)
        rules = layout.rules(model, files.shapes)
        check(files, rules, model, layout)
        yield Checkpoint(files, layout, config, bits, rules, settings.assumed)


def load(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    weights: Bits | None = None,
) -> LM:
    """The language model at `path`, in any layout; arguments and errors are those of `exlstm.load`."""
    with open_checkpoint(path) as found:
        if notes := found.notes():
            print(f"exlstm: {notes}", file=sys.stderr)
        return build(found, dtype, torch.device(device), weights)


def outline(path: str | os.PathLike[str]) -> LM:
    """The model that `load` gives, on the meta device. ValueError as there."""
    with open_checkpoint(path) as found:
        dtypes = conversion_of(found, None, None).dtypes
        model = meta_model(found.config, found.bits, found.files.shapes)
        tensors = {name: x.to(dtypes[name]) for name, x in model.state_dict().items() if name in dtypes}
        if head_is_embedding(model):
            tensors["head.weight"] = tensors["embed.weight"]
        model.load_state_dict(tensors, assign=True)
        if head_is_embedding(model):
            model.head.weight = model.embed.weight
    return model


def build(found: Checkpoint, dtype: torch.dtype | None, device: torch.device, weights: Bits | None) -> LM:
    """The model of a checkpoint."""
    change = conversion_of(found, dtype, weights)
    model = converted_model(found, change)
    tensors = {
        new_name: to_device(new, x, device) for name, x in found.tensors() for new_name, new in change(name, x).items()
    }
    if head_is_embedding(model):
        tensors["head.weight"] = tensors["embed.weight"]
    model.load_state_dict(tensors, assign=True)
    if head_is_embedding(model):
        model.head.weight = model.embed.weight
    for layer in quantized_layers(model).values():
        layer.like = model.embed.weight.detach().new_empty(0)
    # buffers that the architecture determines, such as a fixed graph, are in no checkpoint and were made on the CPU
    return model.requires_grad_(True).to(device)


@dataclass(frozen=True)
class Conversion:
    """Conversion of tensors to another dtype, or to fewer bits.

    dtypes: by name, of tensors that are not quantized. layers: from names of weights that are quantized to their
    layers. unchanged: those of them that stay, too, as a tied embedding does.
    """

    dtypes: Mapping[str, torch.dtype]
    layers: Mapping[str, str]
    unchanged: frozenset[str]
    bits: Bits | None

    def __call__(self, name: str, x: Tensor) -> dict[str, Tensor]:
        """Converted tensors by name of the tensor of this name."""
        as_it_is = {name: x.to(self.dtypes[name])} if name not in self.layers or name in self.unchanged else {}
        if self.bits is None or name not in self.layers:
            return as_it_is
        parts = quantize_weight(x, self.bits)  # from the saved numbers, so that they are rounded once
        return as_it_is | {f"{self.layers[name]}.{part}": y for part, y in parts.items()}

    def names_after(self, name: str) -> list[str]:
        """Names of the converted tensors of the tensor of this name."""
        names = [name] if name not in self.layers or name in self.unchanged else []
        if self.bits is not None and name in self.layers:
            names += [f"{self.layers[name]}.{part}" for part in BUFFERS[self.bits]]
        return names

    def names(self) -> list[str]:
        """Names of all converted tensors."""
        return [new for name in self.dtypes for new in self.names_after(name)]


def conversion_of(found: Checkpoint, dtype: torch.dtype | None, weights: Bits | None) -> Conversion:
    """Conversion of a checkpoint's tensors to `dtype` and quantized `weights`."""
    if weights not in (None, *LAYER_TYPES):
        raise ValueError(f"weights are {weights!r}; they can be one of {', '.join(LAYER_TYPES)}.")
    if weights is not None and found.bits not in (None, weights):
        raise ValueError(f"{found.files.place} is quantised already ({found.bits}); use the original for {weights}.")
    check_dtype(dtype)
    model = meta_model(found.config, found.bits, found.files.shapes)
    exact, saved = exact_tensors(model), found.files.dtypes
    # foreign checkpoints may have norms and gates in another dtype than the rest, for kernels of their own
    usual = dtype or (None if found.layout is OWN else found.dtype)
    dtypes = {
        name: saved[rule.theirs[0]] if usual is None or name in exact else usual
        for rule in found.rules
        for name in rule.ours
    }
    if weights is None or found.bits:
        return Conversion(dtypes, {}, frozenset(), None)
    layers = {f"{name}.weight": name for name in layers_to_quantize(model)}
    if head_is_embedding(model):
        layers["embed.weight"] = layers.pop("head.weight")
    return Conversion(dtypes, layers, frozenset({"embed.weight"}), weights)


def check_dtype(dtype: torch.dtype | None) -> None:
    """ValueError for a dtype that is not one of floating numbers."""
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; it has to be one of floating numbers, and weights='int8' quantises.")


def check_is_language_model(place: Path, layout: Layout, settings: SavedSettings) -> None:
    """ValueError for another model of ours."""
    kind = settings.data.get("model_type")
    if layout is OWN and kind in MODEL_TYPES.values() and kind != MODEL_TYPES[LMConfig]:
        raise ValueError(
            f"{place} holds a model of type {kind!r}, and a language model is needed here; "
            "exlstm.load reads it in Python."
        )


def to_device(x: Tensor, source: Tensor, device: torch.device) -> Tensor:
    """x on the device, contiguous, and not in a mapped file, whose alignment can change last bits."""
    mapped = x.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    x = x.detach().contiguous()
    return x.to(device, copy=mapped)


def layout_of(files: Tensors) -> Layout:
    """The layout by names of tensors. ValueError for none, and for two at once."""
    every = [layout for layouts in LAYOUTS.values() for layout in layouts]
    keys = [[next((k for k in files.shapes if re.match(x, k)), None) for x in layout.has] for layout in every]
    found = [(layout, names[0]) for layout, names in zip(every, keys, strict=True) if None not in names]
    if len(found) > 1:
        (one, first), (other, second), *_ = found
        raise ValueError(
            f"{files.place} mixes layouts: {first} is of {one.label!r} and {second} of {other.label!r}; "
            "save the model again."
        )
    if not found:
        example = next(iter(files.shapes), "nothing")
        raise ValueError(f"{files.place} is of no known layout, it holds {example}; known are {', '.join(LAYOUTS)}.")
    return found[0][0]


def settings_of(path: Path, layout: Layout) -> SavedSettings:
    """Settings beside the weights, in the layout's own file or another. ValueError if our own layout has no file."""
    configs = {file.name: (file, data) for file, data in configs_beside(path)}
    for name in (layout.config_file, *configs):
        if name in configs:
            file, data = configs[name]
            kind = data.get("model_type", layout.model_types[0]) if layout.model_types else None
            if kind is not None and kind not in layout.model_types:
                known = ", ".join(kind for layout in TRANSFORMERS for kind in layout.model_types)
                raise ValueError(f"{file} is of a model of type {kind!r}; of transformers' models are known {known}.")
            return SavedSettings(data, str(file))
    folder = path if path.is_dir() else path.parent
    if layout is OWN:
        raise ValueError(f"{folder} has no {OWN.config_file}, which says what the weights are; save the model again.")
    return SavedSettings({}, str(folder / layout.config_file))


def meta_model(config: LMConfig, bits: Bits | None, tensors: Collection[str]) -> LM:
    """The model on the meta device, with quantized layers where `tensors` names their weights.

    ValueError for sizes that no tensor can have.
    """
    with without_numbers():
        model = LM(config)
        if bits is not None:
            make_room(model, bits, tensors)
    return model


@contextmanager
def without_numbers() -> Iterator[None]:
    """The meta device, for a model that is made here. ValueError for sizes that no tensor can have."""
    with torch.device("meta"):
        try:
            yield
        except (RuntimeError, OverflowError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"the config is of a model that cannot be ({reason}); correct its sizes.") from error


def converted_model(found: Checkpoint, change: Conversion) -> LM:
    """The converted model on the meta device."""
    return meta_model(
        found.config, found.bits or change.bits, found.files.shapes if change.bits is None else change.names()
    )


def check(files: Tensors, rules: list[Rule], model: nn.Module, layout: Layout) -> None:
    """ValueError for a tensor that is missing, unknown, or of another shape or dtype than the config needs."""
    ours = model.state_dict()
    expected: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, torch.dtype] = {}
    for rule in rules:
        theirs = rule.to_theirs([ours[name] for name in rule.ours])
        expected |= {name: tuple(x.shape) for name, x in zip(rule.theirs, theirs, strict=True)}
        kinds |= {name: x.dtype for name, x in zip(rule.theirs, theirs, strict=True)}
    for name in sorted(expected.keys() | files.shapes.keys()):
        found, needed = files.shapes.get(name), expected.get(name)
        allowed = WEIGHT_DTYPES if kinds.get(name) in WEIGHT_DTYPES else (kinds.get(name),)
        if found == needed and files.dtypes[name] in allowed:
            continue
        if needed is None and re.fullmatch(layout.ignored, name):
            continue
        if found is None:
            problem = f"{name} is missing"
        elif needed is None:
            problem = f"{name} of shape {found} is not known to the layout {layout.name!r}"
        elif found == needed:
            problem = f"{name} is of dtype {files.dtypes[name]} and not {' or '.join(map(str, allowed))}"
        else:
            problem = f"{name} has shape {found}, and the rest of the model needs {needed}"
        raise ValueError(f"{files.place} does not fit its config: {problem}; save or download the model again.")
