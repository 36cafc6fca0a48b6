"""The delta rule's Triton kernels against the definition: on a CPU through Triton's interpreter, on a GPU compiled."""

from functools import partial

import comparison
import pytest
import torch
from recurrences import RECURRENCES
from triton_cases import DEVICE, here

from accuracy import assert_as_accurate
from exlstm.runtime.backend import recorded

pytest.importorskip("triton", reason="Triton has no wheel for this system")
op = pytest.importorskip("exlstm.ops.delta_rule.triton.op")
RULES = [name for name in RECURRENCES if name.startswith(("delta_rule", "dplr"))]
IN_CHUNKS = ["delta_rule", "delta_rule with a decay"]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Of 16 steps in float32: several of them are quick to interpret."""
    monkeypatch.setattr(op, "CHUNK", 32)


def make(name, B, T, H=1, K=8, V=6, **options):
    return here(RECURRENCES[name].make(B, T, {"H": H, "K": K, "V": V}, **options))


def everything(name, x, **options):
    case = RECURRENCES[name]
    return comparison.everything(x, partial(case.run, **options), case.names)


def resets(B, T, share=0.05):
    return torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < share


def check(name, sizes, tolerance=2e-5, **options):
    """Outputs, states and all gradients are the definition's in float64, to float32's rounding."""
    x, options = make(name, *sizes, dtype=torch.float64), here(options)
    got = everything(name, [t.float() for t in x], backend="triton", **options)
    comparison.assert_same(got, everything(name, x, **options), tolerance=tolerance)


@pytest.mark.parametrize("name", IN_CHUNKS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (2, 40, 2), pytest.param((2, 16, 1), marks=pytest.mark.slow)])
def test_lengths(name, sizes):
    check(name, sizes)


@pytest.mark.parametrize("name", [pytest.param(IN_CHUNKS[0], marks=pytest.mark.slow), *IN_CHUNKS[1:]])
def test_resets(name):
    """In, on and between chunks."""
    check(name, (2, 50), reset_BT=resets(2, 50))


@pytest.mark.slow
def test_ragged_rows():
    rows = {"lengths_B": torch.tensor([50, 33, 0]), "reset_BT": resets(3, 50)}
    check("delta_rule with a decay", (3, 50), **rows)


@pytest.mark.parametrize(("K", "V"), [(24, 72), (70, 20)])
def test_widths_of_several_blocks_and_of_no_power_of_two(K, V):
    check("delta_rule with a decay", (1, 20, 1, K, V))


@pytest.mark.slow  # by default the same rule is applied to linear attention with decays
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_accuracy(scale):
    """As accurate as the definition in float32, with decays that are mostly open, and with extreme ones."""
    case = RECURRENCES["delta_rule with a decay"]
    draws = [make("delta_rule with a decay", 1, 48, scale=scale, seed=seed) for seed in range(5)]
    assert_as_accurate(partial(case.run, backend="triton"), case.run, draws, names=case.names)


def test_a_decay_to_nothing():
    x = make("delta_rule with a decay", 1, 40, dtype=torch.float64)
    x[4][:, [5, 20]] = -1e15
    want = everything("delta_rule with a decay", x)
    got = everything("delta_rule with a decay", [t.float() for t in x], backend="triton")
    comparison.assert_same(got, want, tolerance=2e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the interpreter
def test_a_reset_ends_infinity():
    case, x = RECURRENCES["delta_rule with a decay"], make("delta_rule with a decay", 2, 20)
    reset_BT = torch.zeros(2, 20, dtype=torch.bool)
    reset_BT[:, 4] = True
    x[-1][0] = torch.inf
    with torch.no_grad():
        got, state = case.run(*x, backend="triton", reset_BT=here(reset_BT))
        want, after = case.run(*(t[:, 4:] for t in x[:5]), torch.zeros_like(x[5]))
    torch.testing.assert_close(got[:, 4:], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.s_BHKV, after.s_BHKV, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_a_step(name):
    """Of every rule, with all that a step may have."""
    case, x = RECURRENCES[name], make(name, 3, 1, 2, 24, 40)
    rows = here({"reset_BT": torch.tensor([[False], [True], [False]]), "lengths_B": torch.tensor([1, 1, 0])})
    for options in ({}, rows):
        with torch.no_grad(), recorded() as choices:
            got, state = case.run(*x, backend="triton", **options)
        assert choices[0].backend == "triton"
        want, after = case.run(*(t.double() for t in x), **options)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.s_BHKV.double(), after.s_BHKV, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16_as_on_a_gpu")
def test_bfloat16():
    """Products of bfloat16 matrices: within 2 % in the mean square, of every output, state and gradient."""
    name = "delta_rule with a decay"
    x = [t.bfloat16() for t in make(name, 1, 70, 1, 16, 24, dtype=torch.float64)]
    exact = everything(name, [t.double() for t in x], reset_BT=here(resets(1, 70, 0.01)))
    got = everything(name, x, backend="triton", reset_BT=here(resets(1, 70, 0.01)))
    for key, want in exact.items():
        error = (got[key] - want).norm() / want.norm().clamp(min=1e-30)
        assert error <= 2e-2, f"{key}: {error:.1e}"


def test_what_it_cannot_do():
    for name in RULES:
        x = make(name, 1, 20)
        if name not in IN_CHUNKS:
            with pytest.raises(ValueError, match="it has one decay per head"):
                RECURRENCES[name].run(*x, backend="triton")
    with pytest.raises(ValueError, match="a head has 300 keys, and it holds 256"):
        RECURRENCES["delta_rule"].run(*make("delta_rule", 1, 20, 1, 300), backend="triton")
    with recorded() as choices:
        RECURRENCES["delta_rule"].run(*make("delta_rule", 1, 20), backend="auto")
    assert choices[0].backend == ("numba" if DEVICE == "cpu" else "triton")


@pytest.mark.gpu
@pytest.mark.parametrize(("K", "V"), [(64, 64), (128, 128), (256, 512), (96, 80)])
def test_real_sizes(K, V, monkeypatch):
    monkeypatch.setattr(op, "CHUNK", 64)
    case = RECURRENCES["delta_rule with a decay"]
    draws = [make("delta_rule with a decay", 1, 700, 2, K, V, seed=seed) for seed in range(3)]
    assert_as_accurate(partial(case.run, backend="triton"), case.run, draws, names=case.names)
