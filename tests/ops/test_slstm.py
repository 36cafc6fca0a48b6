"""The sLSTM: what the definition says, and what all its forms keep."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from slstm_cases import call, everything, make, resets

from accuracy import compare, outputs
from exlstm.ops.slstm import SLSTMState, slstm, slstm_recurrent, slstm_step, zero_state
from exlstm.runtime.backend import recorded

BACKENDS = ["numba", "recurrent"]
ROUNDING = 1e-12


@pytest.mark.breadth(4)
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@pytest.mark.parametrize("cell_activation", ["tanh", "identity", "silu", "gelu", "sin", "softsign"])
def test_gradients_are_those_of_the_function(forget_gate, cell_activation):
    """Finite differences of h, C e^m and n e^m; some elements start fresh, some rows are reset or end early."""
    x = make(2, 4, 2, 2, fresh=0.5)
    reset_BT = torch.zeros(2, 4, dtype=torch.bool)
    reset_BT[0, 2] = True
    assert (x[4] == 0).any()
    assert (x[4] != 0).any()
    # a fresh element has c = n = 0 by definition: differences must not move it
    fresh_BHV = x[4] == 0

    def function(x_BTHGV, r_HKGV, h_BHV, c_BHV, n_BHV):
        h_BTHV, state = call(
            x_BTHGV, r_HKGV, h_BHV, c_BHV * ~fresh_BHV, n_BHV * ~fresh_BHV, x[5], reset_BT=reset_BT,
            lengths_B=torch.tensor([4, 3]), forget_gate=forget_gate, cell_activation=cell_activation,
        )  # fmt: skip
        unit_BHV = torch.exp(state.m_BHV)
        return h_BTHV, state.h_BHV, state.c_BHV * unit_BHV, state.n_BHV * unit_BHV

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in x[:5]])


def test_the_definition_on_paper():
    """One unit, two steps, worked out by hand from the equations in true units (m = 0 throughout)."""
    x = torch.tensor([[0.3, 1.0, 0.7, -0.2], [-0.5, 2.0, -1.1, 0.4]], dtype=torch.float64).view(1, 2, 1, 4, 1)
    r = torch.tensor([0.11, -0.13, 0.17, 0.19], dtype=torch.float64).view(1, 1, 4, 1)
    h_BTHV, state = slstm_recurrent(x, r, zero_state(x))
    i, _, z, o = x[0, 0, 0, :, 0]
    c, n = i.exp() * z.tanh(), i.exp()
    h1 = o.sigmoid() * c / n
    i, f, z, o = x[0, 1, 0, :, 0] + r.flatten() * h1
    c, n = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * n + i.exp()
    h2 = o.sigmoid() * c / n
    torch.testing.assert_close(h_BTHV.flatten(), torch.stack([h1, h2]), rtol=1e-12, atol=0)
    unit = state.m_BHV.exp().flatten()[0]
    torch.testing.assert_close(torch.stack([state.c_BHV.flatten()[0] * unit, state.n_BHV.flatten()[0] * unit]),
                               torch.stack([c, n]), rtol=1e-12, atol=0)  # fmt: skip


def test_r_is_from_h_to_the_gates():
    """r[h, k, g, v]: from unit k to gate g of unit v of the same head."""
    x = torch.zeros(1, 1, 2, 4, 3, dtype=torch.float64)
    state = SLSTMState(*(torch.rand(1, 2, 3, dtype=torch.float64) + 0.5 for _ in range(4)))
    r = torch.zeros(2, 3, 4, 3, dtype=torch.float64)
    before = slstm_step(x[:, 0], r, state)[0]
    r[1, 0, 3, 2] = 0.5
    h_BHV = slstm_step(x[:, 0], r, state)[0]
    assert h_BHV[0, 1, 2] == before[0, 1, 2] * torch.sigmoid(0.5 * state.h_BHV[0, 1, 0]) / 0.5
    h_BHV[0, 1, 2] = before[0, 1, 2]
    assert torch.equal(h_BHV, before)


def test_heads_do_not_mix_and_one_head_is_dense():
    """A dense R that is block-diagonal gives what the heads give on their own."""
    x = make(2, 10, 2, 3)
    dense = torch.zeros(1, 6, 4, 6, dtype=torch.float64)
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        dense[0, part, :, part] = x[1][head]
    merged = x[0].transpose(2, 3).reshape(2, 10, 1, 4, 6)
    state = SLSTMState(*(t.reshape(2, 1, 6) for t in x[2:]))
    h_BTHV, _ = call(*x)
    torch.testing.assert_close(slstm(merged, dense, state)[0].view_as(h_BTHV), h_BTHV, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_step_of_every_element(backend):
    """An element that has seen nothing takes m = i, one that has seen something max(log f + m, i); side by side."""
    x = make(3, 1, 2, 4, gate=10.0, dtype=torch.float32, fresh=0.5)
    _, state = call(*x, mixing=False, backend=backend)
    i, f = x[0][:, 0, :, 0], x[0][:, 0, :, 1]
    fresh = x[4] == 0
    assert fresh.any()
    assert not fresh.all()
    want = torch.where(fresh, i, torch.maximum(torch.nn.functional.logsigmoid(f) + x[5], i))
    torch.testing.assert_close(state.m_BHV, want, rtol=1e-6, atol=1e-6)
    assert (state.n_BHV[fresh] == 1).all()
    assert (state.n_BHV >= 0.5).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_a_fresh_element_starts_at_any_input_gate(backend, bias):
    """With m = max(log f + 0, i) instead, i = -200 would write exp(-200) = 0 and h would be 0 / 0."""
    x = make(2, 3, dtype=torch.float32, fresh=1.0)
    x[0][..., 0, :] += bias
    h_BTHV, _ = call(*x, mixing=False, backend=backend)
    want = torch.sigmoid(x[0][:, 0, :, 3]) * torch.tanh(x[0][:, 0, :, 2])
    torch.testing.assert_close(h_BTHV[:, 0], want, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(h_BTHV).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("i", "f"), [(100.0, 0.0), (-100.0, 0.0), (0.0, -100.0), (0.0, 100.0), (100.0, -100.0)])
def test_extreme_gates_stay_finite(backend, i, f):
    x = make(2, 20, dtype=torch.float32)
    x[0][..., 0, :] += i
    x[0][..., 1, :] += f
    for name, value in everything(x, partial(call, backend=backend)).items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("gate", range(4), ids=["i", "f", "z", "o"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_shows(gate, value):
    """NaN and infinity give the same in both backends: a fast exponential must not turn NaN into a number."""
    x = make(1, 6, 1, 2, dtype=torch.float32, fresh=0.0)
    x[0][0, 2, 0, gate, 0] = value
    numba, recurrent = (call(*x, backend=backend)[0] for backend in BACKENDS)
    torch.testing.assert_close(numba, recurrent, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert torch.isnan(numba[:, 2:]).any() == (value != value or (gate == 0 and value > 0))
    assert torch.isfinite(numba[:, :2]).all()


@pytest.mark.parametrize(("backend", "dtype"), [("numba", torch.float32), ("recurrent", torch.float64)])
@settings(max_examples=15)
@given(cut=st.integers(1, 19), seed=st.integers(0, 2**31))
def test_cutting_time_changes_nothing(backend, dtype, cut, seed):
    """Outputs, the state, and the gradients that flow through the cut."""
    reset_BT = resets(2, 20, seed=seed, share=0.1)

    def cut_in_two(x_BTHGV, r_HKGV, *state):
        parts = ((x_BTHGV[:, :cut], reset_BT[:, :cut]), (x_BTHGV[:, cut:], reset_BT[:, cut:]))
        h, after = [], SLSTMState(*state)
        for part, reset in parts:
            h_1, after = slstm(part, r_HKGV, after, reset_BT=reset, backend=backend)
            h.append(h_1)
        return torch.cat(h, dim=1), after

    x = make(seed=seed, gate=2.0, dtype=dtype)
    want = everything(x, partial(call, reset_BT=reset_BT, backend=backend))
    assert_same(everything(x, cut_in_two), want, tolerance=ROUNDING if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("backend", "dtype"), [("numba", torch.float32), ("recurrent", torch.float64)])
def test_the_unit_of_the_state_is_free(backend, dtype):
    """(c e^-d, n e^-d, m + d) is the same memory as (c, n, m)."""
    x = make(2, 10, dtype=dtype)
    d = 4.0
    moved = [*x[:3], x[3] * torch.exp(torch.tensor(-d)), x[4] * torch.exp(torch.tensor(-d)), x[5] + d * (x[4] > 0)]
    a, b = call(*x, backend=backend)[0], call(*moved, backend=backend)[0]
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_passes_through_m(backend):
    x = [t.requires_grad_() for t in make(2, 5, dtype=torch.float32)]
    h_BTHV, state = call(*x, backend=backend)
    assert not state.m_BHV.requires_grad
    (h_BTHV.sum() + state.c_BHV.sum()).backward()
    assert x[5].grad is None or not x[5].grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_causal(backend):
    x = make(2, 12, dtype=torch.float32)
    other = x[0].clone()
    other[:, 7:] += 1e3 * torch.randn_like(other[:, 7:])
    h_BTHV = call(*x, backend=backend)[0]
    assert torch.equal(call(other, *x[1:], backend=backend)[0][:, :7], h_BTHV[:, :7])
    x[0].requires_grad_()
    call(*x, backend=backend)[0][:, 6].sum().backward()
    assert not x[0].grad[:, 7:].any()
    assert all(x[0].grad[:, 5, :, gate].any() for gate in range(4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_hides_everything_before_it(backend):
    x, reset_BT = make(2, 12, dtype=torch.float32), torch.zeros(2, 12, dtype=torch.bool)
    reset_BT[:, 5] = True
    loud = torch.cat([50 * x[0][:, :5], x[0][:, 5:]], dim=1)
    a, b = (call(x_BTHGV, *x[1:], reset_BT=reset_BT, backend=backend) for x_BTHGV in (x[0], loud))
    alone = slstm(x[0][:, 5:], x[1], backend=backend)
    for got in (a, b):
        assert torch.equal(got[0][:, 5:], alone[0])
        assert all(torch.equal(s, t) for s, t in zip(got[1], alone[1], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_a_reset(backend):
    x, reset_BT = make(2, 12, dtype=torch.float32), torch.zeros(2, 12, dtype=torch.bool)
    reset_BT[:, 5] = True
    x = [t.requires_grad_() for t in x]
    call(*x, reset_BT=reset_BT, backend=backend)[0][:, 5:].sum().backward()
    assert not x[0].grad[:, :5].any()
    assert all(t.grad is None or not t.grad.any() for t in x[2:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend):
    """Rows of several lengths in one batch give what each gives alone; what fills them up has no say."""
    lengths = [12, 0, 1, 7]
    x, reset_BT = make(4, 12, dtype=torch.float32), resets(4, 12)
    for b, length in enumerate(lengths):
        x[0][b, length:] = torch.nan
        reset_BT[b, length:] = True
    h_BTHV, state = call(*x, reset_BT=reset_BT, lengths_B=torch.tensor(lengths), backend=backend)
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        assert not h_BTHV[b, length:].any()
        want = SLSTMState(*(t[row] for t in x[2:]))
        if length:
            h_1, want = slstm(x[0][row, :length], x[1], want, reset_BT=reset_BT[row, :length], backend=backend)
            torch.testing.assert_close(h_BTHV[row, :length], h_1, rtol=1e-6, atol=1e-6)
        for got, expected in zip(state, want, strict=True):
            torch.testing.assert_close(got[row], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_twenty_thousand_steps():
    """Finite, and as accurate as the definition in the same precision."""
    draws = [make(1, 20_000, 1, 4, gate=3.0, dtype=torch.float32, seed=seed) for seed in range(3)]
    definition, fast = partial(call, backend="recurrent"), partial(call, backend="numba")
    with torch.no_grad():
        compare([outputs(definition, [t.double() for t in x]), outputs(definition, x), outputs(fast, x)] for x in draws)
    for name, value in everything(draws[0], fast).items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("H", [1, 2])
def test_inputs_are_left_as_they_were(backend, H):
    x = [t.requires_grad_() for t in make(1, 8, H, dtype=torch.float32)]
    reset_BT, lengths_B = resets(1, 8), torch.tensor([6])
    before = [t.clone() for t in (*x, reset_BT, lengths_B)]
    for options in ({}, {"reset_BT": reset_BT}, {"reset_BT": reset_BT, "lengths_B": lengths_B}):
        h_BTHV, state = call(*x, backend=backend, **options)
        given = [torch.randn_like(h_BTHV), torch.randn_like(state.c_BHV), torch.randn_like(state.h_BHV)]
        copies = [t.clone() for t in given]
        torch.autograd.backward([h_BTHV, state.c_BHV, state.h_BHV], given)
        assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
    for now, then in zip((*x, reset_BT, lengths_B), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype):
    x = make(1, 4, dtype=dtype)
    for backend in ["recurrent"] if dtype == torch.float64 else BACKENDS:
        h_BTHV, state = slstm(x[0], x[1], backend=backend)
        wide = torch.promote_types(dtype, torch.float32)
        assert h_BTHV.dtype == dtype
        assert {t.dtype for t in state} == {t.dtype for t in zero_state(x[0])} == {wide}


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_narrow_the_op(backend):
    x = make(2, 12, dtype=torch.float32)

    def under_autocast(*inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(*inputs, backend=backend)

    plain = everything(x, partial(call, backend=backend))
    assert_same(everything(x, under_autocast), plain, tolerance=1e-6)
    if backend == "numba":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(everything(x, under_autocast), plain, tolerance=1e-6)


@pytest.mark.parametrize(
    ("dtype", "activation", "backend", "why"),
    [
        (torch.float32, "tanh", "numba", "fastest"),
        (torch.bfloat16, "tanh", "numba", "fastest"),
        (torch.float64, "tanh", "recurrent", "computes in float32 and the input is torch.float64"),
        (torch.float32, "silu", "numba", "fastest"),
    ],
)
def test_which_backend_runs(dtype, activation, backend, why):
    with recorded() as choices:
        slstm(make(1, 2, dtype=dtype)[0], None, cell_activation=activation)
    assert [(c.op, c.backend) for c in choices] == [("slstm", backend)]
    assert why in choices[0].why


@pytest.mark.parametrize(
    ("x", "r", "options", "message"),
    [
        ((2, 5, 2, 3, 3), None, {}, r"x has shape \(2, 5, 2, 3, 3\); it must be \[B, T >= 1, H, 4, V\]"),
        ((2, 0, 2, 4, 3), None, {}, r"x has shape \(2, 0, 2, 4, 3\)"),
        (
            (2, 5, 2, 4, 3),
            (2, 4, 3, 3),
            {},
            r"r is torch.float32 of shape \(2, 4, 3, 3\) on cpu; .* of shape \(2, 3, 4, 3\)",
        ),
        ((2, 5, 2, 4, 3), None, {"forget_gate": "relu"}, r"forget_gate is 'relu'; it must be 'sigmoid' or 'exp'"),
        ((2, 5, 2, 4, 3), None, {"cell_activation": "relu"}, r"cell_activation is 'relu'; it must be one of"),
        (
            (2, 5, 2, 4, 3),
            None,
            {"reset_BT": torch.zeros(2, 4, dtype=torch.bool)},
            r"reset_BT is torch.bool of shape \(2, 4\)",
        ),
        (
            (2, 5, 2, 4, 3),
            None,
            {"lengths_B": torch.ones(3).long()},
            r"lengths_B is torch.int64 of shape \(3,\) .* of shape \(2,\)",
        ),
        ((2, 5, 2, 4, 3), None, {"backend": "cuda"}, r"slstm has no backend 'cuda'; use one of"),
    ],
)
def test_errors(x, r, options, message):
    with pytest.raises(ValueError, match=message) as error:
        slstm(torch.zeros(x), None if r is None else torch.zeros(r), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_of_another_batch(backend):
    """It would broadcast: one row's memory, silently used for all."""
    x, other = make(2, dtype=torch.float32), make(1, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"h_BHV of the state is .* of shape \(1, 2, 3\) .* of shape \(2, 2, 3\)"):
        slstm(x[0], x[1], SLSTMState(*other[2:]), backend=backend)
    with pytest.raises(ValueError, match=r"m_BHV of the state is .* of shape \(1, 2, 3\) .* of shape \(2, 2, 3\)"):
        slstm(x[0], x[1], SLSTMState(*x[2:5], other[5]), backend=backend)
