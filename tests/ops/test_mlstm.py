"""The mLSTM's numbers: the chunkwise form and its hand-written backward against the definition."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from mlstm_cases import BACKENDS, NAMES, ROUNDING, call, everything, in_true_units, make, resets
from torch.utils._python_dispatch import TorchDispatchMode

from accuracy import DRAWS, assert_as_accurate, compare, outputs
from exlstm.ops.gates import FORGET_GATES, INPUT_GATES
from exlstm.ops.mlstm import MLSTMState, mlstm_step
from exlstm.ops.mlstm.chunkwise import SPAN_CHUNKS, spans
from pairwise import every_pair


@st.composite
def problems(draw, longest):
    """(inputs, options): everything that `mlstm` takes."""
    B, T, H = draw(st.integers(1, 3)), draw(st.integers(1, longest)), draw(st.integers(1, 3))
    seed = draw(st.integers(0, 2**31))
    gate = draw(st.sampled_from([0.1, 1.0, 10.0, 40.0]))
    x = make(B, T, H, draw(st.integers(1, 9)), draw(st.integers(1, 9)), seed=seed, gate=gate)
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]))
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    options = {
        "reset_BT": None if share is None else resets(B, T, seed=seed, share=share),
        "lengths_B": None if lengths is None else torch.tensor(lengths),
        "input_gate": draw(st.sampled_from(INPUT_GATES)),
        "forget_gate": draw(st.sampled_from(FORGET_GATES)),
        "normalize": draw(st.booleans()),
    }
    if options["forget_gate"] == "exp" and not options["normalize"]:
        # the output then grows as the sum of all gates, and exp(700) is more than float64 holds
        x[3], x[4] = x[3] / 8, x[4] / 8
    return x, options


def check_forms_agree(problem, chunk_len):
    x, options = problem
    want = everything(x, partial(call, backend="recurrent", **options))
    got = everything(x, partial(call, backend="chunkwise", chunk_len=chunk_len, **options))
    assert_same(got, want, tolerance=ROUNDING)


@settings(max_examples=60)
@given(problem=problems(longest=40), chunk_len=st.integers(1, 45))
def test_chunkwise_is_the_definition(problem, chunk_len):
    check_forms_agree(problem, chunk_len)


@pytest.mark.slow
@settings(max_examples=1000)
@given(problem=problems(longest=120), chunk_len=st.integers(1, 130))
def test_chunkwise_is_the_definition_at_length(problem, chunk_len):
    check_forms_agree(problem, chunk_len)


@pytest.mark.parametrize("T", [2 * SPAN_CHUNKS, 2 * SPAN_CHUNKS + 1, 4 * SPAN_CHUNKS + 1, 70])
def test_several_spans_and_a_remainder(T):
    """With chunks of 2 a span is 32 steps: whole spans, an incomplete one, and a last chunk of one step."""
    x = make(2, T, 2, 3, 4, gate=3.0)
    options = {"reset_BT": resets(2, T, share=0.05)}
    want = everything(x, partial(call, backend="recurrent", **options))
    assert_same(everything(x, partial(call, chunk_len=2, **options)), want, tolerance=ROUNDING)


@given(T=st.integers(1, 3000), chunk_len=st.integers(1, 200))
def test_spans_cover_every_step_once(T, chunk_len):
    parts = spans(T, chunk_len)
    assert [start for start, _, _ in parts] == [0, *(end for _, end, _ in parts[:-1])]
    assert parts[-1][1] == T
    assert all((end - start) % length == 0 and end - start <= SPAN_CHUNKS * chunk_len for start, end, length in parts)
    assert all(length == chunk_len for _, _, length in parts[:-1])


@pytest.mark.breadth(3)
@every_pair(
    backend=["numba", "chunkwise"],
    dtype=[torch.float32, torch.bfloat16],
    gate=[1.0, 10.0, 40.0],
    sizes=[(1, 8, 8), (16, 16, 8), (64, 16, 16), (130, 8, 16)],
)
def test_accuracy(backend, dtype, gate, sizes):
    chunk_len, K, V = sizes
    draws = (make(2, 130, 2, K, V, seed=seed, gate=gate, dtype=dtype, positive=True) for seed in DRAWS)
    fast = partial(call, backend=backend, chunk_len=chunk_len)
    assert_as_accurate(fast, partial(call, backend="recurrent"), draws, names=NAMES)


@pytest.mark.breadth(1)
@every_pair(
    backend=["numba", "chunkwise"],
    dtype=[torch.float32, torch.bfloat16],
    options=[{"input_gate": "sigmoid"}, {"normalize": False}, {"input_gate": "sigmoid", "normalize": False}],
)
def test_accuracy_of_the_variants(backend, dtype, options):
    positive = options.get("normalize", True)
    draws = (make(2, 130, 2, 16, 8, seed=seed, dtype=dtype, positive=positive) for seed in DRAWS)
    definition, fast = (
        partial(call, backend="recurrent", **options),
        partial(call, backend=backend, chunk_len=32, **options),
    )
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.breadth(1)
@every_pair(backend=["numba", "chunkwise"], dtype=[torch.float32, torch.bfloat16], gate=[1.0, 10.0, 40.0])
def test_accuracy_with_resets_and_lengths(backend, dtype, gate):
    options = {"reset_BT": resets(3, 130, share=0.05), "lengths_B": torch.tensor([130, 77, 0])}
    definition, fast = (
        partial(call, backend="recurrent", **options),
        partial(call, backend=backend, chunk_len=32, **options),
    )
    draws = (make(3, 130, 2, 8, 8, seed=seed, gate=gate, dtype=dtype, positive=True) for seed in DRAWS)
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.breadth(1)
@every_pair(backend=["numba", "chunkwise"], gate=[1.0, 10.0, 40.0])
def test_accuracy_where_the_mass_cancels(backend, gate):
    """Some n.q is almost zero, and dividing by it magnifies its rounding."""
    draws = (make(2, 64, 2, 8, 8, gate=gate, dtype=torch.float32, seed=seed) for seed in range(9))
    fast = partial(call, backend=backend, chunk_len=32)
    assert_as_accurate(fast, partial(call, backend="recurrent"), draws, names=NAMES)


@every_pair(backend=BACKENDS, input_gate=["exp", "sigmoid"], normalize=[True, False])
def test_gradients_are_those_of_the_function(backend, input_gate, normalize):
    """Finite differences of h, C e^m and n e^m by every input. eps = 0, for eps alone is seen in the unit m."""
    x = make(2, 7, 1, 3, 2, gate=2.0)
    reset_BT = torch.zeros(2, 7, dtype=torch.bool)
    reset_BT[0, 4] = reset_BT[1, 0] = True
    options = {"reset_BT": reset_BT, "lengths_B": torch.tensor([7, 5]), "chunk_len": 3, "eps": 0.0}

    def function(*parts):
        return in_true_units(
            *call(*parts, x[7], backend=backend, input_gate=input_gate, normalize=normalize, **options)
        )

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in x[:7]])


@pytest.mark.parametrize("gate", [1.0, 10.0])
def test_gradients_where_the_mass_and_where_the_floor_wins(gate):
    """|n.q| and exp(-m) each win somewhere in this input, so both branches of the normaliser are differentiated."""
    x = make(1, 12, 1, 2, 2, gate=gate, seed=3)
    m_BH, wins = x[7], []
    state = MLSTMState(*x[5:])
    for t in range(12):
        _, state = mlstm_step(*(part[:, t] for part in x[:5]), state)
        mass = (x[0][:, t] * 2**-0.5 * state.n_BHK).sum(-1).abs()
        wins.append(bool(mass > torch.exp(-state.m_BH)))
    assert any(wins)
    assert not all(wins)
    function = lambda *parts: call(*parts, m_BH, chunk_len=5, eps=0.0)[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in x[:7]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("i_bias", "f_bias"), [(100.0, 0.0), (-100.0, 0.0), (0.0, -100.0), (0.0, 100.0), (100.0, -100.0)]
)
def test_extreme_gates_stay_finite(backend, dtype, i_bias, f_bias):
    x = make(2, 70, dtype=dtype)
    x[3], x[4] = x[3] + i_bias, x[4] + f_bias
    for name, value in everything(x, partial(call, backend=backend, chunk_len=16)).items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("f", [-1e5, -1e15, -1e30, torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("chunk_len", [1, 8, 64])
def test_a_forget_gate_that_closes_for_good(f, chunk_len):
    """A reset by hand. Summed with its neighbours, such a number swallows their digits, and -inf makes them NaN."""
    x = make(2, 30)
    x[4][:, [5, 18]] = f
    want = everything(x, partial(call, backend="recurrent"))
    assert_same(everything(x, partial(call, chunk_len=chunk_len)), want, tolerance=ROUNDING)


def test_one_large_input_gate_among_small_ones():
    """A stabiliser taken over the whole chunk, and not up to each step, would wash out all that came before."""
    draws = [make(1, 40, seed=seed, gate=1.0, dtype=torch.float32) for seed in DRAWS]
    for x in draws:
        x[3][:, 30] = 95.0
    definition, fast = partial(call, backend="recurrent"), partial(call, backend="chunkwise", chunk_len=40)
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.slow
def test_twenty_thousand_steps():
    """The state that is carried over hundreds of chunks is as good as the definition's, and so are the gradients."""
    draws = [make(1, 20_000, 1, 4, 4, seed=seed, gate=3.0, dtype=torch.float32) for seed in range(3)]
    for x in draws:
        x[4] += 4.0  # gates that forget slowly
    definition, fast = partial(call, backend="recurrent"), partial(call, backend="chunkwise")
    with torch.no_grad():
        compare([outputs(definition, [t.double() for t in x]), outputs(definition, x), outputs(fast, x)] for x in draws)
    x, exact_x = draws[0], [t.double() for t in draws[0]]
    exact_gradients = everything(exact_x, partial(call, backend="chunkwise"))
    assert_same(everything(x, partial(call, backend="chunkwise")), exact_gradients, tolerance=1e-3)


def kept_for_backward(x):
    """The tensors that one call saves for its backward, each memory once."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(*x, backend="chunkwise")
    return list(kept.values())


@pytest.mark.parametrize("T", [1024, 2048, 4096 + 37])
def test_what_is_kept_for_the_backward(T):
    """Per step and head: q, k, v, h, the gates, their pre-activations; and per 1024 steps (C, n, m). No L x L."""
    B, H, K, V = 2, 2, 8, 4
    kept = kept_for_backward([t.requires_grad_() for t in make(B, T, H, K, V, dtype=torch.float32)])
    per_step = 2 * K + 2 * V + 4
    spans_of_1024 = -(-T // 1024) + 1
    numbers = sum(t.untyped_storage().nbytes() for t in kept) / 4
    assert numbers <= B * H * (T * per_step + spans_of_1024 * (K * V + K + 1))
    assert max(t.numel() for t in kept) <= B * T * H * max(K, V)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that any operation, also inside the hand-written functions, returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def test_nothing_grows_faster_than_time():
    """Forward and backward hold no T x T matrix, not even for a moment."""
    largest = []
    for T in (4096, 8192):
        x = [t.requires_grad_() for t in make(1, T, 1, 4, 4, dtype=torch.float32)]
        with Largest() as seen:
            h_BTHV, state = call(*x)
            (h_BTHV.sum() + state.c_BHKV.sum()).backward()
        largest.append(seen.elements)
    assert largest[0] <= SPAN_CHUNKS * 64 * 64
    assert largest[1] <= SPAN_CHUNKS * 64 * 64
