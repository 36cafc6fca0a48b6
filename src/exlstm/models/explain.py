"""Backends of the ops of a model, recorded while it runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from exlstm.models.lm import LM, LMConfig
from exlstm.models.memory import check_memory
from exlstm.models.summary import Table
from exlstm.runtime.backend import Choice, recorded

HEADINGS = ("pass", "op", "calls", "backend", "why")


def explain(model: nn.Module, batch: int = 1, length: int = 128) -> Table:
    """Table of the backend of each op, and why: in training, in prefill, and in decoding.

    Runs the model forward three times: on `batch` sequences of `length` tokens with gradients and without, and on one
    more token without. The model stays as it is. Raises ValueError for less than one sequence or token, and for more
    than the device can hold; TypeError for anything but an LM.
    """
    if not isinstance(model, LM):
        raise TypeError(f"explain takes an LM, not a {type(model).__name__}; build one with exlstm.LM(config).")
    return _explain(model, batch, length, repeats=[1] * len(model.blocks))


def explain_config(config: LMConfig, batch: int, length: int, device: torch.device) -> Table:
    """`explain` of the model of `config` at a fraction of its memory and work.

    Backends depend on shapes, not on values: equal blocks run once, and all weights share one uninitialized buffer.
    """
    repeats = Counter(config.blocks)
    model = _without_numbers(replace(config, blocks=tuple(repeats)), device)
    return _explain(model, batch, length, repeats=list(repeats.values()))


def _without_numbers(config: LMConfig, device: torch.device) -> LM:
    """A model whose weights are views of one uninitialized buffer."""
    with torch.device("meta"):
        model = LM(config)
    memory = torch.empty(max(x.numel() for x in model.parameters()), device=device)
    for module in model.modules():
        for name, x in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(memory[: x.numel()].view(x.shape)))
    return model


def _explain(model: LM, batch: int, length: int, repeats: Sequence[int]) -> Table:
    for name, value in {"batch": batch, "length": length}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; there is something to explain from 1 on.")
    weight = model.embed.weight
    check_memory(model.config, batch, length, weight.device)
    tokens_BT = torch.zeros(batch, length, dtype=torch.long, device=weight.device)
    devices = [weight.device] if weight.device.type == "cuda" else []
    rows: list[tuple[str, ...]] = [HEADINGS]
    # dropout draws random numbers; a training run goes on with its own
    with torch.random.fork_rng(devices):
        with torch.enable_grad(), _choices(model, repeats) as choices:
            model(tokens_BT)
        rows += table_rows(f"training, T = {length}", choices)
        with torch.no_grad(), _choices(model, repeats) as choices:
            _, state = model(tokens_BT)
        rows += table_rows(f"prefill, T = {length}", choices)
        with torch.no_grad(), _choices(model, repeats) as choices:
            model(tokens_BT[:, :1], state)
        rows += table_rows("decoding, T = 1", choices)
    title = f"batch {batch}, {length} tokens, weights {weight.dtype} on {weight.device}"
    return Table("\n".join([title, *aligned(rows)]))


@contextmanager
def _choices(model: LM, repeats: Sequence[int]) -> Iterator[list[Choice]]:
    """Choices of backends inside the `with` block, those of each model block as often as it is repeated."""
    begun: list[int] = []
    with recorded() as choices:

        def begin(*_: object) -> None:
            begun.append(len(choices))

        def repeat(times: int) -> None:
            choices.extend(choices[begun.pop() :] * (times - 1))

        hooks = [block.register_forward_pre_hook(begin) for block in model.blocks]
        for block, times in zip(model.blocks, repeats, strict=True):
            hooks.append(block.register_forward_hook(lambda *_, times=times: repeat(times)))
        try:
            yield choices
        finally:
            for hook in hooks:
                hook.remove()


def table_rows(where: str, choices: list[Choice]) -> list[tuple[str, ...]]:
    """Rows of the different choices in the order of first calls; the first row names the pass."""
    counted = Counter(choices)
    names = [where, *[""] * (len(counted) - 1)]
    return [
        (name, choice.op, str(count), choice.backend, choice.why)
        for name, (choice, count) in zip(names, counted.items(), strict=bool(counted))
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of the rows, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
