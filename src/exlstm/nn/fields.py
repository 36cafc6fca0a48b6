"""Fields of configs: each is checked by its annotation, wherever the value comes from.

@dataclass(frozen=True, kw_only=True)
class Config:
    heads: Size = 4
    norm: Literal["layer", "rms"] = "layer"
    cap: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)
"""

import json
import math
import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text. ValueError for any other text, and for brackets nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


@dataclass(frozen=True, kw_only=True, repr=False)
class Range:
    """An interval of numbers, without bounds unless given; never infinity or NaN.

    least, most: bounds that belong to it. above, below: bounds that do not.
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def holds(self, x: float) -> bool:
        """True if the number lies in the range."""
        # an int is compared as it is: converted to float it could overflow
        return (isinstance(x, int) or math.isfinite(x)) and (
            self.least <= x <= self.most and (x > self.above) and (x < self.below)
        )

    def __repr__(self) -> str:
        """The call that made it, for signatures."""
        ends = ", ".join(f"{name}={x}" for name, x in vars(self).items() if math.isfinite(x))
        return f"Range({ends})"

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least} to {self.most}"
        ends = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return " and ".join(f"{word} {x}" for word, x in ends.items() if not math.isinf(x))


MAX_SIZE = 2**31 - 1
Size = Annotated[int, Range(least=1, most=MAX_SIZE)]
SizeOrZero = Annotated[int, Range(least=0, most=MAX_SIZE)]
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
Finite = Annotated[float, Range()]
Factor = Annotated[float, Range(above=0, most=2**16)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(least=0, below=1)]
Portion = Annotated[float, Range(above=0, most=1)]


def check_fields(config: Any) -> None:
    """ValueError, in one sentence, for the first field whose value its annotation does not allow.

    config: a dataclass. Annotations may be bool, int, float (ints pass), str, None, Literal, unions, tuples of any
    length, other classes, and Annotated with a `Range`.
    """
    kinds = annotations(type(config))  # type: ignore[arg-type]
    for field in fields(config):
        value = getattr(config, field.name)
        if not fits(value, kinds[field.name]):
            raise ValueError(f"{field.name} is {reprlib.repr(value)}; it must be {in_words(kinds[field.name])}.")


@cache
def annotations(cls: type) -> dict[str, Any]:
    """Annotations of a dataclass by field, with their ranges; computed once per class."""
    return get_type_hints(cls, include_extras=True)


def fits(value: Any, kind: Any) -> bool:
    """True if the value is of this type, and in its range."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner, *limits = arguments
        return fits(value, inner) and all(limit.holds(value) for limit in limits)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(one, arguments[0]) for one in value)
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind) and not isinstance(value, type)


def in_words(kind: Any) -> str:
    """The type and range in words, for "it must be ..."."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{in_words(arguments[0])} {arguments[1]}".rstrip()
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(one) for one in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a tuple, each of it {in_words(arguments[0])}"
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", types.NoneType: "None"}
    return words.get(kind) or f"a {kind.__name__}"


def without_defaults(value: Any) -> Any:
    """A config as plain data, without fields that have their default: a field that is added later changes nothing.

    So it is with every dataclass inside; each tells its class as "kind".
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: (field.default, getattr(value, field.name)) for field in fields(value)}
        chosen = {name: item for name, (default, item) in found.items() if default is MISSING or item != default}
        return {"kind": type(value).__name__, **{name: without_defaults(item) for name, item in chosen.items()}}
    if isinstance(value, Mapping):
        return {key: without_defaults(item) for key, item in value.items()}
    return [without_defaults(item) for item in value] if isinstance(value, tuple | list) else value
