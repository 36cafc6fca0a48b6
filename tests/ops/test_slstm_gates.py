"""The sLSTM's gates and its normaliser: both forms against the memory in true units, where a gate is a number."""

import math
from functools import partial

import pytest
import torch
from comparison import assert_same
from slstm_cases import NAMES, call, everything, make, resets
from test_gates import GATES

from accuracy import assert_as_accurate
from exlstm.ops.gates import INPUT_GATES, SMALL
from exlstm.ops.slstm import SLSTMState, slstm, zero_state
from exlstm.ops.slstm.reference import SHUT
from exlstm.runtime.backend import recorded
from pairwise import every_pair

BACKENDS = ["numba", "recurrent"]
BOTH = pytest.mark.parametrize("backend", BACKENDS)
VARIANTS = [
    (gate, normalize) for gate in INPUT_GATES for normalize in (True, False) if (gate, normalize) != ("exp", True)
]
VARIED = pytest.mark.parametrize(("input_gate", "normalize"), VARIANTS)
RELUS = pytest.mark.parametrize("input_gate", ["relu", "relu2"])


def mild(x, forget_gate, normalize):
    """Without the normaliser h has no bound, and feeds gates that have none: the numbers have to stay small."""
    if not normalize:
        x[0], x[1] = 0.5 * x[0], 0.1 * x[1]
    if forget_gate == "exp":
        x[0][..., 1, :] = x[0][..., 1, :].clamp(max=0.1)
    return x


def in_numbers(x, r, h, c, n, m, *, input_gate, forget_gate, normalize, reset_BT):
    """(h of every step, last c, n) in true units, with the gates themselves; of elements that have seen something."""
    c, n, out = c * torch.exp(m), n * torch.exp(m), []
    for t in range(x.shape[1]):
        h, c, n = (state * ~reset_BT[:, t, None, None] for state in (h, c, n))
        i, f, z, o = (x[:, t] + torch.einsum("bhk,hkgv->bhgv", h, r)).unbind(2)
        i, f = GATES[input_gate](i), torch.exp(f) if forget_gate == "exp" else torch.sigmoid(f)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * (c / n if normalize else c)
        out.append(h)
    return torch.stack(out, dim=1), c, n


def in_true_units(h, state):
    return h, state.c_BHV * torch.exp(state.m_BHV), state.n_BHV * torch.exp(state.m_BHV)


def with_gradients(run, x):
    """h, c, n and the gradients through all three."""
    x = [t.clone().requires_grad_(n < 5) for n, t in enumerate(x)]
    out = run(*x)
    generator = torch.Generator().manual_seed(3)
    sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in out).backward()
    return dict(zip(("output", "c", "n"), (t.detach() for t in out), strict=True)) | {
        f"gradient of {name}": t.grad for name, t in zip(NAMES[:5], x, strict=False)
    }


@every_pair(
    form=[("recurrent", torch.float64, 1e-10), ("numba", torch.float32, 2e-4)],
    variant=VARIANTS,
    forget_gate=["sigmoid", "exp"],
)
def test_the_gates_are_what_they_are_called(form, variant, forget_gate):
    """A reset makes an element fresh; of ReLUs it has to open at once there, for in numbers h would be 0 / 0."""
    (backend, dtype, tolerance), (input_gate, normalize) = form, variant
    reset_BT = resets(2, 11, share=0.2)
    x = mild(make(2, 11, 2, 3, gate=1.5, dtype=dtype, fresh=0.0), forget_gate, normalize)
    if normalize and "relu" in input_gate:
        x[0][..., 0, :] = torch.where(reset_BT[:, :, None, None], 4.0, x[0][..., 0, :])
    options = {"input_gate": input_gate, "forget_gate": forget_gate, "normalize": normalize, "reset_BT": reset_BT}
    want = with_gradients(partial(in_numbers, **options), [t.double() for t in x])
    got = with_gradients(lambda *x: in_true_units(*call(*x, backend=backend, **options)), x)
    assert_same(got, want, tolerance=tolerance)


@pytest.mark.breadth(4)
@every_pair(variant=VARIANTS, forget_gate=["sigmoid", "exp"], mixing=[True, False])
def test_accuracy(variant, forget_gate, mixing):
    """Some elements fresh, resets, a row that ends early and one that never begins; more than 16 units, and not 32."""
    input_gate, normalize = variant
    options = {"input_gate": input_gate, "normalize": normalize, "forget_gate": forget_gate, "mixing": mixing,
               "reset_BT": resets(3, 24, share=0.05), "lengths_B": torch.tensor([24, 11, 0])}  # fmt: skip
    definition, fast = (partial(call, backend=backend, **options) for backend in ("recurrent", "numba"))
    draws = (mild(make(3, 24, 1, 20, gate=2.0, dtype=torch.float32, seed=seed), forget_gate, normalize)
             for seed in range(3))  # fmt: skip
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.parametrize(("input_gate", "normalize"), [("relu", True), ("softplus", False), ("relu2", False)])
def test_gradients_are_those_of_the_function(input_gate, normalize):
    """Finite differences of h, c e^m and n e^m, with resets and a row that ends early."""
    x, reset_BT = mild(make(2, 4, 1, 2, fresh=0.0), "exp", normalize), torch.zeros(2, 4, dtype=torch.bool)
    reset_BT[0, 2] = True
    options = {"input_gate": input_gate, "normalize": normalize, "lengths_B": torch.tensor([4, 3])}
    function = lambda *parts: in_true_units(*call(*parts, x[5], reset_BT=reset_BT, **options))  # noqa: E731
    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in x[:5]])


@BOTH
@RELUS
@pytest.mark.parametrize("normalize", [True, False])
def test_the_first_steps_of_a_gate_that_is_shut(backend, input_gate, normalize):
    """h is the mean of what it would have let by, or 0 without the normaliser; the first to open is all that counts."""
    x = make(2, 4, 2, 3, dtype=torch.float32)[0]
    x[..., 0, :] = -x[..., 0, :].abs()
    x[:, 3, :, 0] = 0.3
    x[:, :, :, 1] = 50.0  # nothing is forgotten
    x.requires_grad_()
    h, state = slstm(x, None, input_gate=input_gate, normalize=normalize, backend=backend)
    z, o = torch.tanh(x[:, :, :, 2]), torch.sigmoid(x[:, :, :, 3])
    want = torch.stack([z[:, : t + 1].mean(1) for t in range(3)] + [z[:, 3]], dim=1)
    if not normalize:
        want = torch.cat([torch.zeros_like(z[:, :3]), (0.3 if input_gate == "relu" else 0.09) * z[:, 3:]], dim=1)
    torch.testing.assert_close(h, o * want, rtol=1e-4, atol=1e-6)
    shut = slstm(x[:, :3], None, input_gate=input_gate, normalize=normalize, backend=backend)[1]
    assert (shut.m_BHV == SHUT).all()
    assert (shut.n_BHV == torch.tensor(3.0)).all()
    (h.sum() + state.c_BHV.sum() + state.n_BHV.sum()).backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[:, :3, :, 0].any()


@BOTH
@pytest.mark.parametrize(("input_gate", "power"), [("relu", 1), ("relu2", 2)])
def test_a_gate_that_is_all_but_shut_is_open(backend, input_gate, power):
    """By what an opening counts at least; so it outweighs those that are shut."""
    x = make(1, 2, 1, 3, dtype=torch.float32)[0]
    x[:, 0, :, 0], x[:, 1, :, 0] = -1.0, torch.tensor([1e-45, 1e-36, 1e-31])
    h, state = slstm(x, None, input_gate=input_gate, backend=backend)
    torch.testing.assert_close(state.m_BHV, torch.full((1, 1, 3), power * math.log(SMALL)))
    torch.testing.assert_close(h[:, 1], torch.sigmoid(x[:, 1, :, 3]) * torch.tanh(x[:, 1, :, 2]))


@BOTH
@RELUS
def test_a_gate_that_shuts_changes_nothing_but_the_unit(backend, input_gate):
    """What was written stays what h is a mean of, through many steps of forgetting."""
    x = make(1, 60, 1, 3, dtype=torch.float32)[0]
    x[:, 0, :, 0], x[:, 1:, :, 0], x[:, :, :, 1] = 0.5, -1.0, -10.0
    h, state = slstm(x, None, input_gate=input_gate, backend=backend)
    want = torch.sigmoid(x[:, :, :, 3]) * torch.tanh(x[:, :1, :, 2])
    torch.testing.assert_close(h, want, rtol=1e-4, atol=1e-6)
    assert (state.m_BHV < -500).all()


@every_pair(
    backend=BACKENDS,
    variant=VARIANTS,
    biases=[(100.0, 0.0), (-100.0, 0.0), (0.0, -100.0), (0.0, 100.0), (100.0, -100.0)],
)
def test_extreme_gates_stay_finite(backend, variant, biases):
    (input_gate, normalize), (i, f) = variant, biases
    if input_gate == "exp" and i > 0:
        return  # e^100 is no float32, and without the normaliser it is what h has to be
    x = make(2, 20, dtype=torch.float32)
    x[0][..., 0, :] += i
    x[0][..., 1, :] += f
    options = {"input_gate": input_gate, "normalize": normalize, "backend": backend, "mixing": normalize}
    for name, value in everything(x, partial(call, **options)).items():
        assert torch.isfinite(value).all(), name


@every_pair(variant=VARIANTS, value=[torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_shows(variant, value):
    """NaN and infinity give the same in both forms."""
    input_gate, normalize = variant
    x = make(1, 6, 1, 2, dtype=torch.float32, fresh=0.0)
    x[0][0, 2, 0, 0, 0] = value
    options = {"input_gate": input_gate, "normalize": normalize}
    numba, recurrent = (call(*x, backend=backend, **options)[0] for backend in BACKENDS)
    torch.testing.assert_close(numba, recurrent, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert torch.isfinite(numba[:, :2]).all()
    if value != value:
        assert torch.isnan(numba[:, 2:]).any()


@pytest.mark.parametrize(("backend", "dtype"), [("numba", torch.float32), ("recurrent", torch.float64)])
@pytest.mark.parametrize(("input_gate", "normalize"), [("relu", True), ("relu2", False), ("sigmoid", False)])
def test_cutting_time_changes_nothing(backend, dtype, input_gate, normalize):
    """Outputs, the state, and the gradients that flow through the cuts: at a single step other code reads R."""
    reset_BT = resets(2, 20, share=0.1)
    options = {"input_gate": input_gate, "normalize": normalize, "backend": backend}

    def in_pieces(x_BTHGV, r_HKGV, *state):
        h, after = [], SLSTMState(*state)
        for begin, end in ((0, 7), (7, 8), (8, 20)):
            part, reset = x_BTHGV[:, begin:end], reset_BT[:, begin:end]
            h_1, after = slstm(part, r_HKGV, after, reset_BT=reset, **options)
            h.append(h_1)
        return torch.cat(h, dim=1), after

    x = mild(make(gate=2.0, dtype=dtype), "sigmoid", normalize)
    want = everything(x, partial(call, reset_BT=reset_BT, **options))
    assert_same(everything(x, in_pieces), want, tolerance=1e-12 if dtype == torch.float64 else 3e-5)


@VARIED
def test_without_gradients_the_numbers_are_the_same(input_gate, normalize):
    """Nothing is kept for a backward then."""
    x = mild(make(3, 9, 2, 20, dtype=torch.float32), "sigmoid", normalize)
    options = {"input_gate": input_gate, "normalize": normalize, "backend": "numba"}
    with torch.no_grad():
        plain = call(*x, **options)
    x[0].requires_grad_()
    kept = call(*x, **options)
    for a, b in zip((plain[0], *plain[1]), (kept[0], *kept[1]), strict=True):
        assert torch.equal(a, b)


def test_which_backend_runs():
    """The scan for a CPU has them all; Triton's say what they have not."""
    x = make(1, 3, 1, 2, dtype=torch.float32)
    with recorded() as choices:
        for input_gate, normalize in VARIANTS:
            call(*x, input_gate=input_gate, normalize=normalize)
    assert {choice.backend for choice in choices} == {"numba"}
    for backend in ("triton", "triton_steps"):
        with pytest.raises(
            ValueError, match=r"^backend .* of slstm cannot run: it has the input gate exp, not relu; use"
        ):
            call(*x, input_gate="relu", backend=backend)
        with pytest.raises(ValueError, match=r"it has the normaliser, and normalize is False; use backend='auto'"):
            call(*x, normalize=False, backend=backend)
    with pytest.raises(ValueError, match=r"^input_gate is 'tanh'; it must be 'exp', .* or 'relu2'\.$"):
        slstm(x[0], None, zero_state(x[0]), input_gate="tanh")
