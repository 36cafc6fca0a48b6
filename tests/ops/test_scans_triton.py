"""Triton's diagonal and selective scan against the definitions: on a CPU through Triton's interpreter."""

from functools import partial

import comparison
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrences import RECURRENCES
from triton_cases import DEVICE, here

from accuracy import assert_as_accurate

pytest.importorskip("triton", reason="Triton has no wheel for this system")
# a softplus more is the same kernels
NAMES = ["scan", "selective_scan softplus", pytest.param("selective_scan", marks=pytest.mark.slow)]
every = pytest.mark.parametrize("name", NAMES)


def everything(case, x, **options):
    """Output, state and every gradient."""
    return comparison.everything(here(x), partial(case.run, **here(options)), case.names)


def check(name, B, T, sizes, tolerance=2e-5, scale=1.0, seed=0, **rows):
    """All of it is the definition's in float64, to float32's rounding."""
    case = RECURRENCES[name]
    x = case.make(B, T, sizes, scale=scale, seed=seed)
    want = everything(case, [t.double() for t in x], **rows)
    comparison.assert_same(everything(case, x, backend="triton", **rows), want, tolerance=tolerance)


@every
def test_names(name):
    """The one test here in which the names of tensors are checked."""
    check(name, 2, 3, RECURRENCES[name].small)


@pytest.mark.breadth(2)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("scan", {"E": 1}), ("scan", {"E": 130}), ("scan", {"E": 33}), ("selective_scan", {"E": 1, "Z": 1}),
     ("selective_scan", {"E": 33, "Z": 16}), ("selective_scan", {"E": 9, "Z": 70})],
)  # fmt: skip
def test_programs(name, sizes):
    """One and several, some of them not full; widths that are padded."""
    check(name, 2, 4, sizes)


@pytest.mark.breadth(2)
@every
@pytest.mark.parametrize("T", [1, 15, 16, 17, 33])
def test_chunks(name, T):
    """Whole ones and a rest; one step alone."""
    check(name, 1, T, RECURRENCES[name].small)


@pytest.mark.breadth(1)
@every
def test_resets_and_lengths(name):
    """Resets on the first step, on a chunk's first and last, and beyond a row's length; rows of no steps, some, all."""
    reset_BT = torch.rand(4, 34, generator=torch.Generator().manual_seed(0)) < 0.1
    reset_BT[:2, 0] = reset_BT[2, 15] = reset_BT[2, 16] = reset_BT[2, 33] = reset_BT[1, 20] = True
    check(name, 4, 34, RECURRENCES[name].small, reset_BT=reset_BT, lengths_B=torch.tensor([0, 3, 34, 16]))


@pytest.mark.slow
@settings(max_examples=10)
@given(data=st.data())
def test_any_shape_is_the_definition(data):
    name = data.draw(st.sampled_from(["scan", "selective_scan", "selective_scan softplus"]))
    sizes = {letter: data.draw(st.integers(1, 2 * small)) for letter, small in RECURRENCES[name].small.items()}
    B, T, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20)), data.draw(st.integers(0, 999))
    generator, rows = torch.Generator().manual_seed(seed), {}
    if data.draw(st.booleans()):
        rows["reset_BT"] = torch.rand(B, T, generator=generator) < data.draw(st.sampled_from([0.1, 1.0]))
    if data.draw(st.booleans()):
        rows["lengths_B"] = torch.randint(0, T + 1, (B,), generator=generator)
    check(name, B, T, sizes, 1e-4, data.draw(st.sampled_from([0.1, 1.0, 100.0])), seed, **rows)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param(name, scale, marks=() if (name, scale) == ("scan", 1.0) else pytest.mark.slow)
        for name in ("scan", "selective_scan softplus", "selective_scan")
        for scale in (1.0, 20.0)
    ],
)
def test_accuracy(name, scale):
    case = RECURRENCES[name]
    draws = [here(case.make(2, 40, case.small, scale=scale, seed=seed)) for seed in range(3)]
    assert_as_accurate(partial(case.run, backend="triton"), case.run, draws, names=case.names)


@every
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_reset_ends_infinity(name):
    case, reset_BT = RECURRENCES[name], torch.zeros(2, 9, dtype=torch.bool)
    reset_BT[:, 4] = True
    x, count = here(case.make(2, 9, case.small)), len(case.ragged)
    later = [t[:, 4:] if n < count else t for n, t in enumerate(x)]
    later[-1] = torch.zeros_like(x[-1])
    want, after = case.run(*later, backend="triton")
    x[-1] = torch.full_like(x[-1], torch.inf)
    got, state = case.run(*x, backend="triton", reset_BT=here(reset_BT))
    torch.testing.assert_close(got[:, 4:], want)
    torch.testing.assert_close(state[0], after[0])


@pytest.mark.breadth(1)
@every
def test_padding_may_be_anything(name):
    case, found = RECURRENCES[name], []
    for noise in (0.0, torch.nan):
        x, lengths_B = case.make(3, 9, case.small), torch.tensor([9, 0, 4])
        for t in x[: len(case.ragged)]:
            t[torch.arange(9) >= lengths_B[:, None]] = noise
        found.append(everything(case, x, backend="triton", lengths_B=lengths_B))
    for key, want in found[0].items():
        assert torch.equal(found[1][key], want), key


@every
def test_step_by_step(name):
    """A step without gradients, the state handed on, is the whole."""
    case = RECURRENCES[name]
    x = here(case.make(3, 5, case.small))
    ragged, rest, state = x[: len(case.ragged)], x[len(case.ragged) : -1], x[-1]
    want, after = case.run(*x, backend="triton")
    outputs = []
    for t in range(5):
        out, (state,) = case.run(*(part[:, t : t + 1] for part in ragged), *rest, state, backend="triton")
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, dim=1), want)
    torch.testing.assert_close(state, after[0])


@pytest.mark.breadth(1)
@every
def test_tensors_that_are_not_contiguous(name):
    """Time first, every other number, and an expanded gradient."""
    case = RECURRENCES[name]
    x, count = here(case.make(2, 7, case.small)), len(case.ragged)
    want = everything(case, x, backend="triton")
    for apart in (lambda t: t.transpose(0, 1).contiguous().transpose(0, 1), lambda t: torch.stack([t, -t], -1)[..., 0]):
        seen = lambda *t, apart=apart: [apart(part) if n < count else part for n, part in enumerate(t)]  # noqa: E731
        got = comparison.everything(x, lambda *t, seen=seen: case.run(*seen(*t), backend="triton"), case.names)
        for key, expected in want.items():
            torch.testing.assert_close(got[key], expected, rtol=1e-6, atol=1e-6, msg=key)
    leaves = [t.requires_grad_() for t in x]
    case.run(*leaves, backend="triton")[0].sum().backward()
    assert all(t.grad.isfinite().all() for t in leaves)


def test_factors_that_are_expanded():
    """One factor for all steps is read where it is, and its gradient is the sum."""
    case, found = RECURRENCES["scan"], []
    a_11E, b_BTE, h_BE = torch.rand(1, 1, 5), torch.randn(2, 6, 5), torch.randn(2, 5)
    for expand in (lambda a: a.expand(2, 6, 5), lambda a: a.repeat(2, 6, 1)):
        leaf = here(a_11E.clone()).requires_grad_()
        out, _ = case.run(expand(leaf), here(b_BTE), here(h_BE), backend="triton")
        out.square().sum().backward()
        found.append((out, leaf.grad))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.breadth(1)
@every
def test_sixteen_bits(name, bfloat16_as_on_a_gpu):
    """Inputs are read as they are, outputs have their dtype, and numbers are those of the rounded inputs."""
    case = RECURRENCES[name]
    x = here(case.make(2, 20, case.small))
    x = [*(t.bfloat16() for t in x[:-1]), x[-1]]
    exact = [t.double() for t in x]
    found = []
    for leaves, backend in ((x, "triton"), (exact, "recurrent")):
        leaves = [t.clone().requires_grad_() for t in leaves]
        out, state = case.run(*leaves, backend=backend)
        out.sum().backward()
        found.append([out, *state, *(t.grad for t in leaves)])
    assert found[0][0].dtype == torch.bfloat16
    assert found[0][1].dtype == torch.float32
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= 0.02 * want.abs().max()


@every
def test_second_derivatives_are_refused(name):
    case = RECURRENCES[name]
    x = [t.requires_grad_() for t in here(case.make(1, 3, case.small))]
    out, _ = case.run(*x, backend="triton")
    with pytest.raises(ValueError, match="use backend='recurrent'"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True, allow_unused=True)


@every
def test_no_rows(name):
    case = RECURRENCES[name]
    x = [t.requires_grad_() for t in here(case.make(0, 6, case.small))]
    out, state = case.run(*x, backend="triton")
    assert out.shape[:2] == (0, 6)
    assert state[0].shape[0] == 0
    out.sum().backward()


def keeps_its_word(operator, *arguments):
    """torch's own check: the schema holds, shapes without numbers are right, nothing is changed in place."""
    torch.library.opcheck(operator, arguments, test_utils=["test_schema", "test_faketensor"])
    return operator(*arguments)


def test_operators():
    from exlstm.ops.scan.triton.op import run_backward, run_forward

    reset, lengths = here(torch.tensor([[False, True, False]] * 2)), here(torch.tensor([3, 1]))
    a, b, h = here(RECURRENCES["scan"].make(2, 3, {"E": 5}))
    for rows in ((None, None), (reset, lengths)):
        y, after = keeps_its_word(run_forward, a, b, h, *rows)
        keeps_its_word(run_backward, a, h, *rows, y, y, after)


@pytest.mark.slow
def test_operators_of_the_selective_scan():
    from exlstm.ops.selective_scan.triton.op import run_backward, run_forward

    reset, lengths = here(torch.tensor([[False, True, False]] * 2)), here(torch.tensor([3, 1]))
    x, dt, b, c, a, skip, h = here(RECURRENCES["selective_scan"].make(2, 3, {"E": 5, "Z": 3}))
    for rows in ((None, None), (reset, lengths)):
        keeps_its_word(run_forward, x, dt, a, b, c, skip, h, *rows, False, False)
        y, after, borders = keeps_its_word(run_forward, x, dt, a, b, c, skip, h, *rows, True, True)
        keeps_its_word(run_backward, x, dt, a, b, c, skip, *rows, borders, y, after, True)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU takes them by itself")
@every
def test_on_a_cpu_only_by_name(name):
    case = RECURRENCES[name]
    with pytest.raises(ValueError, match="float64"):
        case.run(*case.make(1, 2, case.small, dtype=torch.float64), backend="triton")
