"""Both ways of the Triton sLSTM through time against the definition: on a CPU through Triton's interpreter."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from slstm_cases import NAMES, call, everything, make, resets
from triton_cases import DEVICE, here

from accuracy import assert_as_accurate
from exlstm.ops.slstm import SLSTMState, gpu_candidates, scan_obstacle, slstm

pytest.importorskip("triton", reason="Triton has no wheel for this system")
WAYS = ("triton", "triton_steps")
definition = partial(call, backend="recurrent")
both_ways = pytest.mark.parametrize("way", WAYS)


def check(way, sizes, tolerance=2e-5, **options):
    """Outputs, states and all gradients are the definition's in float64, to float32's rounding."""
    x, options = here(make(*sizes)), here(options)
    got = everything([t.float() for t in x], partial(call, backend=way, **options))
    assert_same(got, everything(x, partial(definition, **options)), tolerance=tolerance)


def test_names():
    """The one test here in which the names of tensors are checked."""
    for way in WAYS:
        everything(here(make(1, 2, 1, 3, dtype=torch.float32)), partial(call, backend=way))


@pytest.mark.breadth(2)
@pytest.mark.parametrize(
    ("way", "B", "H", "V"),
    [("triton", 1, 1, 1), ("triton", 3, 2, 16), ("triton", 9, 1, 33), ("triton_steps", 17, 1, 1),
     ("triton_steps", 2, 2, 16), ("triton_steps", 33, 1, 5), ("triton_steps", 1, 1, 34)],
)  # fmt: skip
def test_rows_and_units(way, B, H, V):
    """Tiles that are full, not full, and several; widths that are padded; R in one block and in several."""
    check(way, (B, 3, H, V))


def test_many_rows(monkeypatch):
    """Programs of 16 rows where of 8 there would be too many; without R also several programs to a head."""
    monkeypatch.setattr("exlstm.ops.slstm.triton.op.MULTIPROCESSORS", 2)
    check("triton", (17, 2, 2, 3))
    check("triton", (1, 2, 1, 70), mixing=False)


@pytest.mark.breadth(1)
@both_ways
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_resets_and_lengths(way, forget_gate):
    """Resets on the first step, on the last and beyond a row's length; rows of no steps, some and all."""
    reset_BT = resets(4, 6, share=0.3)
    reset_BT[:, 0], reset_BT[2, 5] = torch.tensor([True, False, True, False]), True
    lengths_B = torch.tensor([0, 3, 6, 5])
    check(way, (4, 6, 1, 5), reset_BT=reset_BT, lengths_B=lengths_B, forget_gate=forget_gate)


@pytest.mark.breadth(1)
@both_ways
@pytest.mark.parametrize("gate", [1.0, 10.0, 40.0])
def test_accuracy(way, gate):
    draws = [here(make(2, 9, 1, 8, gate=gate, dtype=torch.float32, seed=seed)) for seed in range(3)]
    assert_as_accurate(partial(call, backend=way), definition, draws, names=NAMES)


@pytest.mark.slow
@settings(max_examples=12)
@given(data=st.data())
def test_any_shape_is_the_definition(data):
    sizes = st.integers(1, 3), st.integers(1, 9), st.integers(1, 2), st.integers(1, 19)
    B, T, H, V = (data.draw(size) for size in sizes)
    share, seed = data.draw(st.sampled_from([None, 0.1, 1.0])), data.draw(st.integers(0, 999))
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    check(
        data.draw(st.sampled_from(WAYS)),
        (B, T, H, V),
        reset_BT=None if share is None else resets(B, T, seed=seed, share=share),
        lengths_B=None if lengths is None else torch.tensor(lengths),
        forget_gate=data.draw(st.sampled_from(["sigmoid", "exp"])),
        mixing=data.draw(st.booleans()),
        tolerance=1e-4,
    )


@both_ways
def test_step_by_step(way):
    x = here(make(3, 5, 2, 5, dtype=torch.float32))
    whole_BTHV, state = call(*x, backend=way)
    steps, after = [], SLSTMState(*x[2:])
    for t in range(5):
        h_B1HV, after = slstm(x[0][:, t : t + 1], x[1], after, backend=way)
        steps.append(h_B1HV)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole_BTHV, rtol=1e-6, atol=1e-6)
    for got, want in zip(after, state, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@both_ways
def test_inputs_in_any_order_of_memory(way):
    fast = partial(call, backend=way)
    x = here(make(2, 4, 2, 5, dtype=torch.float32))
    want = everything(x, fast)
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in x]
    assert not turned[0].is_contiguous()
    assert_same(everything(turned, fast), want, tolerance=1e-6)


@both_ways
def test_nothing_that_is_given_changes(way):
    """Not the inputs, and not the gradients of the last state, which a caller may use again."""
    x = [t.requires_grad_() for t in here(make(2, 3, 1, 4, dtype=torch.float32))[:5]]
    state = SLSTMState(*x[2:], torch.zeros_like(x[2]))
    h_BTHV, after = slstm(x[0], x[1], state, backend=way)
    given_ = [torch.randn_like(t) for t in (h_BTHV, *after[:3])]
    before = [t.detach().clone() for t in (*x, *given_)]
    torch.autograd.backward((h_BTHV, *after[:3]), given_)
    for t, want in zip((*x, *given_), before, strict=True):
        assert torch.equal(t, want)


@both_ways
def test_16_bits(way):
    """R and x in 16 bits: the products take h in them too, all else stays wide. NumPy interprets, without bfloat16."""
    x = here(make(2, 4, 1, 20, dtype=torch.float16))
    got = everything(x, partial(call, backend=way))
    narrow = {name for name, t in got.items() if t.dtype == torch.float16}
    assert narrow == {"output", "gradient of x", "gradient of r"}
    want = everything([t.double() for t in x], definition)
    assert_same({name: t.double() for name, t in got.items()}, want, tolerance=0.004)


@pytest.mark.breadth(1)
@both_ways
@pytest.mark.usefixtures("bfloat16_as_on_a_gpu")
def test_bfloat16(way):
    """Within 1 % in the mean square, of every output, state and gradient."""
    x = here(make(2, 12, 1, 20, dtype=torch.bfloat16))
    exact = everything([t.double() for t in x], definition)
    for name, got in everything(x, partial(call, backend=way)).items():
        error = (got.double() - exact[name]).norm() / exact[name].norm().clamp(min=1e-30)
        assert error <= 1e-2, f"{name}: {error:.1e}"


@pytest.mark.usefixtures("bfloat16_as_on_a_gpu")
def test_autocast_narrows_products():
    """R in float32 is multiplied in autocast's dtype, as nn.LSTM's is: so wide heads stay on the chip."""
    x = here(make(1, 3, 1, 70, dtype=torch.float32))
    with pytest.raises(ValueError, match="take 384 KB"):
        call(*x, backend="triton")
    with torch.autocast(DEVICE, torch.bfloat16):
        h_BTHV, state = call(*x, backend="triton")
    narrow = [x[0], x[1].bfloat16(), *x[2:]]
    torch.testing.assert_close(h_BTHV, call(*narrow, backend="triton")[0], rtol=0, atol=0)
    assert (h_BTHV.dtype, state.c_BHV.dtype) == (torch.float32, torch.float32)


def test_which_way():
    """R decides: on an H100, which the interpreter stands for, and on smaller GPUs."""
    for V, dtype in ((64, torch.float32), (128, torch.bfloat16), (97, torch.float16)):
        assert scan_obstacle(torch.empty(1, V, 4, V, dtype=dtype)) is None
    x = here(make(1, 2, 1, 65, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"heads of 65 units in float32 take 384 KB .* which is 227 KB here"):
        call(*x, backend="triton")
    assert gpu_candidates(x, x[1], "triton_steps", "tanh")[1] == ("triton_steps", None)
    assert scan_obstacle(None) is None


@pytest.mark.parametrize(
    ("kilobytes", "V", "dtype", "fits"),
    [(227, 128, torch.bfloat16, True), (163, 128, torch.bfloat16, False), (163, 64, torch.float32, True),
     (99, 64, torch.float32, False), (99, 64, torch.bfloat16, True), (64, 64, torch.bfloat16, False)],
)  # fmt: skip
def test_what_other_gpus_hold(monkeypatch, kilobytes, V, dtype, fits):
    monkeypatch.setattr("exlstm.ops.slstm.gpu_limits", lambda _device: ("a card", kilobytes << 10))
    found = scan_obstacle(torch.empty(1, V, 4, V, dtype=dtype, device="meta"))
    assert (found is None) == fits
    assert fits or f"which is {kilobytes} KB here" in found


def test_what_it_does_not_run():
    x = here(make(1, 2, 1, 4, dtype=torch.float32))
    for way in WAYS:
        with pytest.raises(ValueError, match=r"tanh, not gelu"):
            call(*x, backend=way, cell_activation="gelu")
