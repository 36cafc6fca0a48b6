"""Header of a state's bytes (safetensors): metadata, and the place of every tensor; read as what a stranger sent.

8 bytes, little-endian: the length of the JSON text that follows; then the tensors, one after another.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from mmap import mmap
from typing import Any

import torch

Bytes = bytes | bytearray | memoryview | mmap

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH_BYTES = 8
ABOUT = "__metadata__"
EXCERPT = 60  # characters


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """A tensor in the bytes: dtype, shape, and its bytes from `start` to `end`, counted from the first tensor's."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class StateHeader:
    """The header of a state. about: metadata. places: of the tensors, by name. start: the first byte behind it."""

    about: dict[str, str]
    places: dict[str, TensorPlace]
    start: int


def written_header(about: dict[str, str], places: dict[str, TensorPlace]) -> bytes:
    """The bytes in front of the tensors, a multiple of 8."""
    entries: dict[str, Any] = {
        name: {"dtype": NAMES[place.dtype], "shape": place.shape, "data_offsets": (place.start, place.end)}
        for name, place in places.items()
    }
    text = json.dumps({ABOUT: about, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def header_length(data: Bytes, total: int, most: int | None) -> int:
    """Bytes of the header with its length in front. ValueError for more than `most` or `total`, those of all."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if total < LENGTH_BYTES or not 2 <= length <= total - LENGTH_BYTES:
        raise ValueError(f"its header would have {length:,} of {total:,} bytes")
    if most is not None and length > most:
        raise ValueError(f"its header has {length:,} bytes, and {most:,} are allowed")
    return LENGTH_BYTES + length


def read_header(data: Bytes, total: int, most: int | None) -> StateHeader:
    """The header that `data` begins with, of a state of `total` bytes.

    most: bytes of its JSON text that are allowed. Raises ValueError for what is no header, and unless the tensors fill
    the rest, each byte once.
    """
    start = header_length(data, total, most)
    text = bytes(data[LENGTH_BYTES:start])
    if not text.startswith(b"{"):
        raise ValueError("its header is no JSON object")
    try:
        found = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refused)
    except RecursionError:
        raise ValueError("the brackets of its header are nested too deeply") from None
    about = found.pop(ABOUT, {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("its metadata are no texts")
    places = {name: _place(name, entry, total - start) for name, entry in found.items()}
    _check_tiling(places.values(), total - start)
    return StateHeader(about=about, places=places, start=start)


def excerpt(found: Any) -> str:
    """What was found, for an error message: short, and without characters that cannot be printed."""
    text = ascii(found)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _refused(word: str) -> None:
    raise ValueError(f"its header has the number {word}")


def _place(name: str, entry: Any, size: int) -> TensorPlace:
    """A checked entry of the header; `size` are the bytes of all tensors, which no number of it may exceed."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{excerpt(name)} in its header is no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{excerpt(name)} has the dtype {excerpt(dtype)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= size for n in numbers):
            raise ValueError(f"{excerpt(name)} has the size {excerpt(numbers)}, of {size:,} bytes in all")
    if len(offsets) != 2 or offsets[1] - offsets[0] != prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{excerpt(name)} of shape {excerpt(shape)} has the data_offsets {excerpt(offsets)}")
    return TensorPlace(dtype=DTYPES[dtype], shape=tuple(shape), start=offsets[0], end=offsets[1])


def _check_tiling(places: Iterable[TensorPlace], size: int) -> None:
    """ValueError unless the tensors follow one another from the first byte to the last."""
    end = 0
    for place in sorted(places, key=lambda each: (each.start, each.end)):
        if place.start != end:
            raise ValueError(f"its tensors overlap or leave a hole at byte {min(place.start, end):,}")
        end = place.end
    if end != size:
        raise ValueError(f"its tensors have {end:,} bytes, and {size:,} are there")
