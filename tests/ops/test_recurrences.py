"""Every recurrence of the rivals: fast forms against the definition, and what all of them keep."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import comparison
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrences import RECURRENCES

from accuracy import DRAWS, assert_as_accurate

FAST = [(name, backend) for name, case in RECURRENCES.items() for backend in case.fast]
FLOAT64 = [form for form in FAST if form[1] != "numba"] + [(name, "recurrent") for name in RECURRENCES]
FAST_ONES = {name: case.fast[0] for name, case in RECURRENCES.items()}
every_form = pytest.mark.parametrize(("name", "backend"), FAST, ids=[f"{name} {backend}" for name, backend in FAST])
every_kernel = pytest.mark.parametrize("name", [name for name, backend in FAST if backend == "numba"])
every = pytest.mark.parametrize("name", RECURRENCES)


def rows_of(B, T, seed, share=0.2):
    """Resets and lengths, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    reset_BT = torch.rand(B, T, generator=generator) < share
    return {"reset_BT": reset_BT, "lengths_B": torch.randint(0, T + 1, (B,), generator=generator)}


def everything(case, x, **options):
    """Output, state and every gradient, for one fixed loss."""
    return comparison.everything(x, partial(case.run, **options), case.names)


@every_form
@pytest.mark.parametrize("examples", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_any_shape_is_the_definition(name, backend, examples):
    settings(max_examples=examples)(given(data=st.data())(compare_any_shape))(name, backend)


def compare_any_shape(name, backend, data):
    """Shapes, lengths of sequences and rows, resets, gates up to those that are always open or shut."""
    case = RECURRENCES[name]
    sizes = {letter: data.draw(st.integers(1, 2 * small)) for letter, (small, _) in case.sizes.items()}
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40) | st.sampled_from([64, 65, 130]))
    seed, scale = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    options = rows_of(B, T, seed, data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
    options = {key: value for key, value in options.items() if data.draw(st.booleans())}
    x = case.make(B, T, sizes, scale=scale, seed=seed)
    want = everything(case, [t.double() for t in x], **options)
    comparison.assert_same(everything(case, x, backend=backend, **options), want, tolerance=1e-4)


@pytest.mark.parametrize(
    ("name", "backend", "scale"),
    [
        # where a CPU has a kernel, that one; breadth is slow
        pytest.param(name, backend, scale, marks=() if (backend, scale) == (FAST_ONES[name], 1.0) else pytest.mark.slow)
        for name, backend in FAST
        for scale in (1.0, 20.0)
    ],
)
def test_accuracy(name, backend, scale):
    """At sizes that models have, with gates that are mostly open, and with extreme ones."""
    case = RECURRENCES[name]
    draws = (case.make(2, 140, case.real, scale=scale, seed=seed) for seed in DRAWS)
    assert_as_accurate(partial(case.run, backend=backend), case.run, draws, names=case.names)


@pytest.mark.parametrize(
    ("name", "backend"),
    # the hand-written gradients of all forms are compared with torch's of the definition in other tests
    [pytest.param(name, backend, marks=() if name == "scan" else pytest.mark.slow) for name, backend in FLOAT64],
)
def test_gradients_in_float64(name, backend):
    """torch's finite differences, of a form that takes float64, and of the definition."""
    case = RECURRENCES[name]
    x = [t.requires_grad_() for t in case.make(2, 5, case.small, dtype=torch.float64)]
    rows = {"reset_BT": torch.tensor([[False, True, False, False, False]] * 2), "lengths_B": torch.tensor([5, 3])}

    def flat(*x):
        out, state = case.run(*x, backend=backend, **rows)
        return out, *(part for part in state if part.requires_grad)

    assert torch.autograd.gradcheck(flat, x)


@every_form
def test_a_reset_ends_infinity(name, backend):
    """Whatever came before, in outputs and in gradients."""
    case = RECURRENCES[name]
    x, reset_BT = case.make(2, 9, case.small), torch.zeros(2, 9, dtype=torch.bool)
    reset_BT[:, 4] = True
    later = [t[:, 4:] if n < len(case.ragged) else t for n, t in enumerate(x)]
    count = len(case.ragged) + len(case.weights)
    with torch.no_grad():
        want, after = case.run(*later[:count], *(torch.zeros_like(t) for t in x[count:]), backend=backend)
        for part in range(count, len(x)):
            x[part][0] = torch.inf
        got, state = case.run(*x, backend=backend, reset_BT=reset_BT)
    torch.testing.assert_close(got[:, 4:], want, rtol=1e-5, atol=1e-5)
    for found, expected in zip(state, after, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_form
def test_padding_may_be_anything(name, backend):
    """NaN there reaches neither outputs, nor states, nor gradients."""
    case, found = RECURRENCES[name], []
    for noise in (0.0, torch.nan):
        x, lengths_B = case.make(3, 9, case.small), torch.tensor([9, 0, 4])
        for t in x[: len(case.ragged)]:
            t[torch.arange(9) >= lengths_B[:, None]] = noise
        found.append(everything(case, x, backend=backend, lengths_B=lengths_B))
    for key, want in found[0].items():
        assert torch.equal(found[1][key], want), key


@every_kernel
def test_threads_change_nothing(name, monkeypatch):
    """Any number of threads, and several callers at once."""
    case = RECURRENCES[name]
    x, run = case.make(3, 70, case.real), partial(everything, case, backend="numba", **rows_of(3, 70, 1))
    monkeypatch.setattr("exlstm.runtime.cpu.launch.THREAD_US", 1e-6)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(run(x))
    with ThreadPoolExecutor(3) as callers:
        results += callers.map(lambda _: run(x), range(4))
    for result in results[1:]:
        for key, want in results[0].items():
            assert torch.equal(result[key], want), key


@every_form
def test_tensors_that_are_not_contiguous(name, backend):
    """Time first, every other number, and expanded gradients."""
    case = RECURRENCES[name]
    x, ragged = case.make(2, 11, case.small), range(len(case.ragged))
    want = everything(case, x, backend=backend)
    for apart in (
        lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
        lambda t: torch.stack([t, -t], dim=-1)[..., 0],
    ):
        seen = lambda *t, apart=apart: [apart(part) if n in ragged else part for n, part in enumerate(t)]  # noqa: E731
        got = comparison.everything(x, lambda *t, seen=seen: case.run(*seen(*t), backend=backend), case.names)
        for key, expected in want.items():
            torch.testing.assert_close(got[key], expected, rtol=1e-6, atol=1e-6, msg=key)
    gradients = []
    for expanded in (True, False):
        leaves = [t.clone().requires_grad_() for t in x]
        out, _ = case.run(*leaves, backend=backend)
        one = torch.ones(()).expand(out.shape)
        out.backward(one if expanded else one.clone())
        gradients.append([t.grad for t in leaves])
    for got, expected in zip(*gradients, strict=True):
        assert (got is None) == (expected is None)
        assert got is None or torch.equal(got, expected)


@every_form
def test_what_comes_in_is_left_as_it_was(name, backend):
    case = RECURRENCES[name]
    x = [t.requires_grad_() for t in case.make(2, 11, case.small)]
    before = [t.detach().clone() for t in x]
    out, state = case.run(*x, backend=backend, **rows_of(2, 11, 0))
    outputs = [t for t in (out, *state) if t.requires_grad]
    gradients = [torch.randn_like(t) for t in outputs]
    kept = [t.clone() for t in gradients]
    torch.autograd.backward(outputs, gradients)
    for now, then in zip([*x, *gradients], [*before, *kept], strict=True):
        assert torch.equal(now.detach(), then)


@every_form
def test_some_gradients_alone(name, backend):
    """An input without a gradient gets none, and changes no other."""
    case = RECURRENCES[name]
    x = case.make(1, 6, case.small)
    together = [t.clone().requires_grad_() for t in x]
    case.run(*together, backend=backend)[0].sum().backward()
    for number, want in enumerate(together):
        alone = [t.clone().requires_grad_(n == number) for n, t in enumerate(x)]
        out, _ = case.run(*alone, backend=backend)
        if want.grad is not None:
            out.sum().backward()
            assert torch.equal(alone[number].grad, want.grad)


@every_form
def test_second_derivatives_are_refused(name, backend):
    """By name of a backend that has them: a silent zero would be worse."""
    case = RECURRENCES[name]
    x = [t.requires_grad_() for t in case.make(1, 6, case.small)]
    out, _ = case.run(*x, backend=backend)
    with pytest.raises(ValueError, match="use backend='recurrent'"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True, allow_unused=True)


@every_form
def test_one_step_without_gradients_is_the_same(name, backend):
    case = RECURRENCES[name]
    x = case.make(3, 1, case.small)
    want = everything(case, x, backend=backend)
    with torch.no_grad():
        out, state = case.run(*x, backend=backend)
    torch.testing.assert_close(out, want["output"], rtol=1e-6, atol=1e-6)
    for field, part in state._asdict().items():
        torch.testing.assert_close(part, want[f"state.{field}"], rtol=1e-6, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs(name, dtype):
    """Outputs have the dtype of the inputs, states are float32, and numbers are those of the rounded inputs."""
    case = RECURRENCES[name]
    count = len(case.ragged) + len(case.weights)
    x = [t.to(dtype) if n < count else t for n, t in enumerate(case.make(2, 40, case.small))]
    out, state = case.run(*x, backend="auto")
    assert out.dtype == dtype
    assert {part.dtype for part in state if part.is_floating_point()} == {torch.float32}
    want, _ = case.run(*(t.double() for t in x))
    torch.testing.assert_close(out.double(), want, rtol=0.02, atol=0.02 * want.abs().max().item())


@every
def test_no_rows(name):
    case = RECURRENCES[name]
    for backend in ("auto", "recurrent", *case.fast):
        x = [t.requires_grad_() for t in case.make(0, 6, case.small)]
        out, state = case.run(*x, backend=backend)
        assert out.shape[:2] == (0, 6)
        assert all(part.shape[0] == 0 for part in state)
        out.sum().backward()
