"""Small models with weights that matter, their own numbers over a sequence, and those of exported files."""

import numpy as np
import torch

import exlstm
from exlstm.mixers.state import leaves

INPUT, WIDTH = 5, 16
NETS = {"slstm": exlstm.SLSTM, "mlstm": exlstm.MLSTM, "lstm": exlstm.LSTM}


def shaken(model, amount=0.1):
    """The model with every parameter away from the zeros and ones that it starts from."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn_like(parameter)
    return model.eval()


def net(kind, **options):
    torch.manual_seed(1)
    return shaken(NETS[kind](INPUT, WIDTH, **options))


def encoder(pattern="ms", **options):
    torch.manual_seed(1)
    return shaken(exlstm.XLSTM(INPUT, WIDTH, pattern=pattern, num_heads=2, **options))


def language_model(pattern="ms", vocabulary=11, width=WIDTH):
    torch.manual_seed(1)
    return shaken(exlstm.LM(exlstm.lm_from_pattern(pattern, vocab_size=vocabulary, width=width, heads=2)))


MODELS = {
    "SLSTM": lambda: net("slstm", num_layers=2),
    "MLSTM": lambda: net("mlstm", batch_first=True),
    "LSTM": lambda: net("lstm"),
    "XLSTM": encoder,
    "LM": language_model,
    "LM of large mLSTM blocks": lambda: language_model("Ms"),
}


def inputs(model, batch, steps):
    """Input of a sequence, batch first."""
    if isinstance(model, exlstm.LM):
        return torch.randint(model.config.vocab_size, (batch, steps))
    return torch.randn(batch, steps, INPUT)


@torch.no_grad()
def own_numbers(model, x):
    """Outputs of the model's own call, batch first, and the tensors of the state after the last step."""
    time_first = getattr(model, "batch_first", True) is False
    y, state = model(x.transpose(0, 1) if time_first else x)
    return (y.transpose(0, 1) if time_first else y), [z for z in leaves(state) if z.numel()]


def by_steps(host, x, state=None):
    """Outputs of an exported step over a sequence, batch first, and its last state."""
    outputs = []
    for x_B in x.transpose(0, 1):
        y, state = host(x_B.numpy(), state)
        outputs.append(y)
    return np.stack(outputs, axis=1), state


def difference(found, expected, shares=False):
    """The largest, of outputs and states: (y, state) each. In a state with numbers above 1 it is a share of these.

    Sums in a state grow to hundreds, where float32's own steps are larger than 1e-5. shares: in outputs, too.
    """
    worst = 0.0
    for place, (mine, other) in enumerate(zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True)):
        assert mine.shape == tuple(other.shape)
        size = max(1.0, float(other.abs().max())) if place or shares else 1.0
        worst = max(worst, float(np.abs(mine - other.numpy()).max()) / size)
    return worst
