"""Which forms of an op torch's tracers and transforms meet, and second derivatives."""

import pytest
import torch
from torch.autograd import forward_ad, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from exlstm.ops.block_linear import block_linear
from exlstm.ops.common import exact_dtype
from exlstm.ops.conv import ConvState, causal_conv
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.lstm import LSTMState, lstm
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.ops.slstm import slstm
from exlstm.runtime.backend import recorded
from exlstm.runtime.tracing import PORTABLE, TRACED, TRANSFORMED, portable_graph, tracer, tracing_obstacle
from exlstm.train.loss import cross_entropy, linear_cross_entropy

# torch's own; the first on the first use of forward-mode derivatives
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.(script|trace). is deprecated:DeprecationWarning")
B, T, H, V = 2, 3, 1, 4
RESET = torch.tensor([[False, True, False], [False, False, True]])


def normal(*shape):
    return torch.randn(shape)


def conv(x_BTD, w_DW, b_D, past_BSD):
    y_BTD, after = causal_conv(
        x_BTD, w_DW, b_D, ConvState(past_BSD), reset_BT=RESET, lengths_B=torch.tensor([3, 2]), activation="silu"
    )
    return y_BTD, after.past_BSD


def cell(q_BTHV, k_BTHV, v_BTHV, i_BTH, f_BTH, c_BHVV, n_BHV):
    state = MLSTMState(c_BHVV, n_BHV, torch.zeros(B, H))
    h_BTHV, after = mlstm(q_BTHV, k_BTHV, v_BTHV, i_BTH, f_BTH, state, reset_BT=RESET)
    return h_BTHV, *after[:2]


OPS = {
    "conv": (conv, [normal(B, T, V), normal(V, 3), normal(V), normal(B, 2, V)]),
    "block_linear": (block_linear, [normal(B, T, 8), normal(2, 4, 4)]),
    "gated_norm": (
        lambda h, gain, z, skip, c, bias: gated_norm(h, gain, z, skip_E=skip, c_BTE=c, bias_E=bias),
        [normal(B, T, 2, V), normal(8), normal(B, T, 8), normal(8), normal(B, T, 8), normal(8)],
    ),
    "mlstm": (cell, [*(normal(B, T, H, V) for _ in range(3)), *(normal(B, T, H) for _ in range(2)),
                     normal(B, H, V, V), normal(B, H, V)]),
    "slstm": (lambda x, r: slstm(x, r)[0], [normal(B, T, H, 4, V), normal(H, V, 4, V)]),
    "lstm": (
        lambda x, w, u, b, h, c: lstm(x, w, u, b, LSTMState(h, c), reset_BT=RESET)[0],
        [normal(B, T, V), normal(4 * V, V), normal(4 * V, V), normal(4 * V), normal(B, V), normal(B, V)],
    ),
}  # fmt: skip
PLAIN = {"conv": "torch", "block_linear": "torch", "gated_norm": "torch", "mlstm": "recurrent", "slstm": "recurrent",
         "lstm": "recurrent"}  # fmt: skip
every_op = pytest.mark.parametrize("name", OPS)


def total(name):
    """A scalar of the op's results that depends on each of them in its own way, and the op's inputs."""
    run, inputs = OPS[name]

    def of(*tensors):
        results = run(*tensors)
        results = (results,) if isinstance(results, torch.Tensor) else results
        return sum((x * torch.linspace(-1, 2, x.numel()).view(x.shape)).sum() for x in results)

    return of, [x.clone().requires_grad_() for x in inputs]


def backends(call):
    with recorded() as choices:
        call()
    return {choice.op: choice.backend for choice in choices}


@every_op
def test_transforms_meet_plain_torch(name):
    """And nothing else does: gradients by torch.func, by kernels and along a direction agree."""
    of, inputs = total(name)
    plain = [x.detach() for x in inputs]
    wanted = torch.autograd.grad(of(*inputs), inputs)
    assert backends(lambda: of(*inputs))[name] == "numba"
    every = tuple(range(len(inputs)))
    assert backends(lambda: torch.func.grad(of, every)(*plain))[name] == PLAIN[name]
    for found, want in zip(torch.func.grad(of, every)(*plain), wanted, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    directions = [torch.randn_like(x) for x in plain]
    along = sum((x * y).sum() for x, y in zip(wanted, directions, strict=True))
    _, found = torch.func.jvp(of, tuple(plain), tuple(directions))
    torch.testing.assert_close(found, along, rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, y) for x, y in zip(plain, directions, strict=True)]
        torch.testing.assert_close(forward_ad.unpack_dual(of(*duals)).tangent, along, rtol=1e-4, atol=1e-4)
    stacked = [torch.stack([x, 2 * x]) for x in plain]
    for place, found in enumerate(torch.vmap(of)(*stacked)):
        torch.testing.assert_close(found, of(*(x[place] for x in stacked)), rtol=1e-4, atol=1e-4)


@every_op
def test_a_graph_has_every_operation(name):
    """Of what a tracer of operations sees: numbers that are put in later decide."""
    of, inputs = total(name)
    with torch.no_grad():
        graph = make_fx(of)(*inputs)
        others = [0.5 * x for x in inputs]
        torch.testing.assert_close(graph(*others), of(*others), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["conv", "block_linear", "gated_norm"])
def test_second_derivatives(name):
    """Also where one input was made from another, and where nothing but inputs is differentiated."""
    of, inputs = total(name)

    def norm(gradients):
        return sum(x.square().sum() for x in gradients)

    def chained(*tensors):
        """The last input hangs on the first."""
        return of(*tensors[:-1], tensors[-1] * tensors[0].sum().tanh())

    every = tuple(range(len(inputs)))
    for function in (of, chained):
        first = torch.autograd.grad(function(*inputs), inputs, create_graph=True)
        found = torch.autograd.grad(norm(first), inputs)
        wanted = torch.func.grad(lambda *x, f=function: norm(torch.func.grad(f, every)(*x)), every)(
            *(x.detach() for x in inputs)
        )
        for x, y in zip(found, wanted, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3 * float(y.abs().max()))


@pytest.mark.parametrize("name", ["mlstm", "slstm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cells_without_second_derivatives_say_so(name, dtype):
    """Before a gradient that is silently constant could be used."""
    run, inputs = OPS[name]
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    ran = backends(lambda: run(*inputs))[name]
    found = run(*inputs)
    result = (found if isinstance(found, torch.Tensor) else found[0]).sum()
    if ran == "recurrent":
        assert torch.autograd.grad(result, inputs[0], create_graph=True)[0].requires_grad
        return
    with pytest.raises(ValueError, match=rf"^create_graph=True asks the backend '{ran}' of {name} for second deriv"):
        torch.autograd.grad(result, inputs[0], create_graph=True)


def test_cross_entropy():
    """Its gradients have gradients, as the sentence of the other one says."""
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, -100, 3]])
    assert gradgradcheck(lambda x: cross_entropy(x, targets), logits)
    found = torch.func.grad(lambda x: cross_entropy(x, targets))(logits.detach())
    torch.testing.assert_close(found, torch.autograd.grad(cross_entropy(logits, targets), logits)[0])
    with pytest.raises(ValueError, match=r"^linear_cross_entropy cannot be transformed by torch.func; use"):
        torch.func.grad(lambda x: linear_cross_entropy(x, torch.ones(5, 4), targets.clamp(min=0)))(torch.ones(1, 3, 4))


def test_a_named_backend_that_is_not_seen():
    x_BTHGV = normal(1, 2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"'numba' of slstm cannot run: torch.func, .*; use backend='auto'\.$"):
        torch.vmap(lambda x: slstm(x, None, backend="numba")[0])(x_BTHGV[None])
    with pytest.raises(ValueError, match=r"'numba' of slstm cannot run: torch traces this call or its tensors"):
        make_fx(lambda x: slstm(x, None, backend="numba")[0])(x_BTHGV)


class Other(torch.Tensor):
    """Of another class, as those of a library that shares out tensors are."""


def test_tracer():
    assert tracer() is None
    assert tracer([torch.ones(1), None, torch.nn.Parameter(torch.ones(1))]) is None
    assert tracer([None, torch.ones(1).as_subclass(Other)]) == TRACED
    with forward_ad.dual_level():
        assert tracer() == TRANSFORMED
    seen = []
    torch.vmap(lambda x: (seen.append(tracer()), x)[1])(torch.ones(2))
    torch.jit.trace(lambda x: (seen.append(tracer()), x + 1)[1], torch.ones(2), check_trace=False)
    make_fx(lambda x: (seen.append(tracer()), x + 1)[1])(torch.ones(2))
    assert seen == [TRANSFORMED, TRANSFORMED, TRACED]
    assert tracer() is None


def test_operators_of_ours_are_seen_by_tracers():
    """Triton's kernels are operators of torch, and the chunkwise form is made of torch's: only transforms stop them."""
    assert tracing_obstacle("triton", TRACED) is None
    assert tracing_obstacle("chunkwise", TRACED) is None
    assert tracing_obstacle("triton", TRANSFORMED) == tracing_obstacle("chunkwise", TRANSFORMED) == TRANSFORMED
    assert tracing_obstacle("numba", TRACED) == TRACED
    assert tracing_obstacle("recurrent", TRANSFORMED) is None


def test_graphs_for_other_runtimes():
    """They have the definition, or a form that the op says is plain, and no float64; other traces stay as they are."""
    x = torch.zeros(1)
    assert exact_dtype(x) is torch.float64
    with portable_graph():
        assert tracing_obstacle("chunkwise", TRACED) == tracing_obstacle("fused", TRACED) == PORTABLE
        assert tracing_obstacle("chunkwise", TRACED, ("chunkwise",)) is None
        assert tracing_obstacle("recurrent", TRACED) is None
        assert tracing_obstacle("numba", TRACED, ("numba",)) == TRACED
        assert exact_dtype(x) is torch.float32
        assert exact_dtype(x.double()) is torch.float64
    assert tracing_obstacle("fused", TRACED) is None
