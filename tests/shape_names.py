"""The checker of shape names: `x_BTD` has three dimensions, and within one call a letter means one size.

`watch()` looks at the first calls of each function of the package, as they return. Violations are collected rather than
raised, because an exception out of a profile function switches the profile off and would make a second run of the same
test pass.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

import exlstm

PACKAGE = str(Path(exlstm.__file__).parent)
SUFFIX = re.compile(r"[^_].*_([A-Z1]+)")
ARRAYS = (torch.Tensor, np.ndarray)
LOOKS = 40  # at one function in one test: a loop over time calls a step hundreds of times with the same shapes
FIELDS: dict[type, tuple[str, ...]] = {}


def fields(kind: type) -> tuple[str, ...]:
    """The field names of a NamedTuple or of one of our dataclasses; none for any other type."""
    if kind not in FIELDS:
        ours = is_dataclass(kind) and kind.__module__.startswith("exlstm")
        FIELDS[kind] = getattr(kind, "_fields", ()) or (tuple(kind.__dataclass_fields__) if ours else ())
    return FIELDS[kind]


def violations(values: dict[str, Any], sizes: dict[str, int]) -> Iterator[str]:
    """Violations among these named values, given the sizes that letters already have."""
    for name, value in values.items():
        if isinstance(value, ARRAYS):
            if found := SUFFIX.fullmatch(name):
                yield from mismatches(name, tuple(value.shape), found[1], sizes)
        elif names := fields(type(value)):
            # a record is a scope of its own: the T of a state is not the T of the call
            yield from violations({n: getattr(value, n) for n in names}, {})
        elif type(value) is tuple and value and fields(type(value[0])):
            for item in value:
                yield from violations({"item": item}, {})


def mismatches(name: str, shape: tuple[int, ...], letters: str, sizes: dict[str, int]) -> Iterator[str]:
    if len(shape) != len(letters):
        yield f"{name} has shape {shape}"
        return
    for letter, size in zip(letters, shape, strict=True):
        expected = 1 if letter == "1" else sizes.setdefault(letter, size)
        if size != expected:
            yield f"{name} has shape {shape}, but {letter} = {expected} here"


def sizes_in(values: dict[str, Any]) -> dict[str, int]:
    """Local integers with one-letter names, such as B, T, D = x_BTD.shape, give their letters a size."""
    return {n: v for n, v in values.items() if len(n) == 1 and n.isupper() and type(v) is int}


@contextmanager
def watch(inside: str = PACKAGE) -> Iterator[list[str]]:
    """Check calls of functions defined under the folder `inside`; yields the list that fills with violations."""
    found: list[str] = []
    looks: dict[CodeType, int] = {}  # still to be taken

    def profile(frame: FrameType, event: str, result: object) -> None:
        # a call that raised also "returns" None; its inputs may be wrong on purpose
        if event != "return" or result is None:
            return
        code = frame.f_code
        if code not in looks:
            looks[code] = LOOKS if code.co_filename.startswith(inside) else 0
        if looks[code]:
            looks[code] -= 1
            values = frame.f_locals
            for problem in violations(values, sizes_in(values)):
                message = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}: {problem}"
                if message not in found:
                    found.append(message)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(before)
