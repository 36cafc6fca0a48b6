"""Softmax over a bounded memory: what the battery of `test_recurrences` does not ask."""

from functools import partial

import comparison
import pytest
import torch
from recurrences import RECURRENCES

from exlstm.ops.bounded_memory import AveragedMemoryState, BoundedMemoryState, averaged_memory, bounded_memory

SIZES = {"H": 2, "K": 4, "V": 5, "Q": 3}
FAST = ["numba", "chunkwise"]


def draw(T, *, dtype=torch.float32, seed=0):
    """q, k, v, g, two writes and the state of two rows."""
    return RECURRENCES["bounded_memory"].make(2, T, SIZES, seed=seed, dtype=dtype)


def found(x, run):
    """Output, state and every gradient of `run(q, k, v, g, state)`."""
    flat = lambda q, k, v, g, keys, values: run(q, k, v, g, BoundedMemoryState(keys, values))  # noqa: E731
    return comparison.everything([*x[:4], *x[6:]], flat, ["q", "k", "v", "g", "k_BHKQ", "v_BHQV"])


@pytest.mark.parametrize("backend", [*FAST, "recurrent"])
@pytest.mark.parametrize("T", [1, 20])
def test_without_writes_slots_are_averages(backend, T):
    """1 - e^g is written."""
    x = draw(T, dtype=torch.float64)
    explicit = lambda q, k, v, g, state: bounded_memory(q, k, v, g, state, write_BTHQ=1 - g.exp())  # noqa: E731
    want, got = found(x, explicit), found([t.float() for t in x], partial(bounded_memory, backend=backend))
    comparison.assert_same(got, want, tolerance=1e-5)


@pytest.mark.parametrize("backend", [*FAST, "recurrent"])
@pytest.mark.parametrize("T", [1, 20])
def test_without_decays_slots_are_sums(backend, T):
    x = draw(T)
    g = torch.zeros_like(x[3])
    rows = {"reset_BT": torch.rand(2, T) < 0.1, "lengths_B": torch.tensor([T, T // 2])}
    with torch.no_grad():
        want, _ = bounded_memory(*x[:3], g, BoundedMemoryState(*x[6:]), write_BTHQ=x[4], backend=backend, **rows)
        got, _ = bounded_memory(*x[:3], None, BoundedMemoryState(*x[6:]), write_BTHQ=x[4], backend=backend, **rows)
    assert torch.equal(got, want)


@torch.no_grad()
@pytest.mark.parametrize("g", [-1e-7, -1e-3, -0.3, -1.0, -5.0, -200.0, -torch.inf])
def test_small_writes_keep_their_digits(g):
    """1 - e^g near g = 0, in the kernel of a step, which has a formula of its own."""
    one, g_1 = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), g)
    _, state = bounded_memory(one, one, one, g_1, backend="numba")
    want = -torch.expm1(g_1.double())
    for part in state:
        torch.testing.assert_close(part.double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", FAST)
def test_a_decay_of_minus_infinity_is_a_reset(backend):
    """And no gradient of it is NaN."""
    x, reset_BT = draw(40), torch.zeros(2, 40, dtype=torch.bool)
    reset_BT[:, 21] = True
    x[3][:, 21] = -torch.inf
    run = partial(bounded_memory, backend=backend)
    comparison.assert_same(found(x, run), found(x, partial(run, reset_BT=reset_BT)), tolerance=1e-6)


@pytest.mark.parametrize("backend", [*FAST, "recurrent"])
def test_averages_are_softmax_over_time(backend):
    """From nothing, at weights that are far apart: the first step is read as it is, whatever its weight."""
    q, k, v, s = (t.double() for t in RECURRENCES["averaged_memory"].make(2, 12, SIZES, scale=20.0)[:4])
    o, state = averaged_memory(*(t.float() for t in (q, k, v, s)), backend=backend)
    s = s.clamp(-32, 32)
    for t in range(12):
        share = s[:, : t + 1].softmax(1)
        keys = torch.einsum("bthk,bthq->bhkq", k[:, : t + 1], share)
        values = torch.einsum("bthq,bthv->bhqv", share, v[:, : t + 1])
        p = torch.einsum("bhk,bhkq->bhq", q[:, t], keys).softmax(-1)
        want = torch.einsum("bhq,bhqv->bhv", p, values)
        torch.testing.assert_close(o[:, t].double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(o[:, 0], v[:, 0].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.den_BHQ.double(), s.exp().sum(1), rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bounded_memory", "averaged_memory"])
def test_one_step_in_bfloat16(name):
    """The kernel reads q, k and v as they are: numbers are those of the rounded inputs."""
    case = RECURRENCES[name]
    x = case.make(3, 1, case.real)
    narrow = [t.bfloat16() if n < 3 else t for n, t in enumerate(x)]
    wide = [t.float() for t in narrow]
    got, state = case.run(*narrow, backend="numba")
    want, after = case.run(*wide, backend="numba")
    assert torch.equal(got, want.bfloat16())
    assert all(map(torch.equal, state, after))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bounded_memory", "averaged_memory"])
def test_the_second_half_in_triton(name):
    """On a GPU the read of the values has kernels."""
    pytest.importorskip("triton", reason="Triton has no wheel for this system")
    case = RECURRENCES[name]
    x = case.make(2, 5, SIZES)
    rows = {"reset_BT": torch.tensor([[False, True, False, False, True]] * 2), "lengths_B": torch.tensor([5, 3])}
    want = comparison.everything([t.double() for t in x], partial(case.run, **rows), case.names)
    got = comparison.everything(x, partial(case.run, backend="triton", **rows), case.names)
    comparison.assert_same(got, want, tolerance=2e-5)


def test_errors():
    q, k, v, g, w, u, *parts = draw(4)
    with pytest.raises(ValueError, match="g and write are both None; give"):
        bounded_memory(q, k, v)
    with pytest.raises(ValueError, match="value_write is"):
        bounded_memory(q, k, v, g, value_write_BTHQ=u[:, :1])
    with pytest.raises(ValueError, match="write is"):
        bounded_memory(q, k, v, g, write_BTHQ=w.double())
    with pytest.raises(ValueError, match="k is"):
        averaged_memory(q, k[:, :1], v, g)
    with pytest.raises(ValueError, match="it must be the AveragedMemoryState"):
        averaged_memory(q, k, v, g, BoundedMemoryState(*parts))
    with pytest.raises(ValueError, match="den_BHQ of the state is"):
        averaged_memory(q, k, v, g, AveragedMemoryState(*parts, torch.zeros(2, 2, 4)))
    with pytest.raises(ValueError, match="it has up to 256 slots"):
        bounded_memory(q, k, v, torch.zeros(2, 4, 2, 257), backend="triton")
