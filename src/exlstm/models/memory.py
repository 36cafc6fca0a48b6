"""Lower bound of the memory that a model needs, to refuse at once what a device cannot hold."""

import os

import torch

from exlstm.models.lm import LMConfig


def check_memory(config: LMConfig, batch: int, length: int, device: torch.device, *, parameters: int = 0) -> None:
    """ValueError where `batch` rows of `length` tokens cannot fit into the memory of the device.

    parameters: number of trained ones. Counted are the tokens, the input of every block in float32, and of trained
    parameters weights, gradients and AdamW's two averages.
    """
    needed = batch * length * (8 + 4 * config.width * len(config.blocks)) + 16 * parameters
    there = memory_of(device)
    if there is not None and needed > there:
        rows = "1 row" if batch == 1 else f"{batch:,} rows"
        raise ValueError(
            f"{rows} of {length:,} tokens need at least {needed / 1e9:,.0f} GB of memory and {device} has "
            f"{there / 1e9:,.0f} GB; use a smaller batch, length or model."
        )


def memory_of(device: torch.device) -> int | None:
    """Total bytes of the device's memory, used or not; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
