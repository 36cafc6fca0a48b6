"""torch's own samples of nn.LSTM, its reference without a batch, and its table of errors, on ours.

They come with torch, in a private module that changes between versions; `test_interface` has cases of our own.
Different, because: second derivatives are those of backend="recurrent" or an error; m in c_n has no gradient.
"""

import copy
import io

import pytest
import torch
from rnn_cases import CELLS, NETS, close
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

pytestmark = pytest.mark.slow
kinds = pytest.mark.parametrize("kind", NETS)
SAMPLES, ERRORS = range(32), range(15)


@pytest.fixture(scope="module")
def common():
    """torch's module of samples, whose import forbids flags of backends to be set; they are allowed again."""
    module = pytest.importorskip("torch.testing._internal.common_modules")
    vars(torch.backends)["__allow_nonbracketed_mutation_flag"] = True
    return module


def samples(common, dtype=torch.float64, requires_grad=True):
    found = common.module_inputs_torch_nn_LSTM(None, "cpu", dtype, requires_grad, True)
    assert len(found) == len(SAMPLES)
    return found


def made(common, kind, number, **options):
    """The net of a sample, its arguments with our width of c, and the sample."""
    torch.manual_seed(number)
    sample = samples(common)[number]
    given = sample.constructor_input
    net = NETS[kind](*given.args, **given.kwargs, dtype=torch.float64, **options)
    arguments = list(sample.forward_input.args)
    if len(arguments) > 1:
        h, c = arguments[1]
        # a memory that the net can have
        with torch.no_grad():
            _, (_, c) = net(torch.randn(3, net.input_size, dtype=torch.float64))
        arguments[1] = (h, c.detach().requires_grad_())
    return net, arguments, sample


@kinds
@pytest.mark.parametrize("number", SAMPLES)
def test_forward(common, kind, number):
    net, arguments, sample = made(common, kind, number)
    y, state = net(*arguments)
    want, wanted = sample.reference_fn(net, *arguments)
    for mine, other in zip((y, *state), (want, *wanted), strict=True):
        close(mine, other)
    assert y.is_contiguous()


@pytest.mark.parametrize("number", SAMPLES)
def test_lstm_gives_torchs_numbers(common, number):
    net, arguments, sample = made(common, "lstm", number)
    theirs = nn.LSTM(*sample.constructor_input.args, **sample.constructor_input.kwargs, dtype=torch.float64)
    theirs.load_state_dict(net.state_dict())
    for mine, other in zip([net(*arguments)[0], *net(*arguments)[1]], [theirs(*arguments)[0], *theirs(*arguments)[1]],
                           strict=True):  # fmt: skip
        close(mine, other)


@kinds
@pytest.mark.parametrize("number", SAMPLES)
def test_grad(common, kind, number):
    """gradcheck over inputs, states and parameters; m of the state, which has no gradient, stays as it is."""
    net, arguments, _ = made(common, kind, number)
    names, weights = zip(*net.named_parameters(), strict=True)

    later = torch.randn(2, net.input_size, dtype=torch.float64)

    def run(x, *rest):
        hx, own = (None, rest) if len(arguments) == 1 else (net.pack_state(parts(rest)), rest[count:])
        called = dict(zip(names, own, strict=True))
        y, state = torch.func.functional_call(net, called, (x, hx))
        # c is in units of m: what comes of it has a derivative of its own
        return y, state[0], torch.func.functional_call(net, called, (later, state))[0]

    count, held = 0, []
    if len(arguments) > 1:
        unpacked = net.unpack_state(arguments[1])
        held = [part.detach().clone().requires_grad_() for part in unpacked]
        fixed = held.pop().detach() if kind != "lstm" else None
        count = len(held)

    def parts(given):
        return type(unpacked)(*given[:count], *([] if fixed is None else [fixed]))

    assert gradcheck(run, (arguments[0], *held, *weights), check_undefined_grad=False, fast_mode=True)


@pytest.mark.parametrize("kind", ["slstm", "lstm"])
@pytest.mark.parametrize("number", [0, 1, 30, 31])
def test_gradgrad_of_the_definition(common, kind, number):
    net, arguments, _ = made(common, kind, number, backend="recurrent")
    x = arguments[0]
    weights = [p for name, p in net.named_parameters() if "weight_hh" in name]

    def run(x, *_):
        return net(x, *(tuple(part.detach() for part in hx) for hx in arguments[1:]))[0]

    assert gradgradcheck(run, (x, *weights), fast_mode=True)


@kinds
def test_gradgrad_elsewhere_is_right_or_a_clear_error(common, kind):
    net = NETS[kind](3, 32)
    x = torch.randn(4, 2, 3, requires_grad=True)
    y, _ = net(x)
    with pytest.raises(ValueError, match="use backend='recurrent'"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@kinds
@pytest.mark.parametrize("number", SAMPLES)
def test_pickle_and_non_contiguous_tensors(common, kind, number):
    net, arguments, _ = made(common, kind, number)
    y, state = net(*arguments)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    other = torch.load(buffer, weights_only=False)
    assert repr(other) == repr(net)
    assert torch.equal(other(*arguments)[0], y)

    def strided(x):
        """The same numbers with gaps, and a gradient of its own."""
        return torch.stack([x, x], dim=-1)[..., 0].detach().requires_grad_()

    copied = [strided(arguments[0]), *(tuple(map(strided, hx)) for hx in arguments[1:])]
    assert not copied[0].is_contiguous()
    with torch.no_grad():
        for p in other.parameters():
            p.set_(torch.stack([p, p], dim=-1)[..., 0])
    found, after = other(*copied)
    for mine, wanted in zip((found, *after), (y, *state), strict=True):
        close(mine, wanted)
    y.sum().backward()
    found.sum().backward()
    close(copied[0].grad, arguments[0].grad)
    for mine, wanted in zip(other.parameters(), net.parameters(), strict=True):
        assert (mine.grad is None) == (wanted.grad is None)
        if mine.grad is not None:
            close(mine.grad, wanted.grad)


@kinds
@pytest.mark.parametrize("number", [0, 5, 31])
def test_factory_arguments_train_and_eval(common, kind, number):
    net, arguments, sample = made(common, kind, number)
    given = sample.constructor_input
    for device, dtype in (("meta", torch.float32), ("cpu", torch.float32), ("cpu", torch.float64)):
        other = NETS[kind](*given.args, **given.kwargs, device=device, dtype=dtype)
        assert {(p.device.type, p.dtype) for p in other.parameters()} == {(device, dtype)}
        with torch.device(device):
            assert {p.device.type for p in NETS[kind](*given.args, **given.kwargs).parameters()} == {device}
    assert torch.equal(copy.deepcopy(net).eval()(*arguments)[0], net.train()(*arguments)[0])


@kinds
@pytest.mark.parametrize("number", ERRORS)
def test_errors(common, kind, number):
    found = common.module_error_inputs_torch_nn_RNN_GRU(None, "cpu", torch.float32, False, True)
    if number >= len(found):
        pytest.skip("torch has fewer of them")
    error = found[number]
    given = error.module_error_input
    construct = given.constructor_input
    if error.error_on == common.ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(error.error_type, match=error.error_regex):
            NETS[kind](*construct.args, **construct.kwargs)
        return
    net = NETS[kind](*construct.args, **construct.kwargs)
    with pytest.raises(error.error_type, match=error.error_regex):
        net(*given.forward_input.args, **given.forward_input.kwargs)


@kinds
def test_cells(common, kind):
    for sample in common.module_inputs_torch_nn_LSTMCell(None, "cpu", torch.float64, True, True):
        cell = CELLS[kind](*sample.constructor_input.args, **sample.constructor_input.kwargs, dtype=torch.float64)
        x, (h, c) = sample.forward_input.args
        if kind != "lstm":
            c = cell(x)[1].detach().requires_grad_()
        found = cell(x, (h, c))
        for mine, other in zip(found, sample.reference_fn(cell, x, (h, c)), strict=True):
            close(mine, other)
