"""The sLSTM behind its input projection: the scan that projects by itself, against the definition of the whole."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from slstm_cases import resets

from accuracy import DRAWS, assert_as_accurate
from exlstm.ops.slstm import Projection, SLSTMState, projected_slstm
from exlstm.ops.slstm.numba import projected
from exlstm.ops.slstm.reference import slstm_recurrent
from exlstm.runtime.backend import recorded
from pairwise import every_pair

NAMES = ("if", "zo", "w", "b", "r", "h", "c", "n", "m")


def make(B, T, H, V, *, N=None, own=False, seed=0, dtype=torch.float32):
    """The nine tensors in the op's order; `own`: each head has N inputs of its own."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    N = V if N is None else N
    D = H * N if own else N
    state = [normal(B, H, V), normal(B, H, V), normal(B, H, V).abs() + 0.5, normal(B, H, V)]
    w, r = normal(H, 4, V, N) / N**0.5, normal(H, V, 4, V) / V**0.5 / 2
    return [normal(B, T, D), normal(B, T, D), w, normal(H, 4, V), r, *state]


def define(x, zo, w, b, r, *state, two=True, bias=True, mixing=True, reset_BT=None, lengths_B=None):
    """W x + b by einsum, and the cell by its definition."""
    (B, T, D), (H, _, _, N) = x.shape, w.shape
    by_gates = []
    for source, half in ((x, w[:, :2]), (zo if two else x, w[:, 2:])):
        if N == D:
            by_gates.append(torch.einsum("btn,hgvn->bthgv", source, half))
        else:
            by_gates.append(torch.einsum("bthn,hgvn->bthgv", source.view(B, T, H, N), half))
    raw = torch.cat(by_gates, dim=3) + (b if bias else 0)
    valid = None if lengths_B is None else torch.arange(T) < lengths_B[:, None]
    reset_BT = reset_BT if reset_BT is None or valid is None else reset_BT & valid
    return slstm_recurrent(raw, r if mixing else None, SLSTMState(*state), reset_BT=reset_BT, valid_BT=valid)


def call(x, zo, w, b, r, *state, two=True, bias=True, mixing=True, **options):
    zo, b, r = zo if two else None, b if bias else None, r if mixing else None
    return projected_slstm(Projection(x, zo, w, b), r, SLSTMState(*state), **options)


def everything(x, run):
    """{name: tensor} of output, state and all gradients; zeros where there is no path."""
    x = [t.detach().clone().requires_grad_(n < 8) for n, t in enumerate(x)]
    h, state = run(*x)
    generator = torch.Generator().manual_seed(9)
    found = {"output": h, **{f"state.{name}": t for name, t in state._asdict().items()}}
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in found.values()]
    sum((t * w).sum() for t, w in zip(found.values(), weights, strict=True) if t.requires_grad).backward()
    for name, t in zip(NAMES[:8], x, strict=False):
        found[f"gradient of {name}"] = torch.zeros_like(t) if t.grad is None else t.grad
    return {name: t.detach() for name, t in found.items()}


def against_the_definition(x, **options):
    want = everything([t.double() for t in x], partial(define, **options))
    with recorded() as choices:
        got = everything(x, partial(call, backend="numba", **options))
    assert [choice.backend for choice in choices] == ["numba"]
    assert_same(got, want, tolerance=2e-5)


@every_pair(
    V=[1, 16, 20], N=[3, 64, 130], H=[1, 3], own=[False, True], two=[False, True], bias=[False, True],
    mixing=[False, True], rows=["plain", "resets and lengths"],
)  # fmt: skip
def test_every_form(V, N, H, own, two, bias, mixing, rows):
    """Several chunks of steps with an end, several blocks of inputs, groups of units that are not whole."""
    B, T = 5, 37
    options = {"two": two, "bias": bias, "mixing": mixing}
    if rows != "plain":
        options |= {"reset_BT": resets(B, T), "lengths_B": torch.tensor([37, 0, 9, 36, 1])}
    against_the_definition(make(B, T, H, V, N=N, own=own, seed=V), **options)


@pytest.mark.parametrize("own", [False, True])
def test_many_rows(own):
    """More rows than an item of the scan has, and than a block of a gradient."""
    against_the_definition(make(19, 40, 2, 33, N=48, own=own))


def test_accuracy():
    draws = (make(3, 100, 2, 16, N=200, seed=seed) for seed in DRAWS)
    assert_as_accurate(partial(call, backend="numba"), define, draws, names=NAMES)


def test_padding_is_not_read():
    x, options = make(3, 20, 2, 5), {"lengths_B": torch.tensor([20, 3, 0])}
    want = everything(x, partial(call, backend="numba", **options))
    for source in x[:2]:
        source[torch.arange(20) >= options["lengths_B"][:, None]] = torch.nan
    assert_same(everything(x, partial(call, backend="numba", **options)), want, tolerance=0)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_few_steps_are_projected_outside_with_the_same_numbers(own, two, monkeypatch):
    """As are other dtypes, devices and traced calls."""
    x = make(2, 8, 2, 6, N=12, own=own)
    want = everything(x, partial(call, two=two))
    monkeypatch.setattr(projected, "projected_slstm_numba", lambda *_, **__: pytest.fail("it is in the scan"))
    few = make(2, 7, 2, 6, N=12, own=own)
    everything(few, partial(call, two=two))
    assert_same(everything(x, partial(call, two=two, backend="recurrent")), want, tolerance=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_threads_change_nothing(threads, count):
    x = make(9, 40, 2, 20, N=70)
    threads(1)
    want = everything(x, partial(call, backend="numba"))
    threads(count)
    assert_same(everything(x, partial(call, backend="numba")), want, tolerance=1e-6)


def test_a_gradient_that_is_not_needed_is_not_computed(monkeypatch):
    x = make(2, 20, 2, 5)
    monkeypatch.setattr(projected, "input_gradients", None)
    x[2].requires_grad_()
    h, _ = call(*x)
    h.sum().backward()
    assert x[2].grad is not None


@pytest.mark.parametrize(
    ("place", "shape", "words"),
    [
        (0, (2, 20), r"^the input has shape \(2, 20\); it must be \[B, T >= 1, D\]\.$"),
        (1, (2, 20, 4), r"^the input of z and o is .* of shape \(2, 20, 4\) "),
        (2, (2, 4, 5, 4), r"^w is .* of shape \(2, 4, 5, 4\) .*; for inputs of width 5 it must be \[H, 4, V, 5\] or "),
        (3, (2, 5), r"^b is .* of shape \(2, 5\) .* of shape \(2, 4, 5\) on cpu\.$"),
        (4, (2, 5, 4, 6), r"^r is .* of shape \(2, 5, 4, 6\) "),
        (5, (2, 3, 5), r"^h_BHV of the state is .* of shape \(2, 3, 5\) "),
    ],
)
def test_what_does_not_fit_is_refused(place, shape, words):
    x = make(2, 20, 2, 5)
    x[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=words):
        call(*x)
