"""Ways of torch to run a module: compiled, exported, transformed, in narrow precision, on several processes."""

import copy
import gc

import pytest
import torch
import torch.distributed
from rnn_cases import NETS, close, random_hidden
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from accuracy import DRAWS, compare

kinds = pytest.mark.parametrize("kind", NETS)


def loss_of(found):
    y, (h, c) = found
    return y.square().sum() + h.sum() + c.sum()


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("bidirectional", [False, True])
def test_compiled_whole(kind, bidirectional):
    """One graph, forward and backward, about as accurate as the kernels, and but for mLSTM within 1e-5 of them."""
    torch.compiler.reset()  # torch counts the graphs of all nets of a class
    net = NETS[kind](3, 32, 2, batch_first=True, bidirectional=bidirectional)
    compiled, exact = torch.compile(copy.deepcopy(net), fullgraph=True), copy.deepcopy(net).double()
    reset = torch.zeros(2, 5, dtype=torch.bool)
    reset[0, 2] = True
    for options in ({}, {"reset": reset, "lengths": torch.tensor([5, 3])}):
        draws = []
        for _ in DRAWS:
            x, hx = torch.randn(2, 5, 3), random_hidden(net, 2)
            draws.append([named_results(module, x, hx, options) for module in (exact, net, compiled)])
        compare(draws, factor=3)
        for _, own, found in draws:
            # the normalizer of an mLSTM may be near 0, and its quotient loses digits then in any order of sums
            for name in () if kind == "mlstm" else own:
                # gradients of sums are tens, where float32's own steps are larger than 1e-5
                size = 1.0 if name in ("y", "h", "c") else max(1.0, float(own[name].abs().max()))
                torch.testing.assert_close(found[name], own[name], rtol=0, atol=1e-5 * size, msg=name)


def named_results(module, x, hx, options):
    """Outputs, state and gradients by name, in the precision of the module."""
    dtype = next(module.parameters()).dtype
    rows = x.to(dtype, copy=True).requires_grad_()
    y, (h, c) = module(rows, tuple(z.to(dtype) for z in hx), **options)
    named = dict(module.named_parameters())
    gradients = torch.autograd.grad(loss_of((y, (h, c))), [rows, *named.values()])
    names = ["x", *(name.removeprefix("_orig_mod.") for name in named)]
    return {"y": y.detach(), "h": h.detach(), "c": c.detach()} | dict(zip(names, gradients, strict=True))


@pytest.mark.slow
def test_torchs_lstm_cannot_be_compiled_whole():
    """What sets ours apart; when torch learns it, the documentation changes."""
    with pytest.raises(Exception, match="RNN"):
        torch.compile(nn.LSTM(3, 4), fullgraph=True)(torch.randn(2, 5, 3))


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("strict", [False, True])
def test_exported(kind, strict):
    """A program without operators of ours, which runs where exlstm is not installed."""
    net = NETS[kind](3, 32, batch_first=True).eval()
    x, hx = torch.randn(2, 4, 3), random_hidden(net, 2)
    program = torch.export.export(net, (x, hx), strict=strict)
    assert "exlstm" not in str(program.graph)
    mine, other = program.module()(x, hx), net(x, hx)
    close(mine[0], other[0], 1e-5)
    close(mine[1][0], other[1][0], 1e-5)


@kinds
def test_vmap_over_weights(kind):
    """An ensemble in one call, as torch's LSTM allows on a CPU."""
    nets = [NETS[kind](3, 32) for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(nets)
    x = torch.randn(4, 2, 3)

    def run(weights, buffers):
        return torch.func.functional_call(nets[0], (weights, buffers), (x,))[0]

    found = torch.func.vmap(run)(weights, buffers)
    for one, net in zip(found, nets, strict=True):
        close(one, net(x)[0], 1e-5)


@kinds
def test_autocast_keeps_the_state_wide(kind):
    net = NETS[kind](3, 32, 2)
    x = torch.randn(6, 2, 3)
    exact, _ = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, (h, c) = net(x)
        y, (h, c) = net(x, (h, c))
        y, _ = net(x)
    assert (h.dtype, c.dtype) == (torch.float32, torch.float32)
    close(y.float(), exact, 0.1)
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@kinds
def test_gradient_checkpointing(kind):
    net = NETS[kind](3, 32, 2)
    x = torch.randn(6, 2, 3, requires_grad=True)
    inputs = [x, *net.parameters()]
    plain = torch.autograd.grad(loss_of(net(x)), inputs)
    recomputed = torch.autograd.grad(loss_of(checkpoint(net, x, use_reentrant=False)), inputs)
    for mine, other in zip(recomputed, plain, strict=True):
        close(mine, other, 1e-6 * max(1, other.abs().max().item()))


def gradients_on_processes(net, x):
    """Gradients of a copy of the net inside DistributedDataParallel."""
    wrapped = DistributedDataParallel(copy.deepcopy(net))
    wrapped.zero_grad()
    loss_of(wrapped(x)).backward()
    return [p.grad.clone() for p in wrapped.module.parameters()]


@kinds
def test_distributed_data_parallel(kind, tmp_path):
    net = NETS[kind](3, 32)
    x = torch.randn(6, 2, 3)
    loss_of(net(x)).backward()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = gradients_on_processes(net, x)
    finally:
        # the wrapper ends first: ending the group from within it waits, with Python's lock, for threads that want it
        gc.collect()
        torch.distributed.destroy_process_group()
    for mine, other in zip(found, net.parameters(), strict=True):
        close(mine, other.grad, 1e-5 * max(1, other.grad.abs().max().item()))
