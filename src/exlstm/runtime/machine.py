"""The machine that exlstm runs on: processor, device, precision of matrix products, and the commit of this checkout."""

import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from exlstm.runtime.availability import bfloat16_is_emulated


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one.

    Raises ValueError for one that is not there, and for "meta", which holds no numbers.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"--device {name!r} is not on this machine; use 'cpu' or 'auto'.") from error
    return device


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """torch.autocast for "bfloat16": matrix products round to bfloat16, weights and gates do not. Nothing otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def slow_bfloat16(device: torch.device, dtype: str) -> bool:
    """True if products in bfloat16 are emulated, and so take longer than those in float32."""
    return dtype == "bfloat16" and device.type == "cpu" and bfloat16_is_emulated()


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, GPU if any, and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that exlstm runs from, "+changes" if it differs; None for an installed package."""
    here = Path(__file__)
    if _git(here, "ls-files", "--error-unmatch", here.name) is None:
        return None
    head = _git(here, "rev-parse", "HEAD")
    return head if head is None else head + ("+changes" if _git(here, "status", "--porcelain") else "")


def _git(here: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def clock(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
