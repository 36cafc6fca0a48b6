"""The mLSTM's gates: every form against the memory in true units, where a gate is a number and not a logarithm."""

from functools import partial

import pytest
import torch
from comparison import assert_same
from mlstm_cases import BACKENDS, NAMES, call, everything, in_true_units, make, resets
from test_gates import GATES

from accuracy import DRAWS, assert_as_accurate, compare, outputs
from exlstm.ops.gates import FORGET_GATES, INPUT_GATES
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.runtime.backend import recorded
from pairwise import every_pair

OLD = {("exp", "sigmoid"), ("sigmoid", "sigmoid")}  # what the other pages test
COMBINATIONS = [(i, f) for i in INPUT_GATES for f in FORGET_GATES if (i, f) not in OLD]
COMBINED = pytest.mark.parametrize(("input_gate", "forget_gate"), COMBINATIONS)
NORMALIZE = pytest.mark.parametrize("normalize", [True, False])
FAST = pytest.mark.parametrize("backend", ["numba", "chunkwise"])


def mild(x, forget_gate):
    """Exponential forget gates that do not leave the range of numbers which the true units have."""
    if forget_gate == "exp":
        x[4] = 0.3 * x[4]
    return x


def in_numbers(q, k, v, i, f, c, n, m, *, input_gate, forget_gate, normalize, reset_BT):
    """(h, C, n) in true units: C_t = f_t C_{t-1} + i_t k_t v_t^T, with the gates themselves."""
    i, f = GATES[input_gate](i), torch.exp(f) if forget_gate == "exp" else torch.sigmoid(f)
    c, n = c * torch.exp(m)[..., None, None], n * torch.exp(m)[..., None]
    q, h = q * q.shape[-1] ** -0.5, []
    for t in range(q.shape[1]):
        keep = f[:, t] * ~reset_BT[:, t, None]
        c = keep[..., None, None] * c + i[:, t, :, None, None] * k[:, t, :, :, None] * v[:, t, :, None]
        n = keep[..., None] * n + i[:, t, :, None] * k[:, t]
        read = (q[:, t, :, None] @ c)[..., 0, :]
        h.append(read / (q[:, t] * n).sum(-1, keepdim=True).abs().clamp(min=1) if normalize else read)
    return torch.stack(h, dim=1), c, n


def with_gradients(run, x):
    """h, C, n and the gradients through all three."""
    x = [t.clone().requires_grad_(n < 7) for n, t in enumerate(x)]
    out = run(*x)
    generator = torch.Generator().manual_seed(3)
    sum((t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in out).backward()
    return dict(zip("hcn", (t.detach() for t in out), strict=True)) | {
        f"gradient of {name}": t.grad for name, t in zip(NAMES[:7], x, strict=False)
    }


@every_pair(backend=BACKENDS, gates=COMBINATIONS, normalize=[True, False])
def test_the_gates_are_what_they_are_called(backend, gates, normalize):
    input_gate, forget_gate = gates
    options = {"input_gate": input_gate, "forget_gate": forget_gate, "normalize": normalize,
               "reset_BT": resets(2, 11)}  # fmt: skip
    x = mild(make(2, 11, 2, 4, 3, gate=2.0, positive=True), forget_gate)
    run = lambda *x: in_true_units(*call(*x, backend=backend, chunk_len=4, eps=0.0, **options))  # noqa: E731
    assert_same(with_gradients(run, x), with_gradients(partial(in_numbers, **options), x), tolerance=1e-9)


@pytest.mark.breadth(3)
@every_pair(backend=["numba", "chunkwise"], gates=COMBINATIONS, normalize=[True, False])
def test_accuracy(backend, gates, normalize):
    input_gate, forget_gate = gates
    options = {"input_gate": input_gate, "forget_gate": forget_gate, "normalize": normalize}
    draws = (
        mild(make(2, 70, 2, 8, 8, seed=seed, gate=3.0, dtype=torch.float32, positive=True), forget_gate)
        for seed in DRAWS
    )
    lengths_B, reset_BT = torch.tensor([70, 33]), resets(2, 70, share=0.05)
    definition, fast = (
        partial(call, backend=name, lengths_B=lengths_B, reset_BT=reset_BT, **more, **options)
        for name, more in (("recurrent", {}), (backend, {"chunk_len": 16}))
    )
    assert_as_accurate(fast, definition, draws, names=NAMES)


@pytest.mark.parametrize(("input_gate", "forget_gate"), [("relu", "exp"), ("softplus", "exp"), ("relu2", "sigmoid")])
def test_gradients_are_those_of_the_function(input_gate, forget_gate):
    """Of the hand-written backward, by finite differences, with the unit in the state moving along."""
    x = make(1, 5, 1, 2, 2, gate=2.0, positive=True)
    run = partial(call, chunk_len=2, eps=0.0, input_gate=input_gate, forget_gate=forget_gate)
    function = lambda *parts: in_true_units(*run(*parts, x[7]))  # noqa: E731
    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in x[:7]])


@COMBINED
@NORMALIZE
def test_accuracy_of_a_step(input_gate, forget_gate, normalize):
    """The kernel for decoding works the gates out itself."""
    options = {"input_gate": input_gate, "forget_gate": forget_gate, "normalize": normalize}
    definition, step = partial(call, backend="recurrent", **options), partial(call, backend="numba", **options)
    for gate in (1.0, 20.0):
        draws = [make(3, 1, 4, 8, 8, seed=seed, gate=gate, dtype=torch.float32, positive=True) for seed in DRAWS]
        for x in draws:
            x[3][0, 0, :2] = torch.tensor([0.0, -0.0])
            x[4] = x[4].clamp(-40, 40)
        with torch.no_grad():
            compare(
                [outputs(definition, [t.double() for t in x]), outputs(definition, x), outputs(step, x)] for x in draws
            )


@pytest.mark.parametrize("backend", ["numba", "chunkwise", "recurrent"])
@pytest.mark.parametrize("input_gate", ["relu", "relu2"])
def test_a_shut_gate_writes_nothing(backend, input_gate):
    """From the first step on: h is 0 and not 0 / 0, C and n stay empty, no gradient gets through; then it opens."""
    x = [t.requires_grad_() for t in make(2, 20, 2, 4, 3, dtype=torch.float32, positive=True)[:5]]
    shut = x[3].detach().abs().neg()
    shut[:, 12] = 0.7
    shut.requires_grad_()
    h, state = mlstm(*x[:3], shut, x[4], input_gate=input_gate, backend=backend, chunk_len=8)
    assert not h[:, :12].any()
    assert h[:, 12:].any(-1).all()
    (h.sum() + state.c_BHKV.sum() + state.n_BHK.sum()).backward()
    assert not shut.grad[:, :12].any()
    assert not shut.grad[:, 13:].any()
    assert shut.grad[:, 12].all()
    for t in (x[0], x[1], x[2], x[4], shut, x[4]):
        assert torch.isfinite(t.grad).all()
    empty = mlstm(*(t.detach()[:, :12] for t in (*x[:3], shut, x[4])), input_gate=input_gate, backend=backend)[1]
    assert not empty.c_BHKV.any()
    assert not empty.n_BHK.any()
    assert torch.isfinite(empty.m_BH).all()


@FAST
@pytest.mark.parametrize("opening", [1e-3, 1e-12, 1e-20, 1e-29])
def test_the_gradient_of_a_relu_does_not_fade_with_its_opening(backend, opening):
    """d h / d i of one step that hardly opens among others, in float32, is what it is with the gate as a number."""
    x = make(1, 9, 1, 4, 3, dtype=torch.float32, positive=True)
    x[3] = x[3].abs() + 0.1
    x[3][0, 4] = opening
    options = {"input_gate": "relu", "forget_gate": "sigmoid", "normalize": True}
    exact = [t.double() for t in x]
    want = with_gradients(partial(in_numbers, reset_BT=torch.zeros(1, 9, dtype=torch.bool), **options), exact)
    run = lambda *x: in_true_units(*call(*x, backend=backend, eps=0.0, **options))  # noqa: E731
    got = with_gradients(run, x)["gradient of i"]
    torch.testing.assert_close(got.double(), want["gradient of i"], rtol=1e-4, atol=1e-5)


@every_pair(
    backend=["numba", "chunkwise"],
    gates=COMBINATIONS,
    biases=[(100.0, 0.0), (-100.0, 0.0), (0.0, -100.0), (0.0, 100.0), (-100.0, 100.0)],
)
def test_extreme_gates_stay_finite(backend, gates, biases):
    (input_gate, forget_gate), (i, f) = gates, biases
    x = make(1, 20, dtype=torch.float32)
    x[3], x[4] = x[3] + i, x[4] + f
    options = {"backend": backend, "chunk_len": 8, "input_gate": input_gate, "forget_gate": forget_gate}
    for name, value in everything(x, partial(call, **options)).items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("backend", ["numba", "chunkwise"])
@pytest.mark.parametrize(
    "gates", [("relu", "exp"), ("softplus", "exp"), ("sigmoid", "exp"), ("relu2", "sigmoid")], ids=str
)
def test_padding_and_cutting_time_change_nothing(backend, gates):
    """Rows of several lengths, in three pieces, give what each gives alone; what fills them up has no say."""
    options = {"input_gate": gates[0], "forget_gate": gates[1], "backend": backend}
    x, lengths = make(4, 12, dtype=torch.float32, positive=True), [12, 0, 1, 7]
    for b, length in enumerate(lengths):
        for t in x[:5]:
            t[b, length:] = torch.nan
    h, state = [], MLSTMState(*x[5:])
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        here_B = (torch.tensor(lengths) - begin).clamp(0, end - begin)
        part, state = mlstm(*(t[:, begin:end] for t in x[:5]), state, lengths_B=here_B, **options)
        h.append(part)
    h_BTHV = torch.cat(h, dim=1)
    for b, length in enumerate(lengths):
        row, want = slice(b, b + 1), MLSTMState(*(t[b : b + 1] for t in x[5:]))
        assert not h_BTHV[b, length:].any()
        if length:
            h_1, want = mlstm(*(t[row, :length] for t in x[:5]), want, **options)
            torch.testing.assert_close(h_BTHV[row, :length], h_1, rtol=1e-4, atol=1e-5)
        for got, expected in zip(state, want, strict=True):
            torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-5)


@COMBINED
def test_packed_sequences(input_gate, forget_gate):
    """Gates go along into the rows that packed sequences become."""
    options = {"input_gate": input_gate, "forget_gate": forget_gate}
    x = make(1, 12, positive=True)[:5]
    h, _ = mlstm(*x, cu_seqlens=torch.tensor([0, 5, 12]), **options)
    want = torch.cat([mlstm(*(t[:, part] for t in x), **options)[0] for part in (slice(5), slice(5, 12))], dim=1)
    torch.testing.assert_close(h, want, rtol=1e-9, atol=1e-9)


@every_pair(gate=[3, 4], backend=["numba", "chunkwise"], gates=COMBINATIONS)
def test_what_is_not_a_number_shows(gate, backend, gates):
    input_gate, forget_gate = gates
    for T in (1, 6):
        x = make(1, T, 1, 2, 2, dtype=torch.float32)
        x[gate][0, -1] = torch.nan
        with torch.no_grad():
            h, _ = call(*x, backend=backend, input_gate=input_gate, forget_gate=forget_gate)
        assert h[:, -1].isnan().any()
        assert torch.isfinite(h[:, :-1]).all()


def test_which_backend_runs():
    """Every gate has the kernels for a CPU; Triton's have the sigmoid as forget gate only, and say so."""
    x = make(1, 3, 1, 2, 2, dtype=torch.float32)
    with recorded() as choices:
        for input_gate, forget_gate in COMBINATIONS:
            call(*x, input_gate=input_gate, forget_gate=forget_gate)
    assert {choice.backend for choice in choices} == {"numba"}
    with pytest.raises(
        ValueError, match=r"'triton' of mlstm cannot run: it has the forget gate sigmoid, not exp; use b"
    ):
        call(*x, forget_gate="exp", backend="triton")
