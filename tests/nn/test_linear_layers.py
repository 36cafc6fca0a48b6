"""Linear layers: torch's in all but speed, and their quantised forms."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional

from exlstm.nn.linear import Int4Linear, Int8Linear, Linear, linears, prepared, wide_linear
from exlstm.ops.linear import dequantised, to_int4, to_int8
from exlstm.runtime.backend import recorded

QUANTISED = pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])


def backends(work):
    with torch.no_grad(), recorded() as choices:
        work()
    return [choice.backend for choice in choices]


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_parameters_as_torch(bias):
    torch.manual_seed(1)
    ours = Linear(12, 7, bias=bias)
    torch.manual_seed(1)
    theirs = nn.Linear(12, 7, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, x in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], x)
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, nn.Linear)


def test_training_is_torch_to_the_bit():
    layer, x = Linear(12, 7), torch.randn(2, 12, requires_grad=True)
    with recorded() as choices:
        y = layer(x)
    assert [choice.backend for choice in choices] == ["torch"]
    assert torch.equal(y, functional.linear(x, layer.weight, layer.bias))
    y.sum().backward()
    assert layer.weight.grad is not None


def test_decoding_is_ours():
    layer, x = Linear(12, 7), torch.randn(1, 1, 12)
    assert backends(lambda: layer(x)) == ["numba"]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias))
    layer.requires_grad_(False)
    with recorded() as choices:
        layer(x)
    assert [choice.backend for choice in choices] == ["numba"], "a frozen layer needs no gradients"


@torch.no_grad()
def test_what_torch_refuses_is_refused():
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(12, 7)(torch.randn(1, 12).bfloat16())
    with pytest.raises(RuntimeError, match="shape"):
        Linear(12, 7)(torch.randn(1, 13))


@torch.no_grad()
def test_a_quantised_layer_refuses_other_widths():
    for kind in (Int8Linear, Int4Linear):
        with pytest.raises(ValueError, match="shape"):
            kind(Linear(12, 7))(torch.randn(1, 13))


@torch.no_grad()
def test_meta_and_double():
    assert Linear(12, 7, device="meta")(torch.empty(1, 12, device="meta")).shape == (1, 7)
    layer, x = Linear(12, 7).double(), torch.randn(1, 12).double()
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))


def test_export_sees_torch():
    layer = Linear(12, 7).requires_grad_(False)
    x = torch.randn(1, 12)
    program = torch.export.export(layer, (x,))
    assert any("linear" in str(node.target) for node in program.graph.nodes)


@torch.no_grad()
def test_several_layers_as_one_job():
    layers = [Linear(20, 9, bias=False), Int8Linear(Linear(20, 6)), Int4Linear(Linear(20, 11, bias=False))]
    gates, x = [Linear(20, 2), Linear(20, 3)], torch.randn(2, 1, 20)
    assert backends(lambda: linears(x, layers, wide=gates)) == ["numba"]
    wanted = [*(layer(x) for layer in layers), *(wide_linear(gate, x) for gate in gates)]
    for got, want in zip(linears(x, layers, wide=gates), wanted, strict=True):
        assert torch.equal(got, want)
    narrow = [layer.bfloat16() for layer in layers[:1]]
    found = linears(x.bfloat16(), narrow, wide=[gate.bfloat16() for gate in gates])
    assert [y.dtype for y in found] == [torch.bfloat16, torch.float32, torch.float32]


def shrink(layer):
    layer.weight.data = layer.weight.data[:4]
    layer.bias.data = layer.bias.data[:4]


def turn(layer):
    layer.weight.data = layer.weight.data.T


def narrow(layer):
    layer.bfloat16()


CHANGES = {
    "in place": lambda layer: layer.weight.mul_(2),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(20, 20))),
    "other memory": lambda layer: setattr(layer.weight, "data", torch.randn(20, 20)),
    "fewer outputs in the same memory": shrink,
    "transposed in the same memory": turn,
    "another bias": lambda layer: setattr(layer, "bias", nn.Parameter(torch.randn(20))),
    "loaded": lambda layer: layer.load_state_dict(Linear(20, 20).state_dict()),
    "narrower": narrow,
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_prepared_is_prepared_again_when_a_weight_changes(change):
    layers, x = [Linear(20, 9), Linear(20, 20)], torch.randn(1, 20)
    linears(x, layers), layers[1](x)
    CHANGES[change](layers[1])
    if change == "narrower":
        x = x.bfloat16()
        layers[0].bfloat16()
    for got in (linears(x, layers)[1], layers[1](x)):
        assert got.dtype == x.dtype
        torch.testing.assert_close(got, functional.linear(x, layers[1].weight, layers[1].bias))


@torch.no_grad()
def test_quantised_weights_may_change_too():
    layer, x = Int8Linear(Linear(20, 9)), torch.randn(1, 20)
    y = layer(x)
    layer.scale_N.mul_(2)
    torch.testing.assert_close(layer(x) - layer.bias, 2 * (y - layer.bias))
    layer.load_state_dict(Int8Linear(Linear(20, 9)).state_dict(), assign=True)
    torch.testing.assert_close(layer(x), functional.linear(x, dequantised(layer.packed()), layer.bias))


@torch.no_grad()
def test_copies_and_dead_layers_leave_nothing_behind():
    layer, x = Linear(20, 9), torch.randn(1, 20)
    layer(x)
    gc.collect()  # layers of other tests
    twin, kept = copy.deepcopy(layer), len(prepared)
    twin.weight.zero_()
    assert torch.equal(twin(x)[0], twin.bias)
    assert not torch.equal(layer(x)[0], layer.bias)
    del twin
    gc.collect()
    assert len(prepared) == kept


@pytest.mark.parametrize("gradient", [False, True])
def test_emulated_bfloat16_is_bfloat16(gradient, monkeypatch):
    """Inputs and the result are rounded, the sum is not; in parts as at once; under autocast as without."""
    monkeypatch.setattr("exlstm.ops.linear.bfloat16_is_emulated", lambda: True)
    monkeypatch.setattr("exlstm.ops.linear.formats.WIDENED_NUMEL", 500)
    layer, x = Linear(64, 30), torch.randn(100, 64)
    want = functional.linear(x.bfloat16().double(), layer.weight.bfloat16().double(), layer.bias.bfloat16().double())
    with torch.set_grad_enabled(gradient):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wide = layer(x)
            assert torch.equal(layer(x.bfloat16()), wide)
            assert torch.equal(linears(x.bfloat16(), [layer, layer])[1], wide)
        narrow = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    for y in (wide, narrow):
        assert y.dtype == torch.bfloat16
        assert y.requires_grad == gradient
        torch.testing.assert_close(y.double(), want, rtol=2**-8, atol=1e-6)
    if gradient:
        wide.sum().backward()
        torch.testing.assert_close(layer.weight.grad, x.bfloat16().float().sum(0).expand(30, 64), rtol=2**-7, atol=0.2)


@QUANTISED
def test_emulated_bfloat16_of_fewer_bits(kind, monkeypatch):
    """Expanded a few rows at a time: every row, its scale and its offset are its own."""
    layer, x = Linear(200, 30).bfloat16(), torch.randn(100, 200).bfloat16()
    small = kind(layer)
    want = functional.linear(x.double(), dequantised(small.packed()).bfloat16().double(), layer.bias.double())
    monkeypatch.setattr("exlstm.ops.linear.bfloat16_is_emulated", lambda: True)
    monkeypatch.setattr("exlstm.ops.linear.formats.WIDENED_NUMEL", 1000)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert backends(lambda: small(x)) == ["torch"]
        torch.testing.assert_close(small(x).double(), want, rtol=2**-8, atol=1e-5)


def test_quantising_in_parts_is_quantising(monkeypatch):
    weight = torch.randn(30, 200)
    whole = [*to_int8(weight), *to_int4(weight)[:3]]
    monkeypatch.setattr("exlstm.ops.linear.formats.WIDENED_NUMEL", 1000)
    for x, y in zip(whole, [*to_int8(weight), *to_int4(weight)[:3]], strict=True):
        assert torch.equal(x, y)


def test_several_layers_with_gradients():
    layers, gates, x = [Linear(20, 9), Linear(20, 6)], [Linear(20, 2)], torch.randn(2, 5, 20)
    found = linears(x, layers, wide=gates)
    for got, layer in zip(found, [*layers, *gates], strict=True):
        assert torch.equal(got, functional.linear(x, layer.weight, layer.bias))
        assert got.requires_grad


@torch.no_grad()
def test_hooks_are_called():
    layers, seen = [Linear(20, 9), Linear(20, 6)], []
    layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    linears(torch.randn(1, 20), layers)
    assert len(seen) == 1


@torch.no_grad()
@QUANTISED
def test_quantised_layers_are_their_weights(kind):
    layer = kind(Linear(140, 9))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(300, 140).to(dtype)
        w_NK = dequantised(layer.packed())
        assert backends(lambda x=x: layer(x)) == backends(lambda x=x: layer(x[:1])) == ["numba"]
        assert layer(x).dtype == dtype
        few, many = layer(x[:1]), layer(x)
        for y, inputs in ((few, x[:1]), (many, x)):
            want = inputs.double() @ w_NK.double().T + layer.bias
            torch.testing.assert_close(y.double(), want, rtol=0.02, atol=0.06 if dtype == torch.bfloat16 else 1e-4)


@torch.no_grad()
@QUANTISED
def test_quantised_layers_travel(kind):
    layer, x = kind(Linear(140, 9)), torch.randn(1, 140)
    y = layer(x)
    assert not list(layer.parameters())
    other = kind(Linear(140, 9))
    other.load_state_dict(layer.state_dict())
    twin = copy.deepcopy(layer)
    moved = copy.deepcopy(layer).to(torch.bfloat16).to(torch.float32)
    for same in (other, twin):
        assert torch.equal(same(x), y)
    torch.testing.assert_close(moved(x), y, rtol=0, atol=2e-3)  # the bias was rounded
    for name, buffer in layer.to(torch.bfloat16).named_buffers():
        if name not in ("bias", "like"):
            assert torch.equal(buffer, twin.get_buffer(name)), "scales are never rounded"
    # copies do not share memory
    twin.scale_N.zero_() if kind is Int8Linear else twin.scale_NG.zero_()
    assert torch.equal(other(x), y)


@torch.no_grad()
@QUANTISED
def test_quantised_layers_without_memory(kind):
    """On the meta device, as when a model is described or laid out for loading."""
    full = kind(Linear(140, 9))
    for layer in (copy.deepcopy(full).to("meta"), kind(Linear(140, 9, device="meta"))):
        assert layer(torch.empty(2, 140, device="meta")).shape == (2, 9)
        for (name, there), (_, here) in zip(layer.named_buffers(), full.named_buffers(), strict=True):
            assert (there.is_meta, there.shape, there.dtype) == (True, here.shape, here.dtype), name


@QUANTISED
def test_gradients_pass_through_quantised_layers(kind):
    layer, x = kind(Linear(140, 9)), torch.randn(2, 140, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad[0], dequantised(layer.packed()).sum(0))
