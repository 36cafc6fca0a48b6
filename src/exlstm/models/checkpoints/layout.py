"""Layouts of checkpoints, and functions for reading their configs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from exlstm.models.checkpoints.rules import Rule
from exlstm.models.lm import LM, LMConfig

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names, shapes and settings of a model on disk.

    has: regular expressions for beginnings of tensors' names, all of which only this layout has.
    read: the config, from shapes first, and from the saved settings where shapes do not tell.
    rules: rules of tensors, from the model (on any device) and the shapes found, or None for writing.
    write: saved settings of a config; ValueError that names what the layout cannot express.
    shard: file name of shard i of n. indexed: True if an index names the shards.
    model_types: transformers' names of the models, where a layout is of some of them. fits: of several layouts of one
    name, whether this one is for a model of that config. ignored: regular expression for names of tensors that are no
    weights.
    """

    name: str
    has: tuple[str, ...]
    config_file: str
    read: "Callable[[Shapes, SavedSettings], LMConfig]"
    rules: Callable[[LM, Shapes | None], list[Rule]]
    write: Callable[[LMConfig], dict[str, Any]]
    shard: Callable[[int, int], str]
    indexed: bool
    model_types: tuple[str, ...] = ()
    fits: Callable[[LMConfig], bool] = lambda _: True
    ignored: str = r"(?!)"

    @property
    def label(self) -> str:
        """The name, and transformers' name of the model."""
        return f"{self.name} ({self.model_types[0]})" if self.model_types else self.name


@dataclass
class SavedSettings:
    """Settings from a config file; `assumed` lists those that were missing, with the layout's defaults."""

    data: Mapping[str, Any]
    source: str  # the file, for messages
    assumed: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any) -> Any:
        """The setting, or the layout's default."""
        if name not in self.data:
            self.assumed[name] = default
        return self.data.get(name, default)

    def number(self, name: str, default: float) -> float:
        """A setting that is a number. ValueError for other values."""
        value = self.get(name, default)
        if isinstance(value, str):
            try:
                value = float(value)  # YAML reads 1e-6 as a text
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.source} has {name} {self.data.get(name)!r}, which is no number; correct it.")
        return value

    def whole(self, name: str, default: int) -> int:
        """A setting that is a whole number, at least 1. ValueError for other values."""
        value = self.number(name, default)
        if value < 1 or not (isinstance(value, int) or value.is_integer()):
            raise ValueError(f"{self.source} has {name} {value!r}; it has to be a whole number of at least 1.")
        return int(value)

    def flag(self, name: str) -> bool:
        """A present setting that is True or False. ValueError for other values."""
        if not isinstance(value := self.data[name], bool):
            raise ValueError(f"{self.source} has {name} {value!r}, which is not true or false; correct it.")
        return value

    def part(self, *names: str) -> "SavedSettings":
        """Settings nested under these names; empty if they are missing."""
        data: Any = self.data
        for name in names:
            data = data.get(name) if isinstance(data, Mapping) else None
        return SavedSettings(data if isinstance(data, Mapping) else {}, self.source, self.assumed)


def require(settings: Mapping[str, tuple[Any, Any]]) -> None:
    """ValueError for the first setting, (value, the only one that the layout can hold) by name, of another value."""
    for name, (value, only) in settings.items():
        if value != only:
            raise ValueError(f"{name} is {value!r}; with this layout it has to be {only!r}.")


def plain_stack(config: LMConfig) -> dict[str, tuple[Any, Any]]:
    """Settings, for `require`, of a model of residual blocks whose embedding is the input of the first."""
    names = {"embed_scale": None, "positions": None, "embed_norm": False, "residual": True}
    return {name: (getattr(config, name), only) for name, only in names.items()}


def same_eps(settings: SavedSettings, name: str, here: float) -> None:
    """ValueError for an epsilon of the cell other than ours."""
    if (found := settings.number(name, here)) != here:
        raise ValueError(f"{settings.source} has {name} {found:g}; this version computes with {here:g} only.")


def tied(names: Shapes, head: str, settings: SavedSettings, key: str) -> bool:
    """True if the head is the embedding: by the settings, or because no head is stored."""
    if key in settings.data:
        return settings.flag(key)
    if head not in names:
        settings.assumed[key] = True
    return head not in names


def shape(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """Shape of a required tensor. ValueError if it is missing or has another number of axes."""
    if name not in shapes:
        raise ValueError(f"{name} is missing from the weights; save or download the model again.")
    if len(shapes[name]) != axes or 0 in shapes[name]:
        raise ValueError(
            f"{name} has shape {shapes[name]}, and it needs {axes} axes, none of 0; save or download the model again."
        )
    return shapes[name]


def depth(shapes: Shapes, prefix: str) -> int:
    """Number of blocks: names are `prefix`, a number from 0 on, and a dot."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
    found = sum(number.isdecimal() for number in numbers)
    # counted, not the maximum: a name may have any number in it
    missing = next((index for index in range(max(found, 1)) if str(index) not in numbers), None)
    if missing is not None:
        raise ValueError(f"there is no {prefix}{missing} among the weights; save or download the model again.")
    return found


def factor(width: int, size: int, rounded: Callable[[float], float], usual: float) -> float:
    """Factor of `width` whose product is rounded to `size`: the usual one if it fits, else a short one."""
    for candidate in (usual, size / width, (size - 0.5) / width, (size + 0.5) / width):
        if rounded(candidate * width) == size:
            return candidate
    raise ValueError(f"the width {size} is no multiple of the model's width {width} that rounds to it.")


def ceil_to(multiple: int) -> Callable[[float], float]:
    """Rounding up to a multiple."""
    return lambda x: math.ceil(x / multiple) * multiple


def multiple_of(size: int) -> int:
    """The multiple that a width was rounded up to: 64, or 1."""
    return 1 if size % 64 else 64
