"""The Triton kernels of the mLSTM against the definition: on a CPU through Triton's interpreter, on a GPU compiled."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from mlstm_cases import NAMES, call, drawn, everything, make, output_and_gradients, resets, with_a_large_unit
from triton_cases import DEVICE, here

from accuracy import assert_as_accurate
from exlstm.ops.mlstm import mlstm
from exlstm.runtime.backend import recorded

pytest.importorskip("triton", reason="Triton has no wheel for this system")
triton = pytest.importorskip("exlstm.ops.mlstm.triton.op")
fast, definition = partial(call, backend="triton"), partial(call, backend="recurrent")


def check(sizes, chunk_len, **options):
    """Outputs, states and all gradients are the definition's in float64, to float32's rounding.

    Forget gates are nearly open: with half of it lost at every step, no tile would see another.
    """
    x, options = here(make(*sizes, positive=True)), here(options)
    x[4] += 6
    got = everything([t.float() for t in x], partial(fast, chunk_len=chunk_len, **options))
    assert_same(got, everything(x, partial(definition, **options)), tolerance=2e-5)


def test_names():
    """The one test here in which the names of tensors are checked."""
    everything(here(make(1, 5, 2, 8, 6, dtype=torch.float32)), partial(fast, chunk_len=16))


@pytest.mark.breadth(1)
@pytest.mark.parametrize(("B", "T", "H"), [(1, 1, 1), (1, 16, 1), (2, 20, 2)])
def test_lengths(B, T, H):
    check((B, T, H, 8, 6), 16)


@pytest.mark.breadth(1)
@pytest.mark.parametrize(("T", "chunk_len"), [(140, 64), (400, 256)])
def test_several_tiles_in_several_chunks(T, chunk_len):
    """Pairs of tiles, tiles between them, the state from chunk to chunk; resets fall in, on and between tiles."""
    check((1, T, 1, 16, 16), chunk_len)
    check((1, T, 1, 16, 16), chunk_len, reset_BT=resets(1, T, share=0.01))


@pytest.mark.slow
def test_a_scan_over_tiles_in_several_blocks(monkeypatch):
    """What was large at first still is after all blocks."""
    monkeypatch.setattr(triton, "SCAN_TILES", 2)
    x = here(make(1, 70, 1, 4, 3, positive=True))
    x[4], x[7] = x[4] + 6, x[7] + 20
    got = everything([t.float() for t in x], partial(fast, chunk_len=16))
    assert_same(got, everything(x, definition), tolerance=2e-5)


@pytest.mark.breadth(1)
@pytest.mark.parametrize(("K", "V"), [(24, 136), (130, 66)])
def test_widths_of_several_blocks_and_of_no_power_of_two(K, V):
    check((1, 20, 1, K, V), 32)


@pytest.mark.parametrize(
    ("gate", "T", "chunk_len"),
    [(10.0, 48, 16), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1.0, 40, 64), (40.0, 100, 128)))],
)
def test_accuracy(gate, T, chunk_len):
    """As accurate as the definition in float32, with weak and with strong gates."""
    draws = [here(make(1, T, 1, 8, 8, gate=gate, dtype=torch.float32, seed=seed)) for seed in range(5)]
    assert_as_accurate(partial(fast, chunk_len=chunk_len), definition, draws, names=NAMES)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("input_gate", ["exp", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
def test_variants(input_gate, normalize):
    check((1, 100, 1, 8, 8), 128, input_gate=input_gate, normalize=normalize, reset_BT=resets(1, 100, share=0.02))


@pytest.mark.slow
def test_ragged_rows():
    check((3, 50, 1, 8, 8), 32, lengths_B=torch.tensor([50, 33, 0]), reset_BT=resets(3, 50, share=0.05))


@pytest.mark.slow
@settings(max_examples=6)
@given(data=st.data())
def test_any_shape_is_the_definition(data):
    x, options, chunk_len = drawn(data, longest=33, rows=2, heads=2)
    x, options = here(x), here(options)
    want = everything(x, partial(definition, **options))
    assert_same(everything([t.float() for t in x], partial(fast, chunk_len=chunk_len, **options)), want, tolerance=2e-4)


def test_a_unit_that_is_large():
    """States are in units of the m that is stored, rounded: whatever weighs them has to use the same."""
    x = here(with_a_large_unit(T=70))
    want = output_and_gradients(definition, [t.double() for t in x])
    assert_same(output_and_gradients(partial(fast, chunk_len=16), x), want, tolerance=2e-5)


@pytest.mark.slow
def test_cutting_time_changes_nothing():
    x = here(make(1, 60, 1, 8, 8, dtype=torch.float32, gate=3.0, positive=True))

    def cut_in_two(*x):
        h1_BTHV, state = fast(*[t[:, :41] for t in x[:5]], *x[5:], chunk_len=32)
        h2_BTHV, state = fast(*[t[:, 41:] for t in x[:5]], *state, chunk_len=64)
        return torch.cat([h1_BTHV, h2_BTHV], dim=1), state

    assert_same(everything(x, cut_in_two), everything(x, fast), tolerance=1e-4)


@pytest.mark.parametrize("f", [-1e15, -torch.inf])
def test_a_forget_gate_that_closes_for_good(f):
    x = make(1, 80, 1, 4, 3, dtype=torch.float32, positive=True)
    x[4][:, [30, 64]] = f
    want = everything([t.double() for t in x], definition)
    got = everything(here(x), partial(fast, chunk_len=32))
    assert_same({name: t.cpu() for name, t in got.items()}, want, tolerance=1e-4)


@pytest.mark.slow
def test_inputs_in_any_order_of_memory():
    """As they come out of one projection, or transposed."""
    x = here(make(2, 20, 2, 8, 6, dtype=torch.float32, positive=True))
    reset_BT = here(resets(2, 20))
    plain, run = (partial(form, reset_BT=reset_BT.T.contiguous().T) for form in (definition, fast))
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in x]
    assert not turned[0].is_contiguous()
    assert_same(everything(turned, run), everything(x, plain), tolerance=2e-5)
    x = here(make(2, 70, 2, 8, 6, dtype=torch.float32, positive=True))
    found = []
    for form in (definition, partial(fast, chunk_len=128)):
        q_BTHK, joined_BTHJ = x[0].clone().requires_grad_(), torch.cat([x[1], x[2]], dim=3).requires_grad_()
        h_BTHV, state = form(q_BTHK, *joined_BTHJ.split([8, 6], dim=3), *x[3:5], *x[5:])
        out = torch.cat([h_BTHV, q_BTHK, q_BTHK], dim=3)
        (out.square().sum() + state.c_BHKV.sum() + state.n_BHK.sum()).backward()
        found.append({"h": h_BTHV.detach(), "gradient of q": q_BTHK.grad, "gradient of k, v": joined_BTHJ.grad})
    assert_same(found[1], found[0], tolerance=2e-5)


def test_the_gradient_that_comes_in_is_one_number_expanded():
    x = here(make(1, 5, 1, 4, 3, dtype=torch.float32, positive=True))
    x[2].requires_grad_()
    found = [torch.autograd.grad(form(*x)[0].sum(), x[2])[0] for form in (definition, fast)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_inputs_and_state_stay_as_they_are():
    x = here(make(1, 20, 2, 8, 6, dtype=torch.float32))
    before = [t.clone() for t in x]
    everything(x, fast)
    assert all(map(torch.equal, x, before))


def test_backends():
    x = here(make(1, 20, 1, 4, 4, dtype=torch.float32))
    with recorded() as choices:
        mlstm(*x[:5])
    assert choices[0].backend == ("numba" if DEVICE == "cpu" else "triton")
    with pytest.raises(ValueError, match=r"float64 in the input"):
        fast(*(t.double() for t in x))


def test_a_mass_of_nothing():
    """Two steps cancel to a mass of exactly 0, which has no sign and so no gradient; m = 200 leaves no floor."""
    x = [torch.ones_like(t) for t in make(1, 2, 1, 1, 1, dtype=torch.float32)]
    x[1][:, 1], x[2][:, 1] = -1, 3
    x[3], x[4], x[5:] = x[3] * 200, x[4] * torch.inf, [torch.zeros_like(t) for t in x[5:]]
    x, options = here(x), {"eps": 0.5}
    want = output_and_gradients(partial(definition, **options), x)
    assert_same(output_and_gradients(partial(fast, chunk_len=16, **options), x), want, tolerance=1e-5)


def test_float16():
    """The memory sums up to more than float16 can hold."""
    x = here(make(1, 20, 1, 8, 6, dtype=torch.float16, positive=True))
    x[2], x[4] = 30_000 + 1000 * x[2], x[4] + 6
    h_BTHV, state = fast(*x, chunk_len=16)
    exact_BTHV, exact = definition(*(t.double() for t in x))
    assert h_BTHV.dtype == torch.float16
    assert state.c_BHKV.dtype == torch.float32
    for got, want in ((h_BTHV, exact_BTHV), (state.c_BHKV, exact.c_BHKV)):
        assert (got - want).abs().max() <= 1e-3 * want.abs().max()


def check_bfloat16(sizes, chunk_len, **options):
    """Products of bfloat16 matrices: within 1 % in the mean square, of every output, state and gradient.

    The definition multiplies the same numbers in float32; its own error is that of rounding what it returns.
    """
    x, options = here(make(*sizes, positive=True, dtype=torch.bfloat16)), here(options)
    x[4] += 3
    exact = everything([t.double() for t in x], partial(definition, **options))
    got = everything(x, partial(fast, chunk_len=chunk_len, **options))
    for name, want in exact.items():
        error = (got[name] - want).norm() / want.norm().clamp(min=1e-30)
        assert error <= 1e-2, f"{name}: {error:.1e}"


@pytest.mark.parametrize(("T", "chunk_len"), [(40, 16), (140, 128)])
@pytest.mark.usefixtures("bfloat16_as_on_a_gpu")
def test_bfloat16(T, chunk_len):
    check_bfloat16((1, T, 1, 16, 24), chunk_len, reset_BT=resets(1, T, share=0.01))


@pytest.mark.gpu
@pytest.mark.parametrize(("K", "V", "chunk_len"), [(64, 128, 64), (128, 256, 128), (96, 80, 256), (512, 512, None)])
def test_real_sizes(K, V, chunk_len):
    check_bfloat16((1, 700, 2, K, V), chunk_len)
    draws = [here(make(1, 700, 2, K, V, dtype=torch.float32, seed=seed)) for seed in range(3)]
    assert_as_accurate(partial(fast, chunk_len=chunk_len), definition, draws, names=NAMES)


@pytest.mark.gpu
def test_three_hundred_thousand_steps():
    """More numbers than 32 bits count; cut in two, nothing changes."""
    T, cut = 300_000, 290_000
    generator = torch.Generator(DEVICE).manual_seed(0)
    q_BTHK, k_BTHK, v_BTHV = (
        torch.randn(1, T, 8, 1024, generator=generator, device=DEVICE, dtype=torch.bfloat16) for _ in range(3)
    )
    i_BTH, f_BTH = (torch.randn(1, T, 8, generator=generator, device=DEVICE) for _ in range(2))
    inputs = (q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH + 5)
    with torch.no_grad():
        whole_BTHV, _ = mlstm(*inputs, backend="triton")
        _, state = mlstm(*(x[:, :cut] for x in inputs), backend="triton")
        rest_BTHV, _ = mlstm(*(x[:, cut:] for x in inputs), state, backend="triton")
    torch.testing.assert_close(whole_BTHV[:, cut:], rest_BTHV, rtol=0.05, atol=0.05)


def test_a_step_after_a_reset_that_writes_little():
    """m was 0 before it, so m is at least log f, however small the input gate."""
    x, reset_BT = here(make(1, 5, 1, 4, 3, positive=True)), here(torch.arange(5)[None] == 4)
    x[3][:, 4], x[4] = -3, x[4] + 6
    want = everything(x, partial(definition, reset_BT=reset_BT))
    got = everything([t.float() for t in x], partial(fast, chunk_len=16, reset_BT=reset_BT))
    assert_same(got, want, tolerance=2e-5)
