"""What the mLSTM promises whichever backend runs: time, resets, padding, dtypes, units, errors."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from mlstm_cases import BACKENDS, NAMES, ROUNDING, call, everything, in_true_units, make, resets

from exlstm.ops.mlstm import MLSTMState, mlstm, mlstm_recurrent, zero_state


@settings(max_examples=20)
@given(cut=st.integers(1, 39), chunk_len=st.integers(1, 41), seed=st.integers(0, 2**31))
def test_cutting_time_changes_nothing(cut, chunk_len, seed):
    """Outputs, the state, and the gradients that flow through the cut."""
    reset_BT = resets(2, 40, seed=seed, share=0.05)

    def cut_in_two(*x):
        first, second = [t[:, :cut] for t in x[:5]], [t[:, cut:] for t in x[:5]]
        h1_BTHV, state = mlstm(*first, MLSTMState(*x[5:]), reset_BT=reset_BT[:, :cut], chunk_len=chunk_len)
        h2_BTHV, state = mlstm(*second, state, reset_BT=reset_BT[:, cut:], chunk_len=chunk_len)
        return torch.cat([h1_BTHV, h2_BTHV], dim=1), state

    x = make(seed=seed, gate=3.0)
    assert_same(everything(x, cut_in_two), everything(x, partial(call, reset_BT=reset_BT)), tolerance=ROUNDING)


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_by_step(backend):
    """One step at a time is the same call, whichever backend takes the step."""
    x = make(2, 12)
    h_BTHV, state = call(*x)
    after, h = MLSTMState(*x[5:]), []
    for t in range(12):
        h_1, after = mlstm(*(part[:, t : t + 1] for part in x[:5]), after, backend=backend)
        h.append(h_1)
    torch.testing.assert_close(torch.cat(h, dim=1), h_BTHV, rtol=1e-10, atol=1e-12)
    for got, want in zip(after, state, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [-30.0, -1.0, 5.0, 60.0])
def test_the_unit_of_the_state_is_free(backend, shift):
    """(C e^-d, n e^-d, m + d) is the same memory as (C, n, m)."""
    x = make(2, 33, gate=3.0)
    moved = [*x[:5], x[5] * torch.exp(torch.tensor(-shift)), x[6] * torch.exp(torch.tensor(-shift)), x[7] + shift]
    moved = [t.double() for t in moved]
    for got, want in zip(
        in_true_units(*call(*moved, backend=backend, chunk_len=8, eps=0.0)),
        in_true_units(*call(*x, backend=backend, chunk_len=8, eps=0.0)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)  # exp(shift) was rounded to float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_passes_through_m(backend):
    x = [t.requires_grad_() for t in make(1, 5)]
    h_BTHV, state = call(*x, backend=backend)
    assert not state.m_BH.requires_grad
    (h_BTHV.sum() + state.c_BHKV.sum()).backward()
    assert x[7].grad is None or not x[7].grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_len", [5, 64])
def test_causal(backend, chunk_len):
    x = make(2, 32)
    other = [torch.cat([t[:, :20], t[:, 20:] + 1e3 * torch.randn_like(t[:, 20:])], dim=1) for t in x[:5]] + x[5:]
    h_BTHV = call(*x, backend=backend, chunk_len=chunk_len)[0]
    assert torch.equal(call(*other, backend=backend, chunk_len=chunk_len)[0][:, :20], h_BTHV[:, :20])
    x = [t.requires_grad_() for t in x]
    call(*x, backend=backend, chunk_len=chunk_len)[0][:, 19].sum().backward()
    for name, t in zip(NAMES[:5], x, strict=False):
        assert not t.grad[:, 20:].any(), name
        assert t.grad[:, 19 if name == "q" else 18].any(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reset_hides_everything_before_it(backend):
    """What came before may be as large as it likes."""
    x, reset_BT = make(2, 20), torch.zeros(2, 20, dtype=torch.bool)
    reset_BT[:, 9] = True
    past = [torch.cat([1e3 * t[:, :9], t[:, 9:]], dim=1) for t in x[:5]]
    a, b = (call(*before, *x[5:], reset_BT=reset_BT, backend=backend, chunk_len=6) for before in (x[:5], past))
    torch.testing.assert_close(a[0][:, 9:], b[0][:, 9:], rtol=1e-10, atol=1e-12)
    for got, want in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    alone = mlstm(*(t[:, 9:] for t in x[:5]), backend=backend)
    torch.testing.assert_close(a[0][:, 9:], alone[0], rtol=1e-10, atol=1e-12)
    for got, want in zip(a[1], alone[1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend):
    """Rows of several lengths in one batch give what each gives alone; what fills them up has no say."""
    lengths = [20, 0, 7, 13]
    x, reset_BT = make(4, 20), resets(4, 20)
    for b, length in enumerate(lengths):
        for t in x[:5]:
            t[b, length:] = 1e3 * torch.randn_like(t[b, length:])
        reset_BT[b, length:] = True
    h_BTHV, state = call(*x, reset_BT=reset_BT, lengths_B=torch.tensor(lengths), backend=backend, chunk_len=6)
    for b, length in enumerate(lengths):
        row = slice(b, b + 1)
        assert not h_BTHV[b, length:].any()
        want = MLSTMState(*(t[row] for t in x[5:]))
        if length:
            h_1, want = mlstm(*(t[row, :length] for t in x[:5]), want, reset_BT=reset_BT[row, :length], chunk_len=6)
            torch.testing.assert_close(h_BTHV[row, :length], h_1, rtol=1e-10, atol=1e-12)
        for got, expected in zip(state, want, strict=True):
            torch.testing.assert_close(got[row], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("H", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_inputs_are_left_as_they_were(backend, H, dtype):
    """With one head and the right dtype every inner view of the input is the input's own memory."""
    x = [t.requires_grad_() for t in make(1, 16, H, dtype=dtype)]
    reset_BT, lengths_B = resets(1, 16), torch.tensor([12])
    before = [t.clone() for t in (*x, reset_BT, lengths_B)]
    for options in ({}, {"reset_BT": reset_BT}, {"reset_BT": reset_BT, "lengths_B": lengths_B}):
        h_BTHV, state = call(*x, backend=backend, chunk_len=4, **options)
        (h_BTHV.sum() + state.c_BHKV.sum()).backward()
    for now, then in zip((*x, reset_BT, lengths_B), before, strict=True):
        assert torch.equal(now, then)


def test_the_gradient_that_comes_in_is_left_as_it_was():
    x = [t.requires_grad_() for t in make(1, 16, 1)]
    h_BTHV, state = call(*x, chunk_len=4)
    given = [torch.randn_like(t) for t in (h_BTHV, state.c_BHKV, state.n_BHK)]
    before = [t.clone() for t in given]
    torch.autograd.backward([h_BTHV, state.c_BHKV, state.n_BHK], given)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_dtypes(backend, dtype):
    """h has the dtype of q; the state is float32 or wider, and a fresh state is like the one that comes back."""
    x = make(1, 6, dtype=dtype)
    h_BTHV, state = mlstm(*x[:5], backend=backend)
    wide = torch.promote_types(dtype, torch.float32)
    assert h_BTHV.dtype == dtype
    assert {t.dtype for t in state} == {t.dtype for t in zero_state(x[1], x[2])} == {wide}


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_narrow_the_op(backend):
    """Under autocast the op computes what it computes without, the hand-written backward also when called inside."""
    x = make(2, 40, dtype=torch.float32)

    def under_autocast(*inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(*inputs, backend=backend, chunk_len=8)

    plain = everything(x, partial(call, backend=backend, chunk_len=8))
    assert_same(everything(x, under_autocast), plain, tolerance=1e-6)
    if backend == "chunkwise":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(everything(x, under_autocast), plain, tolerance=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_state_means_the_zero_state(backend):
    x = make()
    a, b = mlstm(*x[:5], backend=backend), mlstm(*x[:5], zero_state(x[1], x[2]), backend=backend)
    assert torch.equal(a[0], b[0])


def test_the_definition_on_paper():
    """One head of one number, two steps, worked out by hand from the equations."""
    one = lambda *values: torch.tensor(values, dtype=torch.float64)[None, :, None]  # noqa: E731
    q, k, v = (one(*values)[..., None] for values in ((2.0, 3.0), (5.0, 7.0), (11.0, 13.0)))
    i, f = one(0.5, -0.25), one(9.0, 1.5)
    h_BTHV, state = mlstm_recurrent(q, k, v, i, f, zero_state(k, v), eps=0.0)
    forget = torch.sigmoid(torch.tensor(1.5, dtype=torch.float64))
    write = torch.exp(i[0, :, 0])
    c1, n1 = write[0] * 5 * 11, write[0] * 5
    c2, n2 = forget * c1 + write[1] * 7 * 13, forget * n1 + write[1] * 7
    want = torch.stack([2 * c1 / max(2 * n1, 1), 3 * c2 / max(3 * n2, 1)])
    torch.testing.assert_close(h_BTHV.flatten(), want, rtol=1e-12, atol=0)
    torch.testing.assert_close((state.c_BHKV * state.m_BH.exp()).flatten()[0], c2, rtol=1e-12, atol=0)


def test_eps_is_added_after_the_maximum_in_the_unit_m():
    """h = C q / (max(|n.q|, exp(-m)) + eps), as all published checkpoints were trained."""
    x = make(1, 1, 1, 2, 2)
    _, state = call(*x)
    q_K = x[0][0, 0, 0] * 2**-0.5
    norm = torch.maximum((q_K @ state.n_BHK[0, 0]).abs(), torch.exp(-state.m_BH[0, 0])) + 0.25
    want = (q_K @ state.c_BHKV[0, 0]) / norm
    for backend in BACKENDS:
        torch.testing.assert_close(call(*x, eps=0.25, backend=backend)[0][0, 0, 0], want, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({1: (2, 40, 2, 5)}, {}, r"k is .* of shape \(2, 40, 2, 5\) on cpu; .* \(2, 40, 2, 4\) on cpu\."),
        ({2: (2, 39, 2, 3)}, {}, r"v is torch.float64 of shape"),
        ({3: (2, 40)}, {}, r"i is torch.float64 of shape"),
        ({4: (2, 40, 1)}, {}, r"f is torch.float64 of shape"),
        ({}, {"chunk_len": 0}, r"chunk_len is 0; it must be at least 1\."),
        ({n: (2, 0, *s) for n, s in enumerate([(2, 4), (2, 4), (2, 3), (2,), (2,)])}, {}, r"the input has shape .2, 0"),
        ({}, {"input_gate": "tanh"}, r"input_gate is 'tanh'; it must be 'exp', 'sigmoid', 'softplus', .* or 'relu2'\."),
        ({}, {"forget_gate": "relu"}, r"forget_gate is 'relu'; it must be 'sigmoid' or 'exp'"),
        ({}, {"reset_BT": torch.zeros(40, dtype=torch.bool)}, r"reset_BT is torch.bool of shape \(40,\) .* \(2, 40\)"),
        ({}, {"lengths_B": torch.tensor([1, 2, 3])}, r"lengths_B is torch.int64 of shape \(3,\) .* of shape \(2,\)"),
        ({}, {"backend": "cuda"}, r"no backend 'cuda'; use one of \['auto', 'numba', 'chunkwise', 'recurrent'\]"),
    ],
)  # fmt: skip
def test_errors(change, options, message):
    x = make()[:5]
    for index, shape in change.items():
        x[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message) as error:
        mlstm(*x, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_of_another_batch(backend):
    """It would broadcast: one row's memory, silently used for all."""
    x, other = make(2), make(1)
    with pytest.raises(
        ValueError, match=r"c_BHKV of the state is .* of shape \(1, 2, 4, 3\) .* of shape \(2, 2, 4, 3\)"
    ):
        mlstm(*x[:5], MLSTMState(*other[5:]), backend=backend)
    with pytest.raises(ValueError, match=r"m_BH of the state is .* of shape \(1, 2\) .* of shape \(2, 2\)"):
        mlstm(*x[:5], MLSTMState(*x[5:7], other[7]), backend=backend)


@pytest.mark.parametrize("backend", ["numba", *BACKENDS])
def test_a_reset_ends_infinity(backend):
    """What is forgotten may be infinite: outputs, states and gradients of later steps are those of a fresh start."""
    x = make(dtype=torch.float32, positive=True)
    x[5][0], x[6][0] = torch.inf, torch.inf
    reset_BT = torch.zeros(2, 40, dtype=torch.bool)
    reset_BT[:, 13] = True
    found = []
    for start, state, options in ((0, x[5:], {"reset_BT": reset_BT}), (13, [0 * t.nan_to_num() for t in x[5:]], {})):
        leaves = [t[:, start:].clone().requires_grad_() for t in x[:5]]
        h, after = call(*leaves, *state, backend=backend, **options)
        (h[:, 13 - start :].square().sum() + after.c_BHKV.sum() + after.n_BHK.sum()).backward()
        found.append([h[:, 13 - start :], *after, *(t.grad[:, 13 - start :] for t in leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
