"""Cells of one step, forget biases, nets that take the place of torch's, and kernels compiled in advance."""

import pytest
import torch
from rnn_cases import CELLS, NETS, close, with_large_weights
from torch import nn

import exlstm
from exlstm.rnn import LSTM, MLSTM, SLSTM, LSTMCell, replace_lstm
from exlstm.rnn.arguments import ShapeError

kinds = pytest.mark.parametrize("kind", NETS)


@kinds
def test_cells_step_as_nets(kind):
    cell, net = (made(5, 32, dtype=torch.float64) for made in (CELLS[kind], NETS[kind]))
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
