"""Layers of sLSTM and LSTM with weights in the order of torch: their kernels against the definition, step by step."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from comparison import assert_same
from slstm_cases import resets
from torch import Tensor

from accuracy import DRAWS, assert_as_accurate
from exlstm.ops.layer import Layer
from exlstm.ops.layer.numba import step
from exlstm.ops.layer.numba.pre_activations import MANY, SPAN
from exlstm.ops.lstm import lstm_layer
from exlstm.ops.slstm import SLSTMState, slstm_layer, slstm_step
from exlstm.ops.slstm.numba import layer as kernels
from exlstm.ops.slstm.numba import op
from exlstm.runtime.backend import recorded
from exlstm.runtime.cpu.barrier import launch_shared
from pairwise import every_pair

NAMES = ("x", "w", "r", "b", "more_b", "h", "c")


class Memory(NamedTuple):
    """The state of a layer."""

    h: Tensor
    c: Tensor


def make(B, T, H, K, *, cell="slstm", D=5, seed=0, dtype=torch.float32, fresh=0.3):
    """The seven tensors in the op's order; a share of `fresh` of the state's elements has seen nothing yet."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    M = H * K
    seen = (torch.rand(B, M, generator=generator) >= fresh).to(dtype)
    h, c, n, m = (part * seen for part in (normal(B, M), normal(B, M), normal(B, M).abs() + 0.5, normal(B, M)))
    weights = normal(4 * M, D) / D**0.5, normal(4 * M, K) / K**0.5 / 2, normal(4 * M), normal(4 * M)
    return [normal(B, T, D), *weights, h, torch.cat([c, n, m], dim=1) if cell == "slstm" else c]


def is_slstm(h, c):
    return c.shape[1] > h.shape[1]


def call(x, w, r, b, more_b, h, c, *, bias=True, **options):
    op = slstm_layer if is_slstm(h, c) else lstm_layer
    y, *after = op(x, Layer(w, r, *((b, more_b) if bias else (None, None))), h, c, **options)
    return y, Memory(*after)


def next_parts(raw, r, parts):
    """A step of either cell: h, and all parts of the state after it."""
    if len(parts) == 4:
        return slstm_step(raw, r.permute(1, 3, 0, 2), SLSTMState(*parts))
    h, c = parts
    i, f, g, o = (raw + torch.einsum("bhk,ghvk->bhgv", h, r)).unbind(2)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, (h, c)


def define(x, w, r, b, more_b, h, c, *, bias=True, reset_BT=None, lengths_B=None):
    """A loop over steps; rows of W, R and b are in the order (gate, head, unit)."""
    (B, T, D), K = x.shape, r.shape[1]
    H = len(r) // (4 * K)
    w, r = w.view(4, H, K, D), r.view(4, H, K, K)
    b = (b + more_b if bias else torch.zeros_like(b)).view(4, H, K)
    parts = [part.reshape(B, H, K) for part in (h, *c.split(h.shape[1], dim=1))]
    outputs = []
    for t in range(T):
        runs = torch.ones(B, 1, 1, dtype=torch.bool) if lengths_B is None else (t < lengths_B)[:, None, None]
        if reset_BT is not None:
            clears = reset_BT[:, t, None, None] & runs
            parts = [torch.where(clears, 0, part) for part in parts]
        raw = torch.einsum("bd,ghkd->bhgk", x[:, t], w) + b.transpose(0, 1)
        h, after = next_parts(raw, r, parts)
        parts = [torch.where(runs, new, old) for new, old in zip(after, parts, strict=True)]
        outputs.append(torch.where(runs, h, 0).flatten(1))
    h, *rest = (part.flatten(1) for part in parts)
    return torch.stack(outputs, dim=1), Memory(h, torch.cat(rest, dim=1))


def everything(x, run):
    """{name: tensor} of output, state and all gradients; zeros where there is no path. m has no gradient."""
    x = [t.detach().clone().requires_grad_() for t in x]
    y, (h, c) = run(*x)
    M, generator = h.shape[1], torch.Generator().manual_seed(9)
    found = {"output": y, "state.h": h, "state.c": c}
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in found.values()]
    weights[2][:, 2 * M :] = 0
    sum((t * w).sum() for t, w in zip(found.values(), weights, strict=True)).backward()
    for name, t in zip(NAMES, x, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(t) if t.grad is None else t.grad
    found["gradient of c"][:, 2 * M :] = 0
    return {name: t.detach() for name, t in found.items()}


def against_the_definition(x, **options):
    want = everything([t.double() for t in x], partial(define, **options))
    with recorded() as choices:
        got = everything(x, partial(call, backend="numba", **options))
    assert [choice.backend for choice in choices] == ["numba"]
    assert_same(got, want, tolerance=2e-5)
    with torch.no_grad():
        y, state = call(*x, backend="numba", **options)
    for t, name in zip((y, *state), ("output", "state.h", "state.c"), strict=True):
        assert torch.equal(t, got[name]), f"{name} is another one without gradients"


CELLS = ["slstm", "lstm"]
each_cell = pytest.mark.parametrize("cell", CELLS)


@every_pair(
    B=[0, 1, 2, 3, 9], T=[1, 2, 24], H=[1, 3], K=[3, 16, 20], D=[1, 16, 21], bias=[False, True], reset=[False, True],
    cell=CELLS,
)  # fmt: skip
def test_every_form(B, T, H, K, D, bias, reset, cell):
    """Rows by four, two and one, groups of units that are not whole, lines of W that are not."""
    options = {"bias": bias, "reset_BT": resets(B, T, share=0.4) if reset else None}
    against_the_definition(make(B, T, H, K, cell=cell, D=D, seed=B), **options)


@every_pair(
    B=[MANY, MANY + 3, SPAN + 1, 144], K=[16, 20], D=[16, 150], bias=[False, True], reset=[False, True], cell=CELLS
)
def test_a_step_of_many_rows(B, K, D, bias, reset, cell):
    """Rows side by side, in one span and in several; inputs in parts."""
    reset_BT = resets(B, 1, share=0.4) if reset else None
    against_the_definition(make(B, 1, 2, K, cell=cell, D=D), bias=bias, reset_BT=reset_BT)


@each_cell
@pytest.mark.parametrize("T", [1, 20])
def test_lengths(T, cell):
    """A row without steps keeps its state."""
    against_the_definition(
        make(4, T, 2, 5, cell=cell), lengths_B=torch.tensor([0, 1, T // 2, T]), reset_BT=resets(4, T)
    )


@each_cell
@pytest.mark.parametrize("T", [1, 30])
def test_accuracy(T, cell):
    draws = (make(3, T, 2, 16, cell=cell, D=200, seed=seed, fresh=0.0) for seed in DRAWS)
    assert_as_accurate(partial(call, backend="numba"), define, draws, names=NAMES)


@pytest.mark.parametrize("T", [1, 6])
def test_weights_need_not_be_contiguous(T):
    x = make(2, T, 2, 5)
    want = everything(x, call)
    turned = [t if t.dim() == 1 else t.mT.contiguous().mT for t in x]
    assert_same(everything(turned, call), want, tolerance=1e-6)


@each_cell
@pytest.mark.parametrize("T", [1, 20])
@pytest.mark.parametrize("shared", [False, True])
def test_threads_change_nothing(threads, T, cell, shared, monkeypatch):
    """A step and a short scan are worth several threads only of a wide layer; wide heads are shared by all."""
    for module in (step, op):
        monkeypatch.setattr(module, "microseconds", lambda **_: 1e6)
    monkeypatch.setattr(op, "SHARED_UNITS", 1 if shared else 1 << 20)
    monkeypatch.setattr(op, "CACHE", 0)
    launches = []
    monkeypatch.setattr(op, "launch_shared", lambda *given: (launches.append(given[1]), launch_shared(*given)))
    x, rows = make(5, T, 2, 40, cell=cell), {"reset_BT": resets(5, T)}
    if T > 1:
        rows["lengths_B"] = torch.tensor([T, 3, 0, T - 1, T])
    threads(1)
    want = everything(x, partial(call, **rows))
    assert not launches
    threads(2)
    got = everything(x, partial(call, **rows))
    assert len(launches) == (2 if shared and T > 1 else 0)
    threads(3)
    for other in (got, everything(x, partial(call, **rows))):
        assert all(torch.equal(t, want[name]) for name, t in other.items())


@pytest.mark.parametrize("T", [1, 20])
def test_only_needed_gradients_are_computed(T, monkeypatch):
    x = make(2, T, 2, 5)
    for module, name in ((kernels, "r_gradient"), (kernels, "gradients_of_inputs"), (step, "through_r")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was not asked for"))
    x[1].requires_grad_()
    call(*x)[0].sum().backward()
    assert x[1].grad is not None


@pytest.mark.parametrize("T", [1, 20])
def test_second_derivatives_are_refused(T):
    x = [t.requires_grad_() for t in make(2, T, 2, 5)]
    y, _ = call(*x)
    with pytest.raises(ValueError, match="second derivatives"):
        torch.autograd.grad(y.sum(), x[0], create_graph=True)
