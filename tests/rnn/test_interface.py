"""The interface of torch.nn.LSTM: constructor, call, state, and the numbers of its LSTM."""

import copy
import io
import pickle

import pytest
import torch
from rnn_cases import NETS, close, random_hidden, with_large_weights
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import exlstm
from exlstm.rnn import LSTM, MLSTM, SLSTM

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
