"""Nets, ragged rows with resets, and loops over single sequences that say what a net must compute."""

from itertools import pairwise

import torch
from torch import nn

from exlstm.rnn import LSTM, MLSTM, SLSTM, LSTMCell, MLSTMCell, SLSTMCell
from exlstm.rnn.parameters import RecurrentWeights

NETS = {"slstm": SLSTM, "mlstm": MLSTM, "lstm": LSTM}
CELLS = {"slstm": SLSTMCell, "mlstm": MLSTMCell, "lstm": LSTMCell}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def with_large_weights(net: RecurrentWeights, factor: float = 2.0) -> RecurrentWeights:
    """Weights that make a net's memory matter: gates far from their start."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.3).mul_(factor)
    return net


def random_hidden(net: RecurrentWeights, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A state that the net can be in: what it has after some steps."""
    x = torch.randn(3, batch, net.input_size, dtype=net.weight.dtype)
    with torch.no_grad():
        return net(x.transpose(0, 1) if net.batch_first else x)[1]


def alone(net: RecurrentWeights, x_TD, hx, reset_T):
    """One sequence through a net of one direction, cut at its resets: outputs, h, c."""
    outputs, state = [], hx
    starts = [0, *(t for t in range(1, len(x_TD)) if reset_T[t]), len(x_TD)]
    for first, last in pairwise(starts):
        before = None if bool(reset_T[first]) else state
        y, state = net(x_TD[first:last], before)
        outputs.append(y)
    return torch.cat(outputs), state


class Stack(nn.Module):
    """A bidirectional net as two of one direction a layer, and rows one after another."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x_BTD, lengths, reset_BT, hx):
        net = self.net
        rows = []
        h_all, c_all = [], []
        for b in range(len(x_BTD)):
            x, reset, h_n, c_n = x_BTD[b, : lengths[b]], reset_BT[b, : lengths[b]], [], []
            for layer in range(net.num_layers):
                outs = []
                for direction in range(net.directions):
                    place = layer * net.directions + direction
                    part = one_direction(net, layer, direction, x.shape[1])
                    before = None if hx is None else (hx[0][place : place + 1, b], hx[1][place : place + 1, b])
                    if direction == 0:
                        y, after = alone(part, x, before, reset)
                    else:
                        # backwards a row is cut between a step that is reset and the one before it
                        cut = torch.zeros_like(reset)
                        cut[1:] = reset[1:].flip(0)
                        y, after = alone(part, x.flip(0), before, cut)
                        y = y.flip(0)
                    outs.append(y)
                    h_n.append(after[0])
                    c_n.append(after[1])
                x = torch.cat(outs, dim=1)
            rows.append(x)
            h_all.append(torch.cat(h_n))
            c_all.append(torch.cat(c_n))
        return rows, (torch.stack(h_all, dim=1), torch.stack(c_all, dim=1))


def one_direction(net, layer, direction, inputs):
    """A net of one layer and direction with the weights of this one, which get its gradients."""
    options = {"num_heads": net.num_heads} if hasattr(net, "num_heads") else {}
    part = type(net)(inputs, net.hidden_size, bias=net.bias, proj_size=net.proj_size, dtype=net.weight.dtype, **options)
    own = net.names[layer * net.directions + direction][0]
    for stem, name in own.items():
        value = getattr(net, name)
        delattr(part, f"{stem}_l0")
        setattr(part, f"{stem}_l0", value)
    return part
