"""The interface of torch.nn.LSTM: constructor, call, state, errors; and what it does not have, lengths and resets."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rnn_cases import NETS, Stack, close, random_hidden, with_large_weights
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import exlstm
from exlstm.rnn import LSTM, MLSTM, SLSTM, LSTMCell, MLSTMCell, SLSTMCell, replace_lstm
from exlstm.rnn.arguments import ShapeError

kinds = pytest.mark.parametrize("kind", NETS)


def test_public_names_are_the_drop_ins():
    assert (exlstm.SLSTM, exlstm.MLSTM, exlstm.LSTM) == (SLSTM, MLSTM, LSTM)
    assert exlstm.SLSTM is not exlstm.mixers.slstm.SLSTM


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("bias", "batch_first"), [(True, False), (False, True)])
@pytest.mark.parametrize("form", ["batched", "unbatched", "packed"])
def test_lstm_is_torchs(layers, proj_size, bidirectional, bias, batch_first, form):
    """Outputs, states and all gradients, with weights that load both ways."""
    options = {
        "num_layers": layers, "proj_size": proj_size, "bidirectional": bidirectional, "bias": bias,
        "batch_first": batch_first,
    }  # fmt: skip
    theirs = nn.LSTM(3, 5, dtype=torch.float64, **options)
    ours = LSTM(3, 5, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert repr(ours) == repr(theirs)
    places = layers * (1 + bidirectional)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    h, c = torch.randn(places, 4, proj_size or 5).double(), torch.randn(places, 4, 5).double()
    found = []
    for net in (theirs, ours):
        leaves = [x.clone().requires_grad_(), h.clone().requires_grad_(), c.clone().requires_grad_()]
        rows, *hx = leaves
        if form == "packed":
            given = pack_padded_sequence(rows, [3, 6, 1, 4], batch_first=True, enforce_sorted=False)
        elif form == "unbatched":
            given, hx = rows[0], [part[:, 0] for part in hx]
        else:
            given = rows if batch_first else rows.transpose(0, 1)
        y, state = net(given, tuple(hx))
        y = y.data if form == "packed" else y
        loss = (y * torch.arange(y.numel()).view_as(y)).sum() + (state[0] ** 2).sum() + (state[1] ** 3).sum()
        found.append([y, *state, *torch.autograd.grad(loss, [*leaves, *net.parameters()])])
    for mine, other in zip(found[1], found[0], strict=True):
        close(mine, other)


def test_lstm_is_torchs_in_float32():
    theirs, ours = nn.LSTM(16, 32, 2), LSTM(16, 32, 2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(20, 4, 16)
    for mine, other in zip([ours(x)[0], *ours(x)[1]], [theirs(x)[0], *theirs(x)[1]], strict=True):
        close(mine, other, 1e-6)


shapes = {
    "layers": st.integers(1, 2),
    "bidirectional": st.booleans(),
    "lengths": st.lists(st.integers(1, 7), min_size=1, max_size=4),
    "with_state": st.booleans(),
    "projected": st.booleans(),
    "seed": st.integers(0, 10**6),
}


def check_rows(kind, layers, bidirectional, lengths, with_state, projected, seed):
    """Packed, with lengths=, and each sequence alone: outputs, states, gradients, with resets anywhere."""
    torch.manual_seed(seed)
    # a projected h recurs in one head
    options = {} if kind == "lstm" else {"num_heads": 1 if projected else 2}
    net = with_large_weights(NETS[kind](
        3, 4, layers, batch_first=True, bidirectional=bidirectional, proj_size=2 * projected, dtype=torch.float64,
        **options,
    ))  # fmt: skip
    B, T = len(lengths), max(lengths)
    x = torch.randn(B, T, 3, dtype=torch.float64)
    padding = torch.arange(T) >= torch.tensor(lengths)[:, None]
    x[padding] = torch.nan
    reset = torch.rand(B, T) < 0.25
    hidden = random_hidden(net, B) if with_state else None
    found = []
    for form in ("alone", "lengths", "packed"):
        rows = x.clone().requires_grad_()
        hx = None if hidden is None else tuple(part.clone().requires_grad_() for part in hidden)
        if form == "alone":
            outputs, state = Stack(net)(rows, lengths, reset, hx)
        elif form == "lengths":
            y, state = net(rows, hx, lengths=torch.tensor(lengths), reset=reset)
            assert (y[padding] == 0).all()
            outputs = [y[b, :n] for b, n in enumerate(lengths)]
        else:
            packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
            y, state = net(packed, hx, reset=reset)
            assert torch.equal(y.batch_sizes, packed.batch_sizes)
            assert torch.equal(y.sorted_indices, packed.sorted_indices)
            padded, _ = pad_packed_sequence(y, batch_first=True)
            outputs = [padded[b, :n] for b, n in enumerate(lengths)]
        loss = sum((y * torch.arange(y.numel()).view_as(y)).sum() for y in outputs) + (state[0] ** 2).sum()
        loss = loss + (state[1] * torch.arange(state[1].shape[-1])).sum()
        inputs = [rows, *([] if hx is None else hx), *net.parameters()]
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        assert (gradients[0][padding] == 0).all()
        found.append([*outputs, *state, *gradients])
    for mine in found[1:]:
        for one, other in zip(mine, found[0], strict=True):
            scale = other.abs().max().clamp(min=1).item() if other.numel() else 1
            close(one, other, 1e-11 * scale)


@kinds
@settings(max_examples=8)
@given(**shapes)
def test_packed_and_lengths_are_each_sequence_alone(kind, **case):
    check_rows(kind, **case)


@pytest.mark.slow
@kinds
@settings(max_examples=60)
@given(**shapes)
def test_packed_and_lengths_are_each_sequence_alone_widely(kind, **case):
    check_rows(kind, **case)


def in_parts(net, x, reset):
    """Outputs and last state of a sequence that is cut into calls."""
    parts, hx = [], None
    for first, last in ((0, 1), (1, 20), (20, 21), (21, 40)):
        y, hx = net(x[:, first:last], hx, reset=reset[:, first:last])
        parts.append(y)
    return [torch.cat(parts, dim=1), *hx]


@kinds
def test_cuts_change_nothing(kind):
    """In float32 a cut result may be twice as far from the exact one as the result of one call."""
    exact = NETS[kind](5, 32, 2, batch_first=True, dtype=torch.float64)
    x, reset = torch.randn(3, 40, 5, dtype=torch.float64), torch.rand(3, 40) < 0.1
    narrow = copy.deepcopy(exact).float()
    exact.load_state_dict(narrow.state_dict())
    x = x.float().double()
    y, state = exact(x, reset=reset)
    once, narrow_state = narrow(x.float(), reset=reset)
    for cut, want in zip(in_parts(exact, x, reset), (y, *state), strict=True):
        close(cut, want, 1e-12 * max(1, want.abs().max().item()))
    for cut, whole, want in zip(in_parts(narrow, x.float(), reset), (once, *narrow_state), (y, *state), strict=True):
        error, allowed = ((found.double() - want).abs().max().item() for found in (cut, whole))
        assert error <= 2 * allowed + 1e-6 * want.abs().max().item()


@kinds
def test_states_of_narrow_weights_lose_nothing_at_a_cut(kind):
    """h is kept as it recurs, not as it is given out."""
    net = NETS[kind](5, 32, dtype=torch.bfloat16)
    x = torch.randn(12, 2, 5, dtype=torch.bfloat16)
    y, state = net(x)
    assert y.dtype is torch.bfloat16
    assert {part.dtype for part in state} == {torch.float32}
    hx = None
    for t in range(12):
        _, hx = net(x[t : t + 1], hx)
    if kind == "mlstm":  # a chunk sums its steps in another order
        close(hx[1], state[1], 1e-2 * state[1].abs().max().item())
    else:
        close(hx[1], state[1], 1e-5 * state[1].abs().max().item())


@kinds
@pytest.mark.parametrize("packed", [False, True])
def test_a_state_times_zero_is_a_reset(kind, packed):
    """Bit for bit, as actors of reinforcement learning do it."""
    net = NETS[kind](5, 32, 2)
    x, done = torch.randn(6, 3, 5), torch.tensor([True, False, True])
    hx = random_hidden(net, 3)
    reset = torch.zeros(6, 3, dtype=torch.bool)
    reset[0] = done
    alive = (1 - done.float()).view(1, -1, 1)
    given = pack_padded_sequence(x, [6, 4, 2]) if packed else x
    ours, state = net(given, hx, reset=reset)
    by_mask, masked = net(given, (alive * hx[0], alive * hx[1]))
    assert torch.equal(ours.data, by_mask.data)
    for mine, other in zip(state, masked, strict=True):
        assert torch.equal(mine, other)


@kinds
def test_no_state_is_zeros_and_zeros_are_as_wide_as_torchs(kind):
    net = NETS[kind](5, 32, 2)
    x = torch.randn(6, 3, 5)
    y, state = net(x)
    by_hand = torch.zeros(2, 3, 32), torch.zeros(2, 3, 32)
    for hx in (net.zero_state(3), by_hand, list(by_hand)):
        other, after = net(x, hx)
        assert torch.equal(other, y)
        assert all(map(torch.equal, after, state))


@kinds
def test_states_are_values(kind):
    net = NETS[kind](5, 32)
    x, hx = torch.randn(6, 3, 5), random_hidden(net, 3)
    before = [part.clone() for part in hx]
    y, after = net(x, hx)
    with torch.no_grad():
        y, after = net(x, hx)
        kept = [part.clone() for part in after]
        net(x, after)
    assert all(map(torch.equal, hx, before))
    assert all(map(torch.equal, after, kept))
    assert type(after) is tuple
    assert after[0].shape == (1, 3, 32)
    assert after[1].shape == (1, 3, net.state_size)
    assert all(map(torch.equal, pickle.loads(pickle.dumps(after)), after))
    assert all(map(torch.equal, net.pack_state(net.unpack_state(after)), after))
    close(after[0][0], y[-1], 0)


@kinds
def test_stateful_training_with_detached_states(kind):
    """Truncated backpropagation through time: a loop that works with torch's LSTM."""
    torch.manual_seed(1)
    net, out = NETS[kind](1, 16, batch_first=True), nn.Linear(16, 1)
    wave = torch.sin(torch.arange(400) * 0.3).view(1, -1, 1)
    optimizer = torch.optim.Adam([*net.parameters(), *out.parameters()], lr=1e-2)
    losses, hx = [], None
    for step in range(120):
        place = step % 12 * 32
        x, target = wave[:, place : place + 32], wave[:, place + 1 : place + 33]
        hx = None if place == 0 else hx
        y, hx = net(x, hx)
        loss = ((out(y) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hx = tuple(part.detach() for part in hx)
        losses.append(loss.item())
    assert sum(losses[-12:]) < 0.3 * sum(losses[:12])


@kinds
def test_pickle_deepcopy_and_weights_that_are_replaced(kind):
    net = with_large_weights(NETS[kind](5, 32, 2, bidirectional=True, dtype=torch.float64))
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    y = net(x)[0]
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x)[0], y)
    # a replaced weight is the one that is used, and a reparametrized one is, too
    name = "weight_v_l0" if kind == "mlstm" else "weight_hh_l0"
    setattr(net, name, nn.Parameter(getattr(net, name) * 0.5))
    halved = net(x)[0]
    assert not torch.allclose(halved, y)
    setattr(net, name, nn.Parameter(getattr(net, name) * 2))
    normed = nn.utils.parametrizations.weight_norm(net, name)
    close(normed(x)[0], y, 1e-9)


@kinds
def test_functional_call_and_devices(kind):
    net = NETS[kind](5, 32)
    x = torch.randn(6, 3, 5)
    doubled = {name: p * 2 for name, p in net.named_parameters()}
    called = torch.func.functional_call(net, doubled, (x,))[0]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    close(called, net(x)[0], 1e-6)
    assert {p.device.type for p in NETS[kind](5, 32, device="meta").parameters()} == {"meta"}
    with torch.device("meta"):
        assert {p.device.type for p in NETS[kind](5, 32).parameters()} == {"meta"}
    assert {p.dtype for p in NETS[kind](5, 32, dtype=torch.float64).parameters()} == {torch.float64}


@kinds
def test_dropout_is_between_layers_in_training(kind):
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        NETS[kind](5, 32, dropout=0.1)
    net = NETS[kind](5, 32, 2, dropout=0.5)
    x = torch.randn(6, 3, 5)
    assert not torch.equal(net(x)[0], net(x)[0])
    net.dropout = 0.0
    assert torch.equal(net(x)[0], net(x)[0])
    net.dropout = 1.0
    # the second layer sees nothing, so rows are alike
    assert torch.equal(net(x)[0][:, 0], net(x)[0][:, 1])
    assert torch.equal(net.eval()(x)[0], net(x)[0])


@kinds
def test_batches_of_no_rows(kind):
    net = NETS[kind](5, 32)
    x = torch.randn(6, 0, 5, requires_grad=True)
    y, (h, c) = net(x)
    assert (y.shape, h.shape, c.shape) == ((6, 0, 32), (1, 0, 32), (1, 0, net.state_size))
    (y.sum() + h.sum() + c.sum()).backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in net.parameters())


@kinds
def test_rows_of_no_steps_keep_their_state(kind):
    net = NETS[kind](5, 32)
    hx = random_hidden(net, 2)
    y, (h, c) = net(torch.randn(4, 2, 5), hx, lengths=[0, 4])
    assert torch.equal(h[:, 0], hx[0][:, 0])
    assert torch.equal(c[:, 0], hx[1][:, 0])
    assert (y[:, 0] == 0).all()


@kinds
def test_states_stay_finite(kind):
    """A dead row's state is multiplied by 0, and infinity would make it NaN."""
    net = NETS[kind](3, 32)
    y, (h, c) = net(torch.randn(50, 4, 3) * 1e4)
    assert all(part.isfinite().all() for part in (y, h, c))


@kinds
def test_training_at_a_high_rate_stays_finite(kind):
    net = NETS[kind](3, 32)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.randn(10, 8, 3)
        loss = (net(x)[0].sum(-1) - x.cumsum(0).sum(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((10, 0), {}, ValueError, "hidden_size must be greater than zero"),
        ((0, 5), {}, ValueError, "input_size must be greater than zero"),
        ((10, 10, 0), {}, ValueError, "num_layers must be greater than zero"),
        ((3.0, 5), {}, TypeError, "input_size should be of type int, got: float"),
        ((3, "5"), {}, TypeError, "hidden_size should be of type int, got: str"),
        ((3, 5), {"bias": 0}, TypeError, "bias should be of type bool, got: int"),
        ((3, 5), {"batch_first": "True"}, TypeError, "batch_first should be of type bool, got: str"),
        ((3, 5), {"dropout": 1.5}, ValueError, "dropout should be a number in range"),
        ((3, 5), {"dropout": True}, ValueError, "dropout should be a number in range"),
        ((3, 5), {"proj_size": 5}, ValueError, "proj_size has to be smaller than hidden_size"),
        ((3, 5), {"proj_size": -1}, ValueError, "proj_size should be a positive integer or zero"),
    ],
)
@kinds
def test_constructors_refuse_what_torch_refuses(kind, arguments, options, error, text):
    with pytest.raises(error, match=text):
        NETS[kind](*arguments, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_heads": 3}, "num_heads is 3; it must divide hidden_size, 4"),
        ({"forget_bias": "one"}, "forget_bias is 'one'; it must be one of"),
        ({"num_heads": 2, "proj_size": 2}, "num_heads is 2, and proj_size 2"),
    ],
)
def test_slstm_refuses_options(options, text):
    with pytest.raises(ValueError, match=text):
        SLSTM(3, 4, **options)


def calls(net):
    """Wrong calls: arguments, options, and what the error says."""
    x, h, c = torch.randn(6, 3, 5), *net.zero_state(3)
    return [
        ((torch.randn(5),), {}, "Expected input to be 2D or 3D, got 1D instead"),
        ((torch.randn(1, 6, 3, 5),), {}, "Expected input to be 2D or 3D, got 4D instead"),
        ((x.double(),), {}, r"RNN input dtype .* does not match weight dtype .* Convert input: input\.to\(.*\)"),
        ((torch.randn(6, 3, 4),), {}, "input.size.-1. must be equal to input_size. Expected 5, got 4"),
        ((x, (h[:, 0], c[:, 0])), {}, "For batched 3-D input, hx and cx should also be 3-D but got .2-D, 2-D."),
        ((x[:, 0], (h, c)), {}, "For unbatched 2-D input, hx and cx should also be 2-D but got .3-D, 3-D."),
        ((x, (h[:, :2], c)), {}, r"Expected hidden\[0\] size \(1, 3, 32\), got \[1, 2, 32\]"),
        ((x, (h, c[..., 1:])), {}, r"Expected hidden\[1\] size .*; .* take zero_state\(batch\)"),
        ((x, (h, torch.ones(1, 3, 31))), {}, r"Expected hidden\[1\] size"),
        ((x, h), {}, "hx is a Tensor; it must be the pair"),
        ((x, (h.double(), c)), {}, r"hidden\[0\] is torch.float64"),
        ((torch.randn(0, 3, 5),), {}, "Expected sequence length to be larger than 0 in RNN"),
        ((x,), {"lengths": [1, 2]}, "lengths is .*; it must hold an integer for each of the 3 rows"),
        ((x,), {"lengths": [1, 2, 7]}, "lengths holds 7; it must lie between 0 and the 6 steps"),
        ((x,), {"reset": torch.zeros(3, 6, dtype=torch.bool)}, r"it must be torch.bool of shape \(6, 3\)"),
        ((x,), {"reset": torch.zeros(6, 3)}, "reset is torch.float32"),
        ((pack_sequence([x[:, 0]]),), {"lengths": [6]}, "lengths is given beside a PackedSequence"),
        ((x.to("meta"),), {}, "Input and parameter tensors are not at the same device"),
    ]


@kinds
@pytest.mark.parametrize("number", range(18))
def test_wrong_calls_say_what_is_wrong(kind, number):
    net = NETS[kind](5, 32)
    arguments, options, text = calls(net)[number]
    with pytest.raises(ShapeError, match=text):
        net(*arguments, **options)
    assert issubclass(ShapeError, ValueError)
    assert issubclass(ShapeError, RuntimeError)


def test_hand_made_memory_of_torchs_width_must_be_zeros():
    net = SLSTM(5, 32)
    with pytest.raises(ShapeError, match=r"Expected hidden\[1\] size \(1, 3, 96\), got \[1, 3, 32\]"):
        net(torch.randn(6, 3, 5), (torch.zeros(1, 3, 32), torch.ones(1, 3, 32)))


CELLS = {"slstm": (SLSTMCell, SLSTM), "mlstm": (MLSTMCell, MLSTM), "lstm": (LSTMCell, LSTM)}


@kinds
def test_cells_step_as_nets(kind):
    cell, net = (made(5, 32, dtype=torch.float64) for made in CELLS[kind])
    with_large_weights(net)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in net.state_dict().items()})
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    y, (h, c) = net(x)
    hx = None
    for t in range(7):
        hx = cell(x[t], hx)
        close(hx[0], y[t])
    close(hx[1], c[0])
    one = cell(x[0, 1], tuple(part[1] for part in cell.zero_state(3)))
    close(one[0], y[0, 1])
    with pytest.raises(ShapeError, match=r"Expected hidden\[1\]"):
        cell(x[0], (hx[0], hx[1][:2]))
    with pytest.raises(ShapeError, match="Expected input to be 1D or 2D, got 3D instead"):
        cell(x)


def test_lstm_cell_is_torchs():
    theirs, ours = nn.LSTMCell(5, 8), LSTMCell(5, 8)
    ours.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(3, 5), (torch.randn(3, 8), torch.randn(3, 8))
    for mine, other in zip(ours(x, hx), theirs(x, hx), strict=True):
        close(mine, other, 1e-6)


def test_forget_biases_are_spread_and_can_be_set_again():
    net = SLSTM(5, 32, 2, num_heads=1)
    spread = net.bias_ih_l0[32:64].clone()
    assert spread.max() == 5
    assert spread.min() == -7
    assert (net.bias_ih_l0[:32] == 0).all()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.zero_() if "bias" in name else nn.init.orthogonal_(p)
    net.reset_forget_bias()
    assert torch.equal(net.bias_ih_l0[32:64], spread)
    assert (net.bias_hh_l0 == 0).all()


@pytest.mark.parametrize(("kind", "made"), [("slstm", SLSTM), ("mlstm", MLSTM), ("lstm", LSTM)])
def test_replace_lstm_swaps_every_one(kind, made):
    shared = nn.LSTM(4, 4)
    model = nn.ModuleDict({
        "a": nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64),
        "b": nn.Sequential(shared, nn.Linear(2, 2)), "c": shared,
    }).eval()  # fmt: skip
    weights = shared.state_dict()
    assert replace_lstm(model, kind) is model
    assert {type(model["a"]), type(model["c"])} == {made}
    assert model["b"][0] is model["c"]
    assert (model["a"].num_layers, model["a"].bidirectional, model["a"].batch_first) == (2, True, True)
    assert model["a"].weight.dtype is torch.float64
    assert not model["a"].training
    if kind == "lstm":
        assert all(torch.equal(value, weights[name]) for name, value in model["c"].state_dict().items())
    assert type(replace_lstm(nn.LSTM(3, 4), kind)) is made


def test_replace_lstm_refuses():
    with pytest.raises(ValueError, match=r"there is no torch.nn.LSTM in this Linear"):
        replace_lstm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="kind is 'gru'"):
        replace_lstm(nn.LSTM(2, 2), "gru")
    model = nn.Sequential(nn.LSTM(2, 2))
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    with pytest.raises(ValueError, match="the LSTM 0 has parametrizations or hooks"):
        replace_lstm(model)


def test_warm_up_changes_nothing():
    net = SLSTM(5, 32)
    before, drawn = {name: p.clone() for name, p in net.named_parameters()}, torch.get_rng_state()
    exlstm.warm_up(nn.Sequential(net))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in net.named_parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
