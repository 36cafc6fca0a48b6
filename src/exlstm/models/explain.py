"""Which backend each op of a model runs on, found by running it."""

import torch
from torch import nn

from exlstm.models.lm import LM
from exlstm.models.summary import Table
from exlstm.ops.choose import recorded


def explain(model: nn.Module, batch: int = 1, length: int = 128) -> Table:
    """Runs `model` once on `batch` sequences of `length` and says which backend each op took, and why.

    No gradients are computed and nothing is changed. Raises TypeError for anything but an LM.
    """
    if not isinstance(model, LM):
        raise TypeError(f"explain takes an LM, not a {type(model).__name__}; build one with exlstm.LM(config).")
    lines = [f"batch {batch}, {length} steps, weights {model.head.weight.dtype} on {model.head.weight.device}"]
    tokens_BT = torch.zeros(batch, length, dtype=torch.long, device=model.head.weight.device)
    counted: dict[tuple[str, str, str], int] = {}
    with torch.no_grad(), recorded() as choices:
        model(tokens_BT)
    for choice in choices:
        counted[choice] = counted.get(choice, 0) + 1
    lines += [f"{op}: {backend} in {count} blocks ({why})" for (op, backend, why), count in counted.items()]
    return Table("\n".join(lines))
