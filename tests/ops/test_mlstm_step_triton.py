"""The mLSTM's single step in Triton against the definition: on a CPU through Triton's interpreter, on a GPU compiled.

It has no gradients, so outputs and states are compared.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlstm_cases import call, make
from triton_cases import DEVICE, here

from accuracy import DRAWS, compare, outputs
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.runtime.backend import recorded

pytest.importorskip("triton", reason="Triton has no wheel for this system")
# the interpreter is numpy, which warns where a GPU says infinite
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
VARIANTS = [{"input_gate": gate, "normalize": normalize} for gate in ("exp", "sigmoid") for normalize in (True, False)]
definition, step = partial(call, backend="recurrent"), partial(call, backend="triton")


def found(run, x, options):
    with torch.no_grad():
        return outputs(partial(run, **here(options)), here(x))


def assert_accurate(draws, options):
    """Forward only, and to the same rule as everything else: at most twice as wrong as the definition."""
    runs = lambda x: [found(definition, [t.double() for t in x], options), found(definition, x, options)]  # noqa: E731
    compare([*runs(x), found(step, x, options)] for x in draws)


def test_names():
    """The one test here in which the names of tensors are checked."""
    found(step, make(2, 1, 2, 5, 7, dtype=torch.float32), {"reset_BT": torch.tensor([[True], [False]])})


@settings(max_examples=20)
@given(
    B=st.integers(1, 2), H=st.integers(1, 2), K=st.integers(1, 40), V=st.integers(1, 40), seed=st.integers(0, 2**31),
    gate=st.sampled_from([0.1, 1.0, 10.0, 40.0]), variant=st.sampled_from(VARIANTS), data=st.data(),
)  # fmt: skip
def test_the_step_is_the_definition(B, H, K, V, seed, gate, variant, data):
    x = make(B, 1, H, K, V, seed=seed, gate=gate, dtype=torch.float32, positive=True)
    flags = st.none() | st.lists(st.booleans(), min_size=B, max_size=B)
    reset, there = data.draw(flags), data.draw(flags)
    options = {
        "reset_BT": None if reset is None else torch.tensor(reset)[:, None],
        "lengths_B": None if there is None else torch.tensor(there).long(),
        "eps": data.draw(st.sampled_from([1e-6, 0.25])),
        **variant,
    }
    want, got = found(definition, [t.double() for t in x], options), found(step, x, options)
    for name, value in want.items():
        torch.testing.assert_close(got[name].double(), value, rtol=2e-4, atol=2e-4 * float(value.abs().max()))


@pytest.mark.breadth(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_accuracy(dtype, variant):
    # float16, and with the strongest gates float32, cannot hold what there is without a normaliser
    for gate in (1.0, 40.0) if dtype != torch.float16 and variant["normalize"] else (1.0,):
        assert_accurate([make(2, 1, 2, 33, 15, seed=seed, gate=gate, dtype=dtype) for seed in DRAWS], variant)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accuracy_of_wide_heads(dtype):
    """300 keys are walked over in two blocks, 130 values are shared out to several programs."""
    assert_accurate([make(1, 1, 1, 300, 130, seed=seed, dtype=dtype) for seed in range(3)], {})


def test_a_negative_mass_divides_by_its_size():
    x = make(1, 1, 4, 8, 8, dtype=torch.float32, positive=True)
    want = found(step, x, {})["output"]
    assert torch.equal(found(step, [-x[0], *x[1:]], {})["output"], -want)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("variant", VARIANTS[:2], ids=str)
def test_accuracy_where_the_memory_outweighs_the_new(variant):
    """Then m is a sum that has to be rounded, and C is measured by the m that is stored."""
    draws = [make(2, 1, 3, 16, 8, seed=seed, dtype=torch.float32, positive=True) for seed in DRAWS]
    for x in draws:
        x[7] += 45.0
    assert_accurate(draws, variant)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("i", [-30.0, -10.0, 5.0])
def test_accuracy_of_the_first_step(i):
    """The state is empty: what is written, however little, is all there is."""
    draws = [make(2, 1, 2, 16, 8, seed=seed, dtype=torch.float32, positive=True) for seed in DRAWS]
    for x in draws:
        x[3], x[5:] = x[3] + i, map(torch.zeros_like, x[5:])
    assert_accurate(draws, {})
    x = draws[0]
    want = found(step, x, {})
    with torch.no_grad():
        got_BTHV, _ = mlstm(*here(x[:5]), backend="triton")
    assert torch.equal(got_BTHV, want["output"])


@pytest.mark.slow
def test_thirty_steps_drift_no_further_than_the_definition():
    reset_BT = torch.rand(2, 30) < 0.1

    def stepwise(*x, backend, reset_BT):
        h, state = [], MLSTMState(*x[5:])
        for t in range(30):
            parts = [part[:, t : t + 1] for part in x[:5]]
            h_B1HV, state = mlstm(*parts, state, reset_BT=reset_BT[:, t : t + 1], backend=backend)
            h.append(h_B1HV)
        return torch.cat(h, dim=1), state

    slow, fast = partial(stepwise, backend="recurrent"), partial(stepwise, backend="triton")
    options = {"reset_BT": reset_BT}
    draws = (make(2, 30, 1, 8, 12, seed=seed, gate=4.0, dtype=torch.float32, positive=True) for seed in range(3))
    compare(
        [found(slow, [t.double() for t in x], options), found(slow, x, options), found(fast, x, options)] for x in draws
    )


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


EXTREMES = [(-torch.inf, 1.0), (0.5, -torch.inf), (1.0, torch.inf), (0.0, -1e4), (1e4, -1e4), (-1e4, 1e4), (-200, 9.0)]


@pytest.mark.breadth(2)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_extreme_gates(variant):
    """The definition's numbers exactly where it has any; where it divides by zero, it is not a number here either."""
    x = make(2, 1, len(EXTREMES), 8, 8, dtype=torch.float32, positive=True)
    x[3][:], x[4][:] = torch.tensor(EXTREMES).T
    x[7][1] += 60.0
    want, got = found(definition, x, variant), found(step, x, variant)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_both_gates_at_minus_infinity_show():
    """exp(-inf + inf) is not a number in the definition, and is not made one."""
    x = make(1, 1, 1, 4, 4, dtype=torch.float32)
    x[3:5] = (torch.full((1, 1, 1), -torch.inf),) * 2
    for run in (definition, step):
        assert found(run, x, {})["output"].isnan().all()


@pytest.mark.parametrize("place", range(8))
def test_what_is_not_a_number_shows(place):
    x = make(1, 1, 2, 4, 4, dtype=torch.float32)
    x[place].view(-1)[0] = torch.nan
    assert torch.isnan(found(step, x, {})["output"]).any()


def test_inputs_are_left_as_they_were_and_nothing_is_shared():
    x = here(make(2, 1, 2, 5, 7, dtype=torch.float32))
    before = [t.clone() for t in x]
    first = found(step, x, {})
    before_second = {name: value.clone() for name, value in first.items()}
    second = found(step, x, {})
    assert all(map(torch.equal, x, before))
    places = [t.untyped_storage().data_ptr() for t in (*x, *first.values(), *second.values())]
    assert len(set(places)) == len(places)
    assert all(torch.equal(value, before_second[name]) for name, value in first.items())


@pytest.mark.slow
@settings(max_examples=8)
@given(data=st.data())
def test_strides_do_not_matter(data):
    """Every input in an order of its axes of its own, cut out of something larger; rows may share their memory."""
    x = here(make(3, 1, 1, 5, 7, dtype=torch.float32))
    reset_BT = here(torch.tensor([[True, False], [False, True], [True, True]])[:, :1])
    want = found(step, x, {"reset_BT": reset_BT.contiguous()})
    views = [elsewhere(t, data.draw(st.permutations(range(t.ndim))), data.draw(st.integers(1, 2))) for t in x]
    assert all(map(torch.equal, views, x))
    got = found(step, views, {"reset_BT": reset_BT})
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    shared = [t[:1].expand(t.shape) for t in x]
    for value in found(step, shared, {}).values():
        assert torch.equal(value[2], value[0])


def elsewhere(x, order, gap):
    """The same numbers, their axes in `order` in memory and `gap` apart; NaN lies between them."""
    turned = x.permute(order)
    room = torch.full((*turned.shape[:-1], turned.shape[-1] * gap), torch.nan, device=x.device)[..., ::gap]
    room.copy_(turned)
    return room.permute([order.index(axis) for axis in range(x.ndim)])


def test_which_form_runs():
    """The step without gradients; with gradients a form that has them."""
    x = here(make(1, 1, 2, 4, 4, dtype=torch.float32, positive=True))
    with recorded() as choices, torch.no_grad():
        call(*x)
        with pytest.raises(ValueError, match=r"float64 in the input"):
            step(*(t.double() for t in x))
    assert choices[0].backend == ("numba" if DEVICE == "cpu" else "triton")
    x = [t.requires_grad_() for t in x]
    step(*x)[0].sum().backward()
    assert all(t.grad.abs().sum() > 0 for t in x[:4])


@pytest.mark.parametrize("most", [None, 100])
def test_how_finely_the_values_are_cut_changes_nothing(monkeypatch, most):
    """At batch 1 as fine as 16, so that a large GPU has work; coarser once there are enough programs."""
    from exlstm.ops.mlstm.triton import step_op

    assert step_op.blocks(8, 256, 512) == (256, 16)
    assert step_op.blocks(16 * 8, 256, 512) == (64, 64)
    x, options = make(1, 1, 2, 20, 70, dtype=torch.float32, positive=True), {}
    want = found(step, x, options)
    monkeypatch.setattr(step_op, "MIN_PROGRAMS", most or 1)
    monkeypatch.setattr(step_op, "BLOCK_NUMEL", 512)
    for name, value in found(step, x, options).items():
        torch.testing.assert_close(value, want[name], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_it_compiles_for_gpus_that_are_not_there():
    """What Triton's interpreter accepts its compiler may not. In a process of its own, for here it interprets."""
    script = Path(__file__).with_name("compile_step.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["80", "80", "90", "90"]
    assert all(int(shared) <= 48 << 10 for *_, shared in lines), done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "K", "V"), [(1, 256, 512), (64, 256, 512), (3, 192, 384)])
def test_accuracy_at_real_sizes(dtype, B, K, V):
    for variant in VARIANTS:
        assert_accurate(make(B, 1, 8, K, V, dtype=dtype), variant)
