"""Documents packed into one stream of tokens, and batches cut from it.

A stream is boundary, document, boundary, document, ... . For training it is a ring: the first boundary follows the last
document, so every token is the target of the one before it. A batch is a pure function of the stream, the seed and the
step, so a run resumes exactly from its step number. For evaluation the stream is a line that is read once.

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

# The target of a padded step: what torch's cross entropy ignores.
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
    """One step's data, int64. Row b has `lengths_B[b]` steps, the rest is padding (input 0, target IGNORE).

    `reset_BT` (bool) is true where the state must be cleared before the step: the inputs that are boundaries, and
    the places where a carried state would come from somewhere else.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    reset_BT: Tensor
    lengths_B: Tensor


def pack(docs: Iterable[Document], tokenizer: Tokenizer) -> TokenStream:
    """Encode and join documents. ValueError when there are none."""
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

    carry=False  Shuffled windows. Each epoch cuts the ring into windows from a new random place and visits them in a
                 new random order; a batch may span two epochs. Every window starts with a cleared state.
    carry=True   Each epoch cuts the ring into `batch` lanes from a new random place, and row b of consecutive steps are
                 consecutive windows of lane b, so the state of one step belongs to the next; lanes reset at step 0
                 of an epoch.

    In both cases an epoch visits every token once, except for a remainder smaller than one window (one batch when
    carried) that the random place moves around.

    Raises ValueError when batch or length is below 1, and when the text is too short for one window (one per lane).
    """
    assert step >= 0
    check_fits(stream, batch=batch, length=length, carry=carry)
    if not carry:
        return windows_at(stream, range(step * batch, (step + 1) * batch), length=length, seed=seed)
    windows = len(stream) // (batch * length)
    epoch, window = divmod(step, windows)
    lanes_B = np.arange(batch, dtype=np.int64) * windows
    return _cut(stream, _phase(stream, seed, epoch) + (lanes_B + window) * length, length, fresh=window == 0)


def windows_at(stream: TokenStream, turns: Sequence[int], *, length: int, seed: int) -> Batch:
    """Shuffled windows by their turn, which counts from 0 on through all epochs; each starts with a cleared state.

    The text holds at least one window, and there is at least one turn.
    """
    windows = len(stream) // length
    visits = [divmod(turn, windows) for turn in turns]
    starts = [_phase(stream, seed, epoch) + _shuffled(index, windows, seed, epoch) * length for epoch, index in visits]
    return _cut(stream, np.array(starts), length, fresh=True)


def check_fits(stream: TokenStream, *, batch: int, length: int, carry: bool) -> None:
    """ValueError for a text that is too short for one window (one per lane when carried)."""
    _check(stream, batch=batch, length=length, windows=batch if carry else 1)


def _cut(stream: TokenStream, starts_B: NDArray[np.int64], length: int, *, fresh: bool) -> Batch:
    """Rows of the ring. fresh: every row starts with a cleared state."""
    places = (starts_B[:, None] + np.arange(length + 1)) % len(stream)
    tokens = torch.from_numpy(stream.tokens[places].astype(np.int64))
    inputs_BT, targets_BT = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    reset_BT = inputs_BT == stream.boundary
    if fresh:
        reset_BT[:, 0] = True
    return Batch(inputs_BT, targets_BT, reset_BT, torch.full((len(starts_B),), length))


def lanes(stream: TokenStream, *, batch: int, length: int, context: int = 0) -> Iterator[Batch]:
    """The whole stream in order, with a state to carry from each batch to the next: every target exactly once.

    The stream is cut into `batch` lanes of as many steps each, up to one (fewer lanes when it is shorter than that).
    Lanes but the first begin inside a document, with a cleared state: their first `context` steps are those that come
    before their part of the stream, without targets. Batches have `length` steps, the last one 1 to `length + 1`.
    Memory does not depend on the stream. The stream's first boundary is no target.
    """
    _check(stream, batch=batch, length=length, windows=0)
    targets = len(stream) - 1
    context = min(context, targets - 1)
    batch = min(batch, targets - context)
    # the first lane has targets for the `context` steps too, so that all lanes are as long
    edges = context + np.arange(batch + 1) * (targets - context) // batch
    starts_B = edges[:-1] - context
    shortest = int((edges[1:] - starts_B).min())
    for start in range(0, shortest, length):
        # lanes differ by at most one token, which joins the last batch: no lane ever comes with length 0
        last = start + length >= shortest
        stops_B = edges[1:] if last else starts_B + start + length
        found = _rows(stream, starts_B + start, stops_B, first=start == 0)
        found.targets_BT[1:, : max(context - start, 0)] = IGNORE
        yield found


def windows_of(stream: TokenStream, *, length: int, batch: int = 1, limit: int | None = None) -> Iterator[Batch]:
    """The first `limit` targets of the stream (None: all) in windows of `length`, each starting from a cleared state.

    Different lengths see the same targets, so their losses compare contexts. The last window may be shorter, the
    last batch may have fewer rows. ValueError when the stream is shorter than one window, or limit below 1.
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
    # one more token than steps: the last one's target
    need = max(windows * length, 1) + 1
    if len(stream) < need:
        raise ValueError(
            f"the text has {len(stream)} tokens and {max(windows, 1)} window(s) of length {length} need {need}; "
            "give more text, or a smaller length or batch."
        )


def _key(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8).digest(), "little")


def _phase(stream: TokenStream, seed: int, epoch: int) -> int:
    """Where on the ring an epoch starts to cut; the first one starts at the beginning."""
    return _mix(_key(seed, epoch)) % len(stream) if epoch else 0


def _mix(x: int) -> int:
    """A 64-bit hash (the finaliser of splitmix64)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def _shuffled(index: int, size: int, seed: int, epoch: int) -> int:
    """Where `index` goes in this epoch's permutation of range(size): constant time and memory for any size.

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
