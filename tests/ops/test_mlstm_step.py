"""The mLSTM's single step in Numba against the definition; it has no gradients, so outputs and states are compared."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlstm_cases import call, make

from accuracy import DRAWS, compare, outputs
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.runtime.backend import recorded
from pairwise import every_pair

VARIANTS = [{"input_gate": gate, "normalize": normalize} for gate in ("exp", "sigmoid") for normalize in (True, False)]
definition = partial(call, backend="recurrent")
step = partial(call, backend="numba")


def found(run, x, options):
    with torch.no_grad():
        return outputs(partial(run, **options), x)


def assert_accurate(draws, options):
    """Forward only, and to the same rule as everything else: at most twice as wrong as the definition."""
    runs = lambda x: [found(definition, [t.double() for t in x], options), found(definition, x, options)]  # noqa: E731
    compare([*runs(x), found(step, x, options)] for x in draws)


@settings(max_examples=80)
@given(
    B=st.integers(1, 3), H=st.integers(1, 3), K=st.integers(1, 40), V=st.integers(1, 40), seed=st.integers(0, 2**31),
    gate=st.sampled_from([0.1, 1.0, 10.0, 40.0]), variant=st.sampled_from(VARIANTS), data=st.data(),
)  # fmt: skip
def test_the_step_is_the_definition(B, H, K, V, seed, gate, variant, data):
    x = make(B, 1, H, K, V, seed=seed, gate=gate, dtype=torch.float32, positive=True)
    flags = st.none() | st.lists(st.booleans(), min_size=B, max_size=B)
    reset, here = data.draw(flags), data.draw(flags)
    options = {
        "reset_BT": None if reset is None else torch.tensor(reset)[:, None],
        "lengths_B": None if here is None else torch.tensor(here).long(),
        **variant,
    }
    want, got = found(definition, [t.double() for t in x], options), found(step, x, options)
    for name, value in want.items():
        torch.testing.assert_close(got[name].double(), value, rtol=2e-4, atol=2e-4 * float(value.abs().max()))


@pytest.mark.breadth(3)
@every_pair(
    dtype=[torch.float32, torch.bfloat16, torch.float16], variant=VARIANTS, sizes=[(16, 8), (33, 17), (256, 512)]
)
def test_accuracy(dtype, variant, sizes):
    K, V = sizes
    # without a normaliser strong gates give what float16 cannot hold, and the strongest what float32 cannot
    for gate in (1.0, 10.0, 40.0)[: 1 if dtype is torch.float16 else 3 if variant["normalize"] else 2]:
        assert_accurate([make(2, 1, 3, K, V, seed=seed, gate=gate, dtype=dtype) for seed in DRAWS], variant)


@pytest.mark.parametrize("variant", VARIANTS[:2], ids=str)
def test_accuracy_where_the_memory_outweighs_the_new(variant):
    """Then m is a sum that has to be rounded, and C is measured by the m that is stored."""
    draws = [make(2, 1, 3, 16, 8, seed=seed, dtype=torch.float32, positive=True) for seed in DRAWS]
    for x in draws:
        x[7] += 45.0
    assert_accurate(draws, variant)


@pytest.mark.slow
def test_hundreds_of_steps_drift_no_further_than_the_definition():
    def stepwise(*x, backend):
        h, state = [], MLSTMState(*x[5:])
        for t in range(300):
            h_B1HV, state = mlstm(*(part[:, t : t + 1] for part in x[:5]), state, backend=backend)
            h.append(h_B1HV)
        return torch.cat(h, dim=1), state

    slow, fast = partial(stepwise, backend="recurrent"), partial(stepwise, backend="numba")
    draws = (make(1, 300, 2, 8, 8, seed=seed, gate=4.0, dtype=torch.float32, positive=True) for seed in DRAWS)
    with torch.no_grad():
        compare([outputs(slow, [t.double() for t in x]), outputs(slow, x), outputs(fast, x)] for x in draws)


def test_it_goes_on_where_prefill_ended():
    x = make(2, 40, 2, 8, 8, gate=3.0, dtype=torch.float32, positive=True)
    with torch.no_grad():
        want_BTHV, want = definition(*x)
        h_BTHV, state = call(*(part[:, :33] for part in x[:5]), *x[5:])
        h = [h_BTHV]
        for t in range(33, 40):
            h_BTHV, state = mlstm(*(part[:, t : t + 1] for part in x[:5]), state)
            h.append(h_BTHV)
    torch.testing.assert_close(torch.cat(h, dim=1), want_BTHV, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.c_BHKV, want.c_BHKV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nothing", [torch.nan, torch.inf])
def test_a_reset_forgets_even_what_is_no_number(nothing):
    x = make(2, 1, 2, 5, 7, dtype=torch.float32)
    fresh = found(step, [*x[:5], *map(torch.zeros_like, x[5:])], {})
    for part in x[5:]:
        part[0] = nothing
    got = found(step, x, {"reset_BT": torch.tensor([[True], [False]])})
    for name, value in got.items():
        assert torch.equal(value[0], fresh[name][0]), name
        assert not torch.equal(value[1], fresh[name][1]), f"{name}: the other row is not reset"


def test_a_row_that_has_ended_is_left_alone():
    x = make(2, 1, 2, 5, 7, gate=9.0, dtype=torch.float32)
    got = found(step, x, {"lengths_B": torch.tensor([0, 1]), "reset_BT": torch.ones(2, 1, dtype=torch.bool)})
    assert not got["output"][0].any()
    for name, before in zip(MLSTMState._fields, x[5:], strict=True):
        assert torch.equal(got[f"state.{name}"][0], before[0])
        assert not torch.equal(got[f"state.{name}"][1], before[1])


@pytest.mark.parametrize(
    ("i", "f"), [(200.0, 0.0), (-200.0, 200.0), (0.0, -1e4), (1e4, -1e4), (-1e4, 1e4), (-200.0, -300.0)]
)
def test_extreme_gates_stay_finite(i, f):
    x = make(1, 1, 2, 8, 8, dtype=torch.float32)
    x[3:5] = torch.full((1, 1, 2), i), torch.full((1, 1, 2), f)
    for variant in VARIANTS:
        if variant["normalize"]:
            assert all(torch.isfinite(value).all() for value in found(step, x, variant).values())


@pytest.mark.parametrize("place", range(8))
def test_what_is_not_a_number_shows(place):
    x = make(1, 1, 2, 4, 4, dtype=torch.float32)
    x[place].view(-1)[0] = torch.nan
    assert torch.isnan(found(step, x, {})["output"]).any()


def test_inputs_are_left_as_they_were_and_nothing_is_shared():
    x = make(2, 1, 2, 5, 7, dtype=torch.float32)
    before = [t.clone() for t in x]
    first = found(step, x, {})
    kept = {name: value.clone() for name, value in first.items()}
    second = found(step, x, {})
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True))
    places = [t.untyped_storage().data_ptr() for t in (*x, *first.values(), *second.values())]
    assert len(set(places)) == len(places)
    assert all(torch.equal(value, kept[name]) for name, value in first.items())


def test_strides_do_not_matter():
    """Views, rows that share their memory, a reset cut out of a longer one."""
    x = make(3, 1, 2, 5, 7, dtype=torch.float32)
    x[5:] = (part[:1].expand(3, *part.shape[1:]) for part in x[5:])
    reset_BT = torch.tensor([[True, False], [False, True], [True, True]])[:, :1]
    other = [torch.stack([t, t], dim=-1)[..., 0] for t in x]
    for part in x[5:]:
        assert not part.is_contiguous()
    want, got = (found(step, y, {"reset_BT": r}) for y, r in ((x, reset_BT.contiguous()), (other, reset_BT)))
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(monkeypatch, threads):
    x = make(3, 1, 2, 16, 16, dtype=torch.float32)
    options = {"reset_BT": torch.tensor([[False], [True], [False]])}
    want = found(step, x, options)
    monkeypatch.setattr("exlstm.runtime.cpu.launch.THREAD_US", 1e-6)
    torch.set_num_threads(threads)
    try:
        got = found(step, x, options)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_autocast_does_not_narrow_it():
    x = make(1, 1, 2, 8, 8, dtype=torch.float32)
    want = found(step, x, {})
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(value, want[name]) for name, value in found(step, x, {}).items())


def test_which_backend_runs():
    x = make(1, 1, 2, 4, 4, dtype=torch.float32)
    with recorded() as choices, torch.no_grad():
        call(*x)
        call(*(t.double() for t in x))
    assert [choice.backend for choice in choices] == ["numba", "recurrent"]
    assert "float64" in choices[1].why


@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_one_step_with_gradients_has_gradients(backend):
    x = [t.requires_grad_() for t in make(1, 1, 2, 4, 4, dtype=torch.float32, positive=True)]
    call(*x, backend=backend)[0].sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in x[:4])
