"""Baselines of a language model: a byte n-gram model, gzip and xz, in bits per byte of the same text.

The n-gram model interpolates with Witten and Bell's weights (method C of "The zero-frequency problem", 1991), from the
uniform distribution over 256 bytes up to the longest context h = byte_{t-order} ... byte_{t-1}:

    P_k(c | h) = (N(h c) + D(h) P_{k-1}(c | h')) / (N(h) + D(h))        h' = h without its first byte

N counts in the training text, and D(h) is the number of different bytes that follow h there; P_k = P_{k-1} where h does
not occur. Documents are independent: each one starts after `order` NUL bytes and ends by predicting one NUL, which
stands for the boundary that a token model predicts. Bits are divided by the bytes of the text alone.
"""

import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exlstm.data.text import Document

# Bytes of a context and the byte that follows it, as one big-endian number.
Codes = NDArray[np.unsignedinteger[Any]]

# Bytes counted or scored at once: bounds the memory to some hundred MB beside the model itself.
CHUNK_BYTES = 1 << 24
# A context and the byte after it are one 64-bit number.
MAX_ORDER = 7


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Bits per byte of the validation text for each baseline."""

    trigram: float
    gzip: float
    xz: float


class NGram:
    """A byte n-gram model of the given texts that looks `order` bytes back (2: a trigram model)."""

    def __init__(self, texts: Iterable[bytes], *, order: int) -> None:
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"order={order} does not fit one 64-bit number; use 0 to {MAX_ORDER}.")
        self.order = order
        codes, counts = _count(texts, order)
        self._levels: list[_Level] = []
        for context in range(order, -1, -1):
            # the codes of a shorter context are the low bytes of those of a longer one
            codes, counts = _sum_equal(codes & _low_bytes(context + 1, codes.dtype), counts)
            self._levels.insert(0, _Level.of(codes, counts))

    def bits_per_byte(self, texts: Iterable[bytes]) -> float:
        """Bits for the texts and their ends, per byte of text. Raises ValueError for texts without a byte."""
        texts = list(texts)
        size = _size(texts)
        codes, counts = _count(texts, self.order)
        return float(-(counts * np.log2(self._probability(codes))).sum() / size)

    def probabilities(self, context: bytes) -> NDArray[np.float64]:
        """Probabilities of the next byte, [256], after the first bytes of a document."""
        history = (bytes(self.order) + context)[-self.order :] if self.order else b""
        high = np.uint64(int.from_bytes(history, "big") << 8)
        return self._probability((np.arange(256, dtype=np.uint64) | high).astype(_dtype(self.order)))

    def _probability(self, codes: Codes) -> NDArray[np.float64]:
        probability = np.full(len(codes), 1 / 256)
        for context, level in enumerate(self._levels):
            low = codes & _low_bytes(context + 1, codes.dtype)
            count = _look_up(level.codes, level.counts, low)
            total = _look_up(level.contexts, level.totals, low >> codes.dtype.type(8))
            distinct = _look_up(level.contexts, level.distinct, low >> codes.dtype.type(8))
            mixed = (count + distinct * probability) / np.maximum(total + distinct, 1)
            probability = np.where(total > 0, mixed, probability)
        return probability


class _Level(NamedTuple):
    """Counts of contexts of one length. A code is a context and the byte after it, big-endian; codes are sorted."""

    codes: Codes
    counts: NDArray[np.int64]
    contexts: Codes
    totals: NDArray[np.int64]
    distinct: NDArray[np.int64]

    @classmethod
    def of(cls, codes: Codes, counts: NDArray[np.int64]) -> "_Level":
        contexts, totals = _sum_equal(codes >> codes.dtype.type(8), counts)
        _, distinct = _sum_equal(codes >> codes.dtype.type(8), np.ones_like(counts))
        return cls(codes, counts, contexts, totals, distinct)


def baselines(train: Iterable[Document], val: Iterable[Document]) -> Baselines:
    """Bits per byte of `val` by a trigram model of `train`, gzip -9 and xz -9. Raises ValueError for an empty `val`."""
    texts = [document.data for document in val]
    trigram = NGram((document.data for document in train), order=2)
    return Baselines(trigram=trigram.bits_per_byte(texts), gzip=gzip_bits(texts), xz=xz_bits(texts))


def gzip_bits(texts: Iterable[bytes]) -> float:
    """Bits per byte of `gzip -9` on the texts joined together."""
    texts = list(texts)
    compressor = zlib.compressobj(9, wbits=31)
    packed = sum(len(compressor.compress(text)) for text in texts) + len(compressor.flush())
    return 8 * packed / _size(texts)


def xz_bits(texts: Iterable[bytes]) -> float:
    """Bits per byte of `xz -9` on the texts joined together."""
    texts = list(texts)
    size = _size(texts)
    # `xz -9` has a window of 64 MiB, for which it takes 674 MiB; one as long as the text is as good
    window = min(1 << 26, max(size, 1 << 12))
    compressor = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}])
    packed = sum(len(compressor.compress(text)) for text in texts) + len(compressor.flush())
    return 8 * packed / size


def _size(texts: Sequence[bytes]) -> int:
    size = sum(map(len, texts))
    if not size:
        raise ValueError("bits per byte of 0 bytes mean nothing; give a validation part with text in it.")
    return size


def _dtype(order: int) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if order < 4 else np.uint64


def _low_bytes(count: int, dtype: np.dtype[np.unsignedinteger[Any]]) -> np.unsignedinteger[Any]:
    return dtype.type((1 << 8 * count) - 1)


def _runs(texts: Iterable[bytes], order: int) -> Iterator[bytes]:
    """Every text between its NULs, cut to a bounded size; each part begins with `order` bytes of context."""
    for text in texts:
        for start in range(0, len(text) + 1, CHUNK_BYTES):
            stop = start + CHUNK_BYTES
            head = text[max(start - order, 0) : start].rjust(order, b"\0")
            yield head + text[start:stop] + (b"\0" if stop > len(text) else b"")


def _count(texts: Iterable[bytes], order: int) -> tuple[Codes, NDArray[np.int64]]:
    """The distinct codes of all predicted bytes, sorted, and their counts."""
    codes: Codes = np.empty(0, _dtype(order))
    counts = np.empty(0, np.int64)
    runs: list[bytes] = []
    size = 0

    def merge() -> None:
        nonlocal codes, counts, size
        found, times = np.unique(_codes(runs, order), return_counts=True)
        codes, counts = _sum_equal(np.concatenate([codes, found]), np.concatenate([counts, times]))
        runs.clear()
        size = 0

    for run in _runs(texts, order):
        runs.append(run)
        size += len(run)
        if size >= CHUNK_BYTES:
            merge()
    merge()
    return codes, counts


def _codes(runs: Sequence[bytes], order: int) -> Codes:
    text = np.frombuffer(b"".join(runs), np.uint8)
    starts = np.cumsum([0, *map(len, runs)])[:-1]
    predicted = np.ones(len(text), bool)
    for offset in range(order):
        predicted[starts + offset] = False
    codes = np.zeros(len(text), _dtype(order))
    for back in range(order + 1):
        codes[back:] |= text[: len(text) - back].astype(codes.dtype) << codes.dtype.type(8 * back)
    return codes[predicted]


def _sum_equal(codes: Codes, counts: NDArray[np.int64]) -> tuple[Codes, NDArray[np.int64]]:
    """The distinct codes, sorted, and the sum of the counts of each."""
    if not len(codes):
        return codes, counts
    order = np.argsort(codes, kind="stable")
    codes, counts = codes[order], counts[order]
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
    return codes[starts], np.add.reduceat(counts, starts)


def _look_up(keys: Codes, values: NDArray[np.int64], wanted: Codes) -> NDArray[np.int64]:
    """The value of each wanted key, 0 where there is none; keys are sorted."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
