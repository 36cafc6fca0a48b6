"""Packed streams and the batches cut from them."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exlstm.data.packing import IGNORE, Batch, TokenStream, batch_at, pack, sequential_batches, windows_of
from exlstm.data.packing import _shuffled as shuffled
from exlstm.data.text import Document
from exlstm.data.tokenizer import ByteTokenizer, train_bpe

BOUNDARY = 10_000


def numbered(sizes: list[int]) -> TokenStream:
    """Documents whose tokens are their places in the stream, so that every token says where it came from."""
    tokens = np.arange(sum(sizes) + len(sizes), dtype=np.uint16)
    tokens[np.cumsum([0, *(size + 1 for size in sizes)])[:-1]] = BOUNDARY
    return TokenStream(tokens=tokens, bytes=sum(sizes), boundary=BOUNDARY)


def places(stream: TokenStream, batch: Batch) -> list[int]:
    """Places of the valid inputs of a batch in the stream; checks that targets are the next tokens."""
    found = []
    where = {int(token): i for i, token in enumerate(stream.tokens) if token != BOUNDARY}
    for inputs, targets, length in zip(batch.inputs_BT, batch.targets_BT, batch.lengths_B, strict=True):
        steps = int(length)
        row = [where.get(int(token), -1) for token in inputs[:steps]]
        # a boundary does not say where it is: ask its neighbours
        known = next(((t, place) for t, place in enumerate(row) if place >= 0), None)
        if known is None:
            assert steps == 1
            known = (1, where[int(targets[0])])
        first = known[1] - known[0]
        index = [(first + t) % len(stream) for t in range(steps + 1)]
        assert torch.cat([inputs[:steps], targets[steps - 1 : steps]]).tolist() == stream.tokens[index].tolist()
        assert inputs[1:steps].tolist() == targets[: steps - 1].tolist()
        assert (inputs[steps:] == 0).all()
        assert (targets[steps:] == IGNORE).all()
        found += index[:-1]
    return found


def check_kinds(batch: Batch) -> None:
    kinds = [part.dtype for part in batch]
    assert kinds == [torch.int64, torch.int64, torch.bool, torch.int64]
    assert all(isinstance(part, Tensor) and part.is_contiguous() for part in batch)


STREAMS = st.lists(st.integers(1, 30), min_size=2, max_size=8).map(numbered)


def test_a_stream_is_boundary_document_boundary_document() -> None:
    docs = [Document("a", b"ab"), Document("b", b"c\xff"), Document("c", b"")]
    stream = pack(docs, ByteTokenizer())
    assert stream.tokens.tolist() == [256, 97, 98, 256, 99, 255, 256]
    assert stream.tokens.dtype == np.uint16
    assert (stream.bytes, stream.boundary, len(stream)) == (4, 256, 7)


def test_tokens_take_two_bytes_until_they_do_not_fit() -> None:
    tokenizer = train_bpe([b"abab" * 10], 300)
    assert pack([Document("a", b"abab")], tokenizer).tokens.dtype == np.uint16

    class Wide(ByteTokenizer):
        vocab_size = (1 << 16) + 1
        boundary = 1 << 16

    stream = pack([Document("a", b"a")], Wide())
    assert stream.tokens.dtype == np.uint32
    assert stream.tokens.tolist() == [1 << 16, 97]


def test_bytes_of_a_stream_are_the_bytes_of_its_tokens() -> None:
    docs = [Document("a", b"one two one two\xff"), Document("b", "\u00fc one".encode())]
    tokenizer = train_bpe([document.data for document in docs], 270)
    stream = pack(docs, tokenizer)
    assert tokenizer.byte_lengths[stream.tokens].sum() == stream.bytes == sum(len(document.data) for document in docs)


@given(size=st.integers(1, 300), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_shuffling_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(index, size, seed, epoch) for index in range(size)) == list(range(size))


def test_shuffling_shuffles() -> None:
    """First places of 2,000 shuffles are even, and neighbours do not stay together."""
    size = 10
    firsts = Counter(shuffled(0, size, seed, 0) for seed in range(2000))
    assert all(140 < firsts[place] < 260 for place in range(size))
    order = [shuffled(index, 1000, 0, 1) for index in range(1000)]
    assert sum(abs(a - b) == 1 for a, b in pairwise(order)) < 12
    assert order != [shuffled(index, 1000, 0, 2) for index in range(1000)]
    assert order != [shuffled(index, 1000, 1, 1) for index in range(1000)]


@given(stream=STREAMS, batch=st.integers(1, 4), length=st.integers(1, 9), seed=st.integers(0, 9), carry=st.booleans())
def test_an_epoch_visits_every_token_once(stream: TokenStream, batch: int, length: int, seed: int, carry: bool) -> None:
    unit = length * (batch if carry else 1)
    if len(stream) <= unit:
        return
    windows = len(stream) // length if not carry else len(stream) // unit * batch
    # batches may span epochs: look at the rows of three
    rows: list[list[int]] = []
    for step in range(-(-3 * windows // batch)):
        at = batch_at(stream, step, batch=batch, length=length, seed=seed, carry=carry)
        check_kinds(at)
        found = places(stream, at)
        rows += [found[start : start + length] for start in range(0, len(found), length)]
    for epoch in range(3):
        visits = Counter(place for row in rows[epoch * windows : (epoch + 1) * windows] for place in row)
        assert set(visits.values()) == {1}
        assert len(visits) == windows * length > len(stream) - unit


@given(stream=STREAMS, batch=st.integers(1, 4), length=st.integers(1, 9), seed=st.integers(0, 9))
def test_shuffled_windows_reset_at_their_start_and_at_boundaries(
    stream: TokenStream, batch: int, length: int, seed: int
) -> None:
    if len(stream) <= length:
        return
    for step in range(6):
        at = batch_at(stream, step, batch=batch, length=length, seed=seed, carry=False)
        expected_BT = at.inputs_BT == BOUNDARY
        expected_BT[:, 0] = True
        assert torch.equal(at.reset_BT, expected_BT)


@given(stream=STREAMS, batch=st.integers(1, 4), length=st.integers(1, 9), seed=st.integers(0, 9))
def test_a_carried_row_goes_on_where_it_stopped(stream: TokenStream, batch: int, length: int, seed: int) -> None:
    if len(stream) <= batch * length:
        return
    windows = len(stream) // (batch * length)
    before: Batch | None = None
    for step in range(2 * windows + 1):
        at = batch_at(stream, step, batch=batch, length=length, seed=seed, carry=True)
        expected_BT = at.inputs_BT == BOUNDARY
        if step % windows == 0:
            expected_BT[:, 0] = True
        elif before is not None:
            assert torch.equal(at.inputs_BT[:, 0], before.targets_BT[:, -1])
        assert torch.equal(at.reset_BT, expected_BT)
        before = at


def test_epochs_and_seeds_differ() -> None:
    stream = numbered([1000])
    for carry in (False, True):
        seen = [
            tuple(batch_at(stream, step, batch=2, length=100, seed=seed, carry=carry).inputs_BT.flatten().tolist())
            for seed in (0, 1)
            for step in (5, 10, 15)
        ]
        assert len(set(seen)) == 6


def test_a_batch_depends_on_its_step_alone() -> None:
    """Values of the first version: a change here would make resumed runs read other text."""
    stream = numbered([100, 57, 200])
    shape = {"batch": 3, "length": 16, "seed": 7}
    expected = {
        False: [[208, 32, 10000], [208, 288, 192], [335, 143, 255]],
        True: [[10000, 112, 224], [192, 304, 56], [223, 335, 87]],
    }
    for carry, first in expected.items():
        in_order = [batch_at(stream, step, **shape, carry=carry) for step in range(40)]
        assert [in_order[step].inputs_BT[:, 0].tolist() for step in (0, 9, 33)] == first
        for step in reversed(range(40)):
            again = batch_at(stream, step, **shape, carry=carry)
            assert all(torch.equal(a, b) for a, b in zip(again, in_order[step], strict=True))


@given(size=st.integers(1, 70), batch=st.integers(1, 6), length=st.integers(1, 9), context=st.integers(0, 30))
def test_segments_read_the_tokens_before_them_without_targets(size: int, batch: int, length: int, context: int) -> None:
    stream = numbered([size])  # of one document, whose tokens tell their places
    where = {int(token): place for place, token in enumerate(stream.tokens)}
    rows: list[list[tuple[int, bool]]] = [[] for _ in range(batch)]
    for at in sequential_batches(stream, batch=batch, length=length, context=context):
        assert at.lengths_B.min() >= 1
        assert at.inputs_BT.shape[1] == at.lengths_B.max() <= length + 1
        for row, steps in enumerate(at.lengths_B.tolist()):
            found = [where[token] for token in at.inputs_BT[row, :steps].tolist()]
            for place, target in zip(found, at.targets_BT[row, :steps].tolist(), strict=True):
                assert target in (IGNORE, int(stream.tokens[place + 1]))
                rows[row].append((place, target != IGNORE))
    total = len(stream) - 1
    assert [place for row in rows for place, counts in row if counts] == list(range(total))
    before = min(context, total - 1)
    for row in filter(None, rows):
        assert [place for place, _ in row] == list(range(row[0][0], row[-1][0] + 1))
    assert [sum(not counts for _, counts in row) for row in rows if row] == [0, *[before] * (sum(map(bool, rows)) - 1)]


@given(stream=STREAMS, batch=st.integers(1, 6), length=st.integers(1, 9))
def test_sequential_batches_read_every_target_once_in_order(stream: TokenStream, batch: int, length: int) -> None:
    all_places: list[int] = []
    rows: list[list[int]] = [[] for _ in range(batch)]
    for number, at in enumerate(sequential_batches(stream, batch=batch, length=length)):
        check_kinds(at)
        assert at.lengths_B.min() >= 1
        assert at.inputs_BT.shape[1] == at.lengths_B.max() <= length + 1
        expected_BT = at.inputs_BT == BOUNDARY
        if number == 0:
            expected_BT[:, 0] = True
        assert torch.equal(at.reset_BT, expected_BT)
        found = places(stream, at)
        all_places += found
        for row, steps in enumerate(at.lengths_B.tolist()):
            rows[row] += found[:steps]
            found = found[steps:]
    assert sorted(all_places) == list(range(len(stream) - 1))
    # the rows one after another are the stream: each goes on where it stopped
    assert [place for row in rows for place in row] == list(range(len(stream) - 1))


@given(stream=STREAMS, batch=st.integers(1, 4), length=st.integers(1, 12), limit=st.none() | st.integers(1, 300))
def test_windows_read_the_same_targets_whatever_their_length(
    stream: TokenStream, batch: int, length: int, limit: int | None
) -> None:
    if len(stream) <= length:
        return
    total = min(limit or len(stream), len(stream) - 1)
    seen: list[int] = []
    for at in windows_of(stream, length=length, batch=batch, limit=limit):
        check_kinds(at)
        expected_BT = at.inputs_BT == BOUNDARY
        expected_BT[:, 0] = True
        assert torch.equal(at.reset_BT, expected_BT)
        assert at.inputs_BT.shape[1] == at.lengths_B.max() <= length
        seen += places(stream, at)
    assert seen == list(range(total))


def test_no_documents() -> None:
    with pytest.raises(ValueError, match="there are no documents to pack"):
        pack([], ByteTokenizer())


def test_a_text_shorter_than_a_window() -> None:
    stream = numbered([10])
    shape = {"batch": 2, "length": 6, "seed": 0}
    assert batch_at(stream, 0, **shape, carry=False).inputs_BT.shape == (2, 6)
    with pytest.raises(ValueError, match=r"has 11 tokens and 2 window\(s\) of length 6 need 13; give more text"):
        batch_at(stream, 0, **shape, carry=True)
    with pytest.raises(ValueError, match=r"has 11 tokens and 1 window\(s\) of length 11 need 12"):
        batch_at(stream, 0, batch=2, length=11, seed=0, carry=False)
    with pytest.raises(ValueError, match=r"has 11 tokens and 1 window\(s\) of length 11 need 12"):
        list(windows_of(stream, length=11))
    with pytest.raises(ValueError, match=r"has 1 tokens and 1 window\(s\) of length 4 need 2"):
        list(sequential_batches(numbered([0]), batch=1, length=4))


@pytest.mark.parametrize(("batch", "length"), [(0, 4), (2, 0), (-1, 4)])
def test_impossible_shapes(batch: int, length: int) -> None:
    stream = numbered([100])
    message = f"batch={batch} and length={length} hold no token; both must be at least 1"
    with pytest.raises(ValueError, match=message):
        batch_at(stream, 0, batch=batch, length=length, seed=0, carry=False)
    with pytest.raises(ValueError, match=message):
        list(sequential_batches(stream, batch=batch, length=length))
    with pytest.raises(ValueError, match=message):
        list(windows_of(stream, batch=batch, length=length))


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="limit=0 leaves nothing to evaluate"):
        list(windows_of(numbered([100]), length=4, limit=0))
