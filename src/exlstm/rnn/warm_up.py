"""CPU kernels compiled before they are needed."""

import torch
from torch import nn

from exlstm.rnn.interface import RecurrentNet
from exlstm.rnn.lstm import LSTM
from exlstm.rnn.mlstm import MLSTM
from exlstm.rnn.slstm import SLSTM

SIZES = ((1, 1), (1, 2), (2, 16))  # rows and steps: a single step, few of them, and many have forms of their own


def warm_up(*models: nn.Module) -> None:
    """Compiles the kernels of all recurrent nets in these models, or of all that there are, forward and backward.

    It takes some seconds on a machine that has never run them, and less than one later: kernels are kept on disk.
    Weights, gradients and random numbers stay as they are.
    """
    nets = [net for model in models for net in model.modules() if isinstance(net, RecurrentNet)]
    nets = nets or [make(8, 32) for make in (SLSTM, MLSTM, LSTM)]
    with torch.random.fork_rng(devices=[]):
        for net in nets:
            for batch, steps in SIZES:
                shape = (batch, steps) if net.batch_first else (steps, batch)
                x = net.weight.detach().new_zeros(*shape, net.input_size).requires_grad_()
                y, _ = net(x)
                with torch.no_grad():
                    net(x)
                torch.autograd.grad(y.sum(), [x, *(p for p in net.parameters() if p.requires_grad)], allow_unused=True)
