"""wkv of RWKV-4: its unit, and what counts as nothing seen. The rest is in `test_recurrences`."""

import pytest
import torch

from exlstm.ops.wkv4 import WKV4State, wkv4

BACKENDS = ["numba", "chunkwise", "recurrent"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def inputs(B=2, T=37, E=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(B, T, E, generator=generator) for _ in range(2))
    w, u = (torch.randn(E, generator=generator) for _ in range(2))
    return 3 * k, v, -torch.exp(w), u


@every_backend
def test_the_first_value_is_the_first_output(backend):
    """Whatever its key is: also one so small that it would vanish beside a unit of 1, or leave 0 / 0."""
    k, v, w, u = inputs(T=3)
    for key in (-1000.0, 0.0, 1000.0):
        k[:, 0] = key
        y, state = wkv4(k[:, :1], v[:, :1], w, u, backend=backend)
        torch.testing.assert_close(y, v[:, :1])
        torch.testing.assert_close(state.p_BE, k[:, 0])
        torch.testing.assert_close(state.num_BE, v[:, 0])
        assert (state.den_BE == 1).all()


@every_backend
def test_the_unit_is_that_of_the_definition(backend):
    """So that forms may take over from each other; and it carries no gradient."""
    x = [t.requires_grad_() for t in inputs()]
    _, want = wkv4(*(t.detach().double() for t in x), backend="recurrent")
    _, state = wkv4(*x, backend=backend)
    assert not state.p_BE.requires_grad
    for got, expected in zip(state, want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@every_backend
def test_another_unit_is_another_way_to_write_the_same(backend):
    k, v, w, u = inputs()
    _, state = wkv4(*inputs(seed=1))
    factor = torch.exp(torch.tensor(5.0))
    other = WKV4State(state.num_BE * factor, state.den_BE * factor, state.p_BE - 5)
    got, want = (wkv4(k, v, w, u, each, backend=backend)[0] for each in (other, state))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@every_backend
def test_nothing_seen_stays_nothing(backend):
    """A row of no steps keeps its state, and zeros are the empty one."""
    k, v, w, u = inputs(B=3)
    lengths_B, zero = torch.tensor([0, 37, 0]), torch.zeros(3, 20)
    before = WKV4State(zero, zero.clone(), torch.full_like(zero, 7.0))
    y, state = wkv4(k, v, w, u, before, lengths_B=lengths_B, backend=backend)
    for part, old in zip(state, before, strict=True):
        assert torch.equal(part[[0, 2]], old[[0, 2]])
    torch.testing.assert_close(y[1:2], wkv4(k[1:2], v[1:2], w, u, backend=backend)[0])


@every_backend
def test_a_memory_of_one_step(backend):
    """w = -inf: only the step before counts beside the step itself."""
    k, v, _, u = inputs()
    y, _ = wkv4(k, v, torch.full((20,), -torch.inf), u, backend=backend)
    own = torch.sigmoid(u + k[:, 1:] - k[:, :-1])
    want = own * v[:, 1:] + (1 - own) * v[:, :-1]
    torch.testing.assert_close(y[:, 1:], want, rtol=1e-5, atol=1e-5)


@every_backend
def test_a_large_key_long_ago(backend):
    """A sum that fades for thousands of steps: the unit is rounded at every one of them, and the sum is not lost."""
    T = 3000
    k, v = torch.zeros(1, T, 1), torch.zeros(1, T, 1)
    k[:, 0], v[:, 0] = 1000.0, 1.0
    w = torch.full((1,), -1 / 3)
    _, state = wkv4(k, v, w, torch.zeros(1), backend=backend)
    _, exact = wkv4(k.double(), v.double(), w.double(), torch.zeros(1).double(), backend="recurrent")
    got = state.p_BE.double() + torch.log(state.num_BE.double())
    want = exact.p_BE + torch.log(exact.num_BE)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3)


def test_shapes_that_do_not_fit():
    k, v, w, u = inputs()
    with pytest.raises(ValueError, match=r"w is .*must be torch.float32 of shape \(20,\)"):
        wkv4(k, v, w[:-1], u)
    with pytest.raises(ValueError, match=r"k is .*must be torch.float32 of shape \(2, 37, 20\)"):
        wkv4(k[:, 1:], v, w, u)
