"""The Numba scan of the sLSTM, with its hand-written backward, against the definition."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from slstm_cases import NAMES, call, everything, make, resets

from accuracy import DRAWS, assert_as_accurate
from exlstm.ops.gates import FORGET_GATES, INPUT_GATES
from exlstm.ops.slstm.reference import CELL_ACTIVATIONS
from exlstm.runtime.backend import recorded
from pairwise import every_pair

NARROW = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@st.composite
def problems(draw, longest):
    """(inputs in float32, options): everything that both backends take."""
    B, T, H = draw(st.integers(1, 4)), draw(st.integers(1, longest)), draw(st.integers(1, 3))
    seed, gate = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.1, 1.0, 10.0, 40.0]))
    fresh = draw(st.sampled_from([0.0, 0.3, 1.0]))
    x = make(B, T, H, draw(st.integers(1, 19)), seed=seed, gate=gate, dtype=torch.float32, fresh=fresh)
    # large inputs without a bound make the recurrence chaotic, and gelu's definition loses its digits below some -8
    activations = list(CELL_ACTIVATIONS) if gate <= 1 else ["tanh"]
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]))
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    options = {
        "reset_BT": None if share is None else resets(B, T, seed=seed, share=share),
        "lengths_B": None if lengths is None else torch.tensor(lengths),
        "input_gate": draw(st.sampled_from(INPUT_GATES[:3])),  # a ReLU next to its corner has a slope without a bound
        "forget_gate": draw(st.sampled_from(FORGET_GATES)),
        "cell_activation": draw(st.sampled_from(activations)),
        "mixing": draw(st.booleans()),
    }
    return x, options


def check_scan(problem):
    """Against the definition in float64. What is looked for here are wrong formulas, not digits."""
    x, options = problem
    want = everything([t.double() for t in x], partial(call, backend="recurrent", **options))
    assert_same(everything(x, partial(call, backend="numba", **options)), want, tolerance=2e-4)


@settings(max_examples=60)
@given(problem=problems(longest=24))
def test_scan_is_the_definition(problem):
    check_scan(problem)


@pytest.mark.slow
@settings(max_examples=1000)
@given(problem=problems(longest=60))
def test_scan_is_the_definition_at_length(problem):
    check_scan(problem)


@pytest.mark.breadth(1)
@every_pair(dtype=[torch.float32, torch.bfloat16], gate=[1.0, 10.0, 40.0], heads=[(2, 16), (1, 20)])
def test_accuracy(dtype, gate, heads):
    definition, fast = partial(call, backend="recurrent"), partial(call, backend="numba")
    draws = (make(3, 100, *heads, gate=gate, dtype=dtype, seed=seed) for seed in DRAWS)
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.parametrize("gate", [1.0, 10.0, 40.0])
def test_accuracy_with_the_exponential_forget_gate(gate):
    """Sums of log f, and with them m, grow far beyond 1 here, and their rounding is that of all later weights."""
    definition, fast = (partial(call, backend=backend, forget_gate="exp") for backend in ("recurrent", "numba"))
    draws = (make(2, 64, 2, 8, gate=gate, dtype=torch.float32, seed=seed) for seed in range(9))
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("activation", [name for name in CELL_ACTIVATIONS if name != "tanh"])
def test_accuracy_of_other_cell_inputs(activation):
    definition, fast = (partial(call, backend=name, cell_activation=activation) for name in ("recurrent", "numba"))
    draws = (make(3, 100, 2, 16, gate=3.0, dtype=torch.float32, seed=seed) for seed in DRAWS)
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.breadth(1)
@NARROW
@pytest.mark.parametrize("mixing", [True, False])
def test_accuracy_with_resets_and_lengths(dtype, mixing):
    options = {"reset_BT": resets(3, 100, share=0.05), "lengths_B": torch.tensor([100, 61, 0]), "mixing": mixing}
    definition, fast = partial(call, backend="recurrent", **options), partial(call, backend="numba", **options)
    draws = (make(3, 100, 2, 16, gate=3.0, dtype=dtype, seed=seed) for seed in DRAWS)
    assert_as_accurate(fast, definition, draws, names=NAMES)


def test_outputs_of_the_scan_do_not_share_memory():
    """A caller who changes what it got must not change what the backward needs, or the state."""
    x = make(1, 4, dtype=torch.float32)
    want = everything(x, partial(call, backend="numba"))["gradient of x"]
    x = [t.requires_grad_() for t in x]
    generator = torch.Generator().manual_seed(9)
    h_BTHV, state = call(*x, backend="numba")
    parts = [h_BTHV, state.h_BHV, state.c_BHV, state.n_BHV]
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in parts)
    for t in (*parts, state.m_BHV):
        t.data.fill_(7.0)
    loss.backward()
    torch.testing.assert_close(x[0].grad, want, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_change_nothing(threads, count):
    x = make(3, 8, 3, 5, dtype=torch.float32)
    threads(1)
    want = everything(x, partial(call, backend="numba"))
    threads(count)
    assert_same(everything(x, partial(call, backend="numba")), want, tolerance=1e-6)


def test_without_numba_the_numbers_are_the_same(monkeypatch):
    x = make(2, 12, dtype=torch.float32)
    want = everything(x, partial(call, backend="numba"))
    monkeypatch.setattr("exlstm.runtime.availability.no_numba", lambda: "Numba is not installed")
    with recorded() as choices:
        assert_same(everything(x, call), want, tolerance=1e-5)
    assert [(c.backend, c.why) for c in choices] == [("recurrent", "not numba: Numba is not installed")]
    with pytest.raises(ValueError, match=r"^backend 'numba' of slstm cannot run: Numba is not installed; use"):
        call(*x, backend="numba")
