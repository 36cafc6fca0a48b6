"""AdamW, and the table that says which parameters decay."""

from fnmatch import fnmatchcase

import torch
from torch import nn

from exlstm.train.config import TrainConfig

# The first row that matches a parameter's name decides whether it has weight decay. Matrices that mix features have.
# Biases, gains, convolutions, embeddings and recurrent weights have not: small is not simple there.
DECAY_TABLE: tuple[tuple[str, bool], ...] = (
    ("embed.*", False),
    ("positions.*", False),
    ("*norm.weight", False),
    ("*.bias*", False),
    ("*.b_*", False),
    ("*.skip", False),
    ("*.conv.*", False),
    ("*.r_*", False),  # recurrent weights of the sLSTM
    ("*.graph_*", False),  # gates of its recurrent weights, which have a penalty of their own
    ("*.u_*", False),  # recurrent weights of the LSTM
    ("*.weight*", True),  # includes those of gates and of the head
    ("*.w_*", True),
    ("*.*_[A-Z]*", False),  # parameters of recurrences by channel or state: decays, steps, poles, shares of a mix
)


def decays(name: str) -> bool:
    """True if the parameter of this name has weight decay. Raises ValueError if no row of the table matches."""
    for pattern, decision in DECAY_TABLE:
        if fnmatchcase(name, pattern):
            return decision
    raise ValueError(f"no row of DECAY_TABLE in exlstm/train/optimizer.py matches the parameter {name!r}; add one.")


def decay_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the parameters with weight decay and of those without, each in the order of the model."""
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if decays(name)], [name for name in names if not decays(name)]


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimizer of a run: decoupled weight decay (Loshchilov & Hutter 2019) on the first group only."""
    parameters = dict(model.named_parameters())
    decaying, others = decay_groups(model)
    groups = [
        {"params": [parameters[name] for name in decaying], "weight_decay": config.weight_decay},
        {"params": [parameters[name] for name in others], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
