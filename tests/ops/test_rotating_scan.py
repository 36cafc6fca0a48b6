"""The scan with complex factors: against complex numbers, over long sequences; and the poles of a held input."""

import pytest
import torch

from exlstm.ops.scan import RotatingState, held_input, rotating_scan
from exlstm.ops.scan.hold import held_input_torch
from exlstm.ops.scan.numba.hold import held_input_numba


def inputs(B=2, T=50, E=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    r, re, im = (torch.randn(B, T, E, generator=generator, dtype=torch.float64) for _ in range(3))
    theta = 3 * torch.randn(E, generator=generator, dtype=torch.float64)
    return [x.to(dtype) for x in (torch.sigmoid(2 + r), theta, re, im)]


@pytest.mark.parametrize("backend", ["recurrent", "chunkwise"])
def test_complex_numbers(backend):
    r, theta, re, im = inputs()
    state = RotatingState(torch.randn(2, 7).double(), torch.randn(2, 7).double())
    h, want = torch.complex(*state), []
    for t in range(50):
        h = torch.polar(r[:, t], theta.expand(2, -1)) * h + torch.complex(re[:, t], im[:, t])
        want.append(h)
    got_re, got_im, after = rotating_scan(r, theta, re, im, state, backend=backend)
    torch.testing.assert_close(torch.complex(got_re, got_im), torch.stack(want, dim=1))
    torch.testing.assert_close(torch.complex(*after), want[-1])


@pytest.mark.parametrize("backend", ["numba", "chunkwise"])
def test_angles_of_a_long_sequence(backend):
    """Without decay: after 10,000 turns the phase is as good as 10,000 roundings of a step leave it."""
    T, theta = 10_000, torch.tensor([0.001, 1.0, 3.0, 6.0])
    re, im = torch.zeros(1, T, 4), torch.zeros(1, T, 4)
    re[:, 0] = 1
    got_re, got_im, _ = rotating_scan(torch.ones(1, 1, 1).expand(1, T, 4), theta, re, im, backend=backend)
    angle = torch.arange(T)[:, None] * theta.double()
    tolerance = {"numba": 1e-3, "chunkwise": 2e-6}[backend]
    torch.testing.assert_close(got_re[0].double(), torch.cos(angle), rtol=0, atol=tolerance)
    torch.testing.assert_close(got_im[0].double(), torch.sin(angle), rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["numba", "chunkwise", "recurrent"])
def test_constant_factors_are_read_once(backend):
    """r expanded over batch and time, and b as the halves of one tensor: numbers and gradients of copies."""
    r, theta, re, im = inputs(dtype=torch.float32)
    one_E, both = r[0, 0].clone(), torch.cat([re, im], dim=2)
    found = []
    for copied in (False, True):
        factor, halves = one_E.clone().requires_grad_(), both.clone().requires_grad_()
        a, b = factor.expand_as(r), halves.chunk(2, dim=2)
        if copied:
            a, b = a.contiguous(), [x.contiguous() for x in b]
        h_re, h_im, _ = rotating_scan(a, theta, *b, backend=backend)
        (h_re.square().sum() + h_im.sum()).backward()
        found.append((h_re, h_im, factor.grad, halves.grad))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def poles(dtype=torch.float64):
    """From those that hardly move in a step to those that turn by several radians."""
    a, b = torch.linspace(-5, 3, 40, dtype=torch.float64), torch.linspace(-100, 0, 40, dtype=torch.float64)
    return [x.to(dtype) for x in (a, b, torch.linspace(-9, -2, 40, dtype=torch.float64))]


def test_a_held_input():
    a, b, d = poles()
    pole, dt = torch.complex(-a.exp(), b), d.exp()
    factor = torch.exp(pole * dt)
    got = held_input(a, b, d)
    torch.testing.assert_close(torch.polar(got.r_P, got.theta_P), factor)
    torch.testing.assert_close(torch.complex(got.re_P, got.im_P), (factor - 1) / pole, rtol=1e-9, atol=1e-12)


def test_a_held_input_keeps_its_digits():
    """In float32, of poles that hardly move in a step; the kernel of a captured step as well."""
    short = poles(torch.float32)
    want = held_input(*(x.double() for x in short))
    for got in (held_input_torch(*short), held_input_numba(*short)):
        for part, exact in zip(got, want, strict=True):
            torch.testing.assert_close(part.double(), exact, rtol=2e-7, atol=1e-12)


def test_gradients_of_a_held_input():
    assert torch.autograd.gradcheck(lambda *x: tuple(held_input(*x)), [x[::8].requires_grad_() for x in poles()])
