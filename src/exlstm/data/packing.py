"""Documents packed into one stream of tokens, and batches cut from it.

A stream is boundary, document, boundary, document, ... . For training it is a ring: the first boundary follows the last
document, so every token is the target of the one before it. A batch is a pure function of the stream, the seed and the
step, so a run resumes exactly from its step number. For evaluation the stream is read once, from beginning to end.

B batch  T time
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exlstm.data.text import Document
from exlstm.data.tokenizer import Tokenizer

# The target of a padded step: the value that torch's cross entropy ignores.
IGNORE = -100


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Tokens of all documents, each behind a boundary; `tokens` is uint16 or uint32 and may be memory-mapped.

    `bytes` is the size of the text, the denominator of bits per byte.
    """

    tokens: NDArray[np.unsignedinteger[Any]]
    bytes: int
    boundary: int

    def __len__(self) -> int:
        return len(self.tokens)


class Batch(NamedTuple):
    """Inputs and targets of one step, int64. Row b has `lengths_B[b]` steps, the rest is padding.

    Padding has input 0 and target IGNORE. `reset_BT` (bool) is true where the state must be cleared before a step: at
    boundaries, and where a carried state would belong to another place of the stream.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    reset_BT: Tensor
    lengths_B: Tensor


def pack(docs: Iterable[Document], tokenizer: Tokenizer) -> TokenStream:
    """Encodes and joins documents. Raises ValueError when there are none."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    boundary = np.array([tokenizer.boundary], dtype=dtype)
    size = 0

    def texts() -> Iterator[bytes]:
        nonlocal size
        for document in docs:
            size += len(document.data)
            yield document.data

    parts = [part for ids in tokenizer.encode_documents(texts()) for part in (boundary, ids.astype(dtype))]
    if not parts:
        raise ValueError("there are no documents to pack; give at least one.")
    return TokenStream(tokens=np.concatenate(parts), bytes=size, boundary=tokenizer.boundary)


def batch_at(stream: TokenStream, step: int, *, batch: int, length: int, seed: int, carry: bool) -> Batch:
    """The training batch of a step, `batch` rows of `length` tokens.

    carry: whether the state of a row goes on in the next step.
    Without carry, each epoch cuts the ring into windows from a new random place and visits them in a new random order.
    Every window starts with a cleared state, and a batch may span two epochs.
    With carry, each epoch cuts the ring into `batch` segments from a new random place. Row b of consecutive steps reads
    consecutive windows of segment b; its state is cleared at the first step of an epoch.
    Either way an epoch visits every token once, except for a remainder of less than one window (one batch with carry)
    whose place is random.

    Raises ValueError when batch or length is below 1, and when the text is too short for one window (with carry, one
    for each row).
    """
    assert step >= 0
    check_fits(stream, batch=batch, length=length, carry=carry)
    if not carry:
        return windows_at(stream, range(step * batch, (step + 1) * batch), length=length, seed=seed)
    windows = len(stream) // (batch * length)
    epoch, window = divmod(step, windows)
    first_B = np.arange(batch, dtype=np.int64) * windows
    return _cut(stream, _phase(stream, seed, epoch) + (first_B + window) * length, length, fresh=window == 0)


def windows_at(stream: TokenStream, turns: Sequence[int], *, length: int, seed: int) -> Batch:
    """Shuffled windows by their number, counted from 0 through all epochs; each starts with a cleared state.

    The text holds at least one window, and `turns` has at least one number.
    """
    windows = len(stream) // length
    visits = [divmod(turn, windows) for turn in turns]
    starts = [_phase(stream, seed, epoch) + _shuffled(index, windows, seed, epoch) * length for epoch, index in visits]
    return _cut(stream, np.array(starts), length, fresh=True)


def check_fits(stream: TokenStream, *, batch: int, length: int, carry: bool) -> None:
    """Raises ValueError for a text that is too short for one window (with carry, one for each row)."""
    _check(stream, batch=batch, length=length, windows=batch if carry else 1)


def _cut(stream: TokenStream, starts_B: NDArray[np.int64], length: int, *, fresh: bool) -> Batch:
    """Rows cut from the ring. fresh: every row starts with a cleared state."""
    places = (starts_B[:, None] + np.arange(length + 1)) % len(stream)
    tokens = torch.from_numpy(stream.tokens[places].astype(np.int64))
    inputs_BT, targets_BT = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    reset_BT = inputs_BT == stream.boundary
    if fresh:
        reset_BT[:, 0] = True
    return Batch(inputs_BT, targets_BT, reset_BT, torch.full((len(starts_B),), length))


def sequential_batches(stream: TokenStream, *, batch: int, length: int, context: int = 0) -> Iterator[Batch]:
    """Batches that read the whole stream once, in order; the state is carried from each batch to the next.

    The stream is cut into `batch` segments, a row each, whose lengths differ by at most one step; a stream of fewer
    targets has fewer rows. All segments but the first begin inside a document, with a cleared state. They first read
    the `context` tokens before them, without targets. Batches have `length` steps, the last one 1 to `length + 1`.
    Every token but the first boundary is a target once. Memory does not depend on the length of the stream.
    """
    _check(stream, batch=batch, length=length, windows=0)
    targets = len(stream) - 1
    context = min(context, targets - 1)
    batch = min(batch, targets - context)
    # the first segment has targets in its `context` steps, so all segments are as long with them
    edges = context + np.arange(batch + 1) * (targets - context) // batch
    starts_B = edges[:-1] - context
    shortest = int((edges[1:] - starts_B).min())
    for start in range(0, shortest, length):
        # the token by which segments differ joins the last batch, so that no row has length 0
        last = start + length >= shortest
        stops_B = edges[1:] if last else starts_B + start + length
        found = _rows(stream, starts_B + start, stops_B, first=start == 0)
        found.targets_BT[1:, : max(context - start, 0)] = IGNORE
        yield found


def windows_of(stream: TokenStream, *, length: int, batch: int = 1, limit: int | None = None) -> Iterator[Batch]:
    """The first `limit` targets of the stream (None: all) in windows of `length`, each starting from a cleared state.

    Any two lengths have the same targets, so their losses compare contexts. The last window may be shorter, and the
    last batch may have fewer rows. Raises ValueError for a stream shorter than one window, and for a limit below 1.
    """
    _check(stream, batch=batch, length=length, windows=1)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves nothing to evaluate; use 1 or more tokens, or None for all.")
    total = len(stream) - 1 if limit is None else min(limit, len(stream) - 1)
    starts = np.arange(0, total, length)
    for first in range(0, len(starts), batch):
        starts_B = starts[first : first + batch]
        yield _rows(stream, starts_B, np.minimum(starts_B + length, total), first=True)


def _rows(stream: TokenStream, starts_B: NDArray[np.int64], stops_B: NDArray[np.int64], *, first: bool) -> Batch:
    lengths_B = stops_B - starts_B
    steps_T = np.arange(lengths_B.max())
    valid_BT = torch.from_numpy(steps_T < lengths_B[:, None])
    index_BT = np.minimum(starts_B[:, None] + steps_T, len(stream) - 2)
    inputs_BT = torch.from_numpy(stream.tokens[index_BT].astype(np.int64)).where(valid_BT, 0)
    targets_BT = torch.from_numpy(stream.tokens[index_BT + 1].astype(np.int64)).where(valid_BT, IGNORE)
    reset_BT = (inputs_BT == stream.boundary) & valid_BT
    if first:
        reset_BT[:, 0] = True
    return Batch(inputs_BT, targets_BT, reset_BT, torch.from_numpy(lengths_B))


def _check(stream: TokenStream, *, batch: int, length: int, windows: int) -> None:
    if batch < 1 or length < 1:
        raise ValueError(f"batch={batch} and length={length} hold no token; both must be at least 1.")
    # one token more than steps: the last target
    need = max(windows * length, 1) + 1
    if len(stream) < need:
        raise ValueError(
            f"the text has {len(stream)} tokens and {max(windows, 1)} window(s) of length {length} need {need}; "
            "give more text, or a smaller length or batch."
        )


def _key(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8).digest(), "little")


def _phase(stream: TokenStream, seed: int, epoch: int) -> int:
    """The place on the ring where an epoch begins to cut; 0 for the first epoch."""
    return _mix(_key(seed, epoch)) % len(stream) if epoch else 0


def _mix(x: int) -> int:
    """A 64-bit hash (the finaliser of splitmix64)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def _shuffled(index: int, size: int, seed: int, epoch: int) -> int:
    """Element `index` of this epoch's permutation of range(size), in constant time and memory.

    A Feistel network permutes the smallest range of 4^n that holds `size`; walking its cycle until the number is
    below `size` again permutes range(size).
    """
    half = (max(size - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    key = _key(seed, epoch)
    while True:
        left, right = index >> half, index & mask
        for turn in range(6):
            left, right = right, left ^ (_mix(key + (turn << 48) + right & 0xFFFFFFFFFFFFFFFF) & mask)
        index = left << half | right
        if index < size:
            return index
