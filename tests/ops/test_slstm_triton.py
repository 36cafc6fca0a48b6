"""The Triton scans of the sLSTM against the definition: on a CPU through Triton's interpreter, on a GPU compiled."""

from functools import partial

import pytest
import torch
from draws import assert_as_accurate_in_the_middle
from hypothesis import given, settings
from hypothesis import strategies as st
from same import assert_same
from slstm_cases import NAMES, call, everything, make, resets
from triton_cases import here

from exlstm.ops.slstm import SLSTMState, slstm

pytest.importorskip("triton", reason="Triton has no wheel for this system")
fast, definition = partial(call, backend="triton"), partial(call, backend="recurrent")


def check(sizes, tolerance=2e-5, **options):
    """Outputs, states and all gradients are the definition's in float64, to float32's rounding."""
    x, options = here(make(*sizes)), here(options)
    got = everything([t.float() for t in x], partial(fast, **options))
    assert_same(got, everything(x, partial(definition, **options)), tolerance=tolerance)


def test_names():
    """The one test here in which the names of tensors are checked."""
    everything(here(make(2, 5, 2, 3, dtype=torch.float32)), fast)


@pytest.mark.parametrize(("B", "H", "V"), [(1, 1, 1), (3, 2, 16), (17, 1, 21), (2, 1, 50)])
def test_rows_and_units(B, H, V):
    """Tiles that are full, not full, and several; widths that are padded."""
    check((B, 7, H, V))


@pytest.mark.parametrize("gate", [1.0, 10.0, 40.0])
def test_accuracy(gate):
    draws = [here(make(2, 40, 1, 8, gate=gate, dtype=torch.float32, seed=seed)) for seed in range(7)]
    assert_as_accurate_in_the_middle(fast, definition, draws, names=NAMES)


@settings(max_examples=12)
@given(data=st.data())
def test_any_shape_is_the_definition(data):
    sizes = st.integers(1, 3), st.integers(1, 20), st.integers(1, 2), st.integers(1, 19)
    B, T, H, V = (data.draw(size) for size in sizes)
    share, seed = data.draw(st.sampled_from([None, 0.1, 1.0])), data.draw(st.integers(0, 999))
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    check(
        (B, T, H, V),
        reset_BT=None if share is None else resets(B, T, seed=seed, share=share),
        lengths_B=None if lengths is None else torch.tensor(lengths),
        forget_gate=data.draw(st.sampled_from(["sigmoid", "exp"])),
        mixing=data.draw(st.booleans()),
        tolerance=1e-4,
    )


def test_step_by_step():
    x = here(make(3, 9, 2, 5, dtype=torch.float32))
    whole_BTHV, state = fast(*x)
    steps, after = [], SLSTMState(*x[2:])
    for t in range(9):
        h_B1HV, after = slstm(x[0][:, t : t + 1], x[1], after, backend="triton")
        steps.append(h_B1HV)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole_BTHV, rtol=1e-6, atol=1e-6)
    for got, want in zip(after, state, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_inputs_in_any_order_of_memory():
    x = here(make(2, 6, 2, 5, dtype=torch.float32))
    want = everything(x, fast)
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in x]
    assert not turned[0].is_contiguous()
    assert_same(everything(turned, fast), want, tolerance=1e-6)


def test_what_it_does_not_run():
    x = here(make(1, 2, 1, 65, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"up to 64 units, not 65"):
        fast(*x)
    x = here(make(1, 2, 1, 4, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"tanh, not gelu"):
        fast(*x, cell_activation="gelu")
