"""The Triton kernels of linear attention with decays against the definition, interpreted where there is no GPU."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import comparison
import pytest
import torch
from recurrences import RECURRENCES
from triton_cases import DEVICE, here

from accuracy import DRAWS, assert_as_accurate, compare, outputs
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.runtime.backend import recorded

pytest.importorskip("triton", reason="Triton has no wheel for this system")
# the interpreter is numpy, which warns where a GPU says infinite
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
FORMS = ["decay per key", "decay per key, bonus"]
# the interpreter takes its time: of what both forms share, one is tested by default
with_slow_breadth = pytest.mark.parametrize("form", [FORMS[0], pytest.param(FORMS[1], marks=pytest.mark.slow)])


def everything(case, x, **options):
    """Output, state and every gradient."""
    return comparison.everything(here(x), partial(case.run, **here(options)), case.names)


def check(form, B, T, H, K, V, scale=1.0, **options):
    """Outputs, states and all gradients are the definition's in float64, to float32's rounding."""
    case = RECURRENCES[form]
    x = case.make(B, T, {"H": H, "K": K, "V": V}, scale=scale)
    want = everything(case, [t.double() for t in x], **options)
    comparison.assert_same(everything(case, x, backend="triton", **options), want, tolerance=2e-5)


def resets(B, T, share):
    return torch.rand(B, T, generator=torch.Generator().manual_seed(4)) < share


def test_names():
    """The one test here in which the names of tensors are checked."""
    check(FORMS[1], 2, 3, 1, 4, 5)


@with_slow_breadth
@pytest.mark.parametrize(
    ("B", "T", "H"), [(1, 1, 1), (2, 20, 2), (1, 70, 1), pytest.param(1, 16, 1, marks=pytest.mark.slow)]
)
def test_lengths(form, B, T, H):
    check(form, B, T, H, 8, 6)


@pytest.mark.parametrize(("K", "V"), [(24, 72), (66, 20)])
def test_widths_of_several_blocks_and_of_no_power_of_two(K, V):
    check(FORMS[0], 1, 20, 1, K, V)


@with_slow_breadth
@pytest.mark.parametrize("share", [0.3, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.02, 1.0))])
def test_resets(form, share):
    """In, on and between blocks and tiles."""
    check(form, 1, 75, 1, 6, 5, reset_BT=resets(1, 75, share))


@pytest.mark.slow
@with_slow_breadth
def test_ragged_rows(form):
    lengths_B = torch.tensor([20, 17, 0])
    check(form, 3, 20, 1, 8, 8, lengths_B=lengths_B, reset_BT=resets(3, 20, 0.05))


@pytest.mark.parametrize(
    ("form", "scale"),
    [
        (FORMS[1], 20.0),
        pytest.param(FORMS[0], 1.0, marks=pytest.mark.slow),
        pytest.param(FORMS[0], 20.0, marks=pytest.mark.slow),
    ],
)
def test_accuracy(form, scale):
    """As accurate as the definition in float32, with weak and with strong decays."""
    case = RECURRENCES[form]
    draws = [here(case.make(1, 40, {"H": 1, "K": 16, "V": 8}, scale=scale, seed=seed)) for seed in DRAWS]
    assert_as_accurate(partial(case.run, backend="triton"), case.run, draws, names=case.names)


@with_slow_breadth
def test_decays_of_nothing_and_of_everything(form):
    """g of 0, -inf, and of sizes whose sums swallow their neighbors."""
    case = RECURRENCES[form]
    x = case.make(1, 50, {"H": 1, "K": 6, "V": 5})
    for t, value in {3: -torch.inf, 9: -1e30, 10: -1e-6, 20: 0.0, 33: -1e4, 34: -2.0, 47: -torch.inf}.items():
        x[3][:, t] = value
    want = everything(case, [t.double() for t in x])
    comparison.assert_same(everything(case, x, backend="triton"), want, tolerance=1e-5)


@with_slow_breadth
@pytest.mark.parametrize("T", [1, 30])
@torch.no_grad()
def test_a_reset_ends_infinity(form, T):
    case = RECURRENCES[form]
    x = here(case.make(2, T, {"H": 1, "K": 6, "V": 5}))
    reset_BT = here(torch.zeros(2, T, dtype=torch.bool))
    at = T // 2
    reset_BT[:, at] = True
    later = [t[:, at:] if n < 4 else t for n, t in enumerate(x[:-1])]
    want, after = case.run(*later, torch.zeros_like(x[-1]), backend="triton")
    x[-1][0] = torch.inf
    got, state = case.run(*x, backend="triton", reset_BT=reset_BT)
    torch.testing.assert_close(got[:, at:], want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.s_BHKV, after.s_BHKV, rtol=1e-5, atol=1e-5)


@with_slow_breadth
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("H", "K", "V"), [(2, 33, 15), (1, 256, 130)])
@torch.no_grad()
def test_the_step(form, dtype, H, K, V):
    """Of decoding, to the same rule: at most twice as wrong as the definition in the same precision."""
    case, found = RECURRENCES[form], []
    for seed in DRAWS:
        *inputs, s = case.make(2, 1, {"H": H, "K": K, "V": V}, seed=seed)
        x = here([*(t.to(dtype) for t in inputs), s])
        exact = outputs(case.run, [t.double() for t in x])
        found.append([exact, outputs(case.run, x), outputs(partial(case.run, backend="triton"), x)])
    compare(found)


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16_as_on_a_gpu")
@with_slow_breadth
def test_bfloat16(form):
    """Products of bfloat16 matrices: within 2 % in the mean square, of every output, state and gradient."""
    case = RECURRENCES[form]
    *inputs, s = case.make(1, 70, {"H": 1, "K": 16, "V": 24})
    x = [*(t.bfloat16() for t in inputs), s]
    want = everything(case, [t.double() for t in x])
    for name, got in everything(case, x, backend="triton").items():
        error = (got.double() - want[name]).norm() / want[name].norm()
        assert error < 0.02, f"{name}: {error:.3f}"


def test_what_it_cannot_do():
    case = RECURRENCES["decay per value"]
    x = here(case.make(1, 5, {"H": 1, "K": 4, "V": 4}))
    with pytest.raises(ValueError, match="its decays are per key channel"):
        case.run(*x, backend="triton")
    wide = here(RECURRENCES[FORMS[0]].make(1, 5, {"H": 1, "K": 300, "V": 4}))
    with pytest.raises(ValueError, match="up to 256 keys"):
        RECURRENCES[FORMS[0]].run(*wide, backend="triton")
    with recorded() as choices:
        gated_linear_attention(*x[:4], GatedLinearAttentionState(x[4]))
    assert choices[0].backend == ("numba" if DEVICE == "cpu" else "triton")


@pytest.mark.slow
def test_it_compiles_for_gpus_that_are_not_there():
    """What Triton's interpreter accepts its compiler may not. In a process of its own, for here it interprets."""
    script = Path(__file__).with_name("compile_gated_linear_attention.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 2 * 3 * 6
    assert all(int(shared) <= 99 << 10 for *_, shared, _ in lines), done.stdout
    # with resets and without, strides that are multiples of 16 or not, tiles of one block and of four: not for lengths
    assert all(int(forms) <= (6 if name == "state_kernel" else 3) for *_, name, forms, _, _ in lines), done.stdout
    products = {name for _, dtype, _, _, name, _, _, count in lines if dtype == "torch.bfloat16" and int(count)}
    assert products == {"state_kernel", "output_kernel", "state_gradient_kernel", "gradient_kernel"}
