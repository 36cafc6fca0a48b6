"""Attention within chunks: forms against the definition, chunks that begin anywhere, and caches."""

import itertools
from typing import NamedTuple

import comparison
import pytest
import torch
from torch import Tensor

from accuracy import DRAWS, assert_as_accurate
from exlstm.models.states.batching import join_rows, take_rows
from exlstm.ops.chunk_attention import ChunkState, WholeState, chunk_attention

NAMES = ["q", "k", "v", "bias", "past_k", "past_v"]
FUNCTIONS = ["softmax", "laplace"]


def make(B, T, S, *, K=5, V=7, R=6, seed=0, dtype=torch.float64):
    """Inputs, biases and cached entries."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, K), (B, T, K), (B, T, V), (R,), (B, S, K), (B, S, V)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


class Cache(NamedTuple):
    """Keys and values of a state."""

    k_BSK: Tensor
    v_BSV: Tensor


class Run:
    """The op as a function of tensors. What rows have seen afterwards has no gradient: it is added to `counts`."""

    def __init__(self, seen_B, chunk, **options):
        self.seen_B, self.options, self.counts = seen_B, {"chunk": chunk, **options}, []

    def __call__(self, *x, backend="recurrent"):
        kind = WholeState if self.options["chunk"] is None else ChunkState
        state = kind(*x[4:], self.seen_B) if len(x) > 4 else None
        out, after = chunk_attention(*x[:4], state, backend=backend, **self.options)
        self.counts.append(after.seen_B)
        return out, Cache(*after[:2])


CASES = [(1, 3), (2, 9), (5, 1), (5, 4), (5, 5), (5, 23), (16, 40), (None, 1), (None, 12)]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("chunk", "T"), CASES)
def test_blocks_are_the_definition(chunk, T, function):
    """Chunks that begin elsewhere in every row, resets, rows that end: outputs, caches, counts and gradients."""
    B, S = 4, 3 if chunk is None else chunk - 1
    x, seen_B = make(B, T, S), torch.tensor([0, S, S // 2, S])
    reset_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.15
    lengths_B = torch.tensor([T, 0, (T + 1) // 2, T])
    for resets, lengths, state in itertools.product((None, reset_BT), (None, lengths_B), (False, True)):
        run = Run(seen_B, chunk, function=function, reset_BT=resets, lengths_B=lengths)
        given, names = (x, NAMES) if state else (x[:4], NAMES[:4])
        want = comparison.everything(given, run, names)
        got = comparison.everything(given, lambda *t, run=run: run(*t, backend="chunkwise"), names)
        comparison.assert_same(got, want, tolerance=1e-11)
        assert torch.equal(*run.counts)


@pytest.mark.parametrize("function", ["softmax", pytest.param("laplace", marks=pytest.mark.slow)])
def test_accuracy(function):
    draws = (make(2, 150, 31, K=32, V=24, R=32, seed=seed, dtype=torch.float32) for seed in DRAWS)
    run = Run(torch.tensor([3, 31]), 32, function=function)
    assert_as_accurate(lambda *x: run(*x, backend="chunkwise"), run, draws, names=NAMES)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("chunk", "V"), [(1, 3), (2, 5), (7, 300)])
@torch.no_grad()
def test_steps_of_the_kernel(function, chunk, V):
    """Over several chunks, with resets and rows that pause; what a row has not seen may be anything."""
    q, k, v, bias, *_ = make(4, 20, 0, V=V, R=4, dtype=torch.float32)
    reset_BT = torch.rand(4, 20, generator=torch.Generator().manual_seed(1)) < 0.1
    fast = plain = None
    for t in range(20):
        inputs = q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1]
        rows = {"reset_BT": reset_BT[:, t : t + 1], "lengths_B": torch.tensor([1, t % 3, 1, 1])}
        options = {"chunk": chunk, "function": function, **(rows if t % 2 else {})}
        got, fast = chunk_attention(*inputs, bias, fast, backend="numba", **options)
        want, plain = chunk_attention(*(x.double() for x in inputs), bias, plain, backend="recurrent", **options)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        assert torch.equal(fast.seen_B, plain.seen_B)
        for a, b in zip(fast[:2], plain[:2], strict=True):
            assert torch.equal(a.double(), b)
        unseen = torch.arange(chunk - 1) < chunk - 1 - fast.seen_B[:, None]
        noise = [x.masked_fill(unseen[..., None], torch.nan) for x in fast[:2]]
        fast = ChunkState(*noise, fast.seen_B)


def test_a_step_sees_its_chunk_alone():
    """By gradients: from its own chunk and from nothing else, before and after a reset."""
    q, k, v, bias, *_ = make(1, 12, 0)
    v.requires_grad_()
    reset_BT = torch.zeros(1, 12, dtype=torch.bool)
    reset_BT[0, 6] = True
    out, _ = chunk_attention(q, k, v, bias, chunk=4, reset_BT=reset_BT)
    starts = [0, 0, 0, 0, 4, 4, 6, 6, 6, 6, 10, 10]
    for t, start in enumerate(starts):
        (dv,) = torch.autograd.grad(out[0, t].sum(), v, retain_graph=True)
        assert dv[0].any(-1).nonzero()[:, 0].tolist() == list(range(start, t + 1))


def test_rows_of_caches_that_grow():
    """Rows that have seen different numbers of steps in one batch give what each gives alone."""
    q, k, v, bias, *_ = make(2, 9, 0)

    def run(t, state, rows=slice(None)):
        return chunk_attention(q[rows, t], k[rows, t], v[rows, t], bias, state, chunk=None)

    _, long = run(slice(0, 6), None, slice(0, 1))
    _, brief = run(slice(0, 2), None, slice(1, 2))
    joined = join_rows([(long,), (brief,)])[0]
    assert joined.k_BSK.shape[1] == 6
    together, after = run(slice(6, 9), joined)
    for row, state in enumerate((long, brief)):
        alone, own = run(slice(6, 9), state, slice(row, row + 1))
        torch.testing.assert_close(together[row : row + 1], alone)
        taken = take_rows((after,), [row])[0]
        assert taken.k_BSK.shape == own.k_BSK.shape
        torch.testing.assert_close(taken.v_BSV, own.v_BSV)


def test_errors():
    q, k, v, bias, *_ = make(2, 3, 0)
    _, state = chunk_attention(q, k, v, bias, chunk=4)
    with pytest.raises(ValueError, match="function is 'relu'; it must be 'softmax' or 'laplace'"):
        chunk_attention(q, k, v, bias, chunk=4, function="relu")
    with pytest.raises(ValueError, match="the state is a ChunkState; it must be the WholeState of an earlier call"):
        chunk_attention(q, k, v, bias, state, chunk=None)
    with pytest.raises(ValueError, match=r"past_k_BSK of the state is .* must be .* of shape \(2, 5, 5\)"):
        chunk_attention(q, k, v, bias, state, chunk=6)
    with pytest.raises(ValueError, match="backend 'numba' of chunk_attention cannot run: it is for chunks"):
        chunk_attention(q, k, v, bias, chunk=None, backend="numba")
