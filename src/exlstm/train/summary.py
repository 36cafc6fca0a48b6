"""The final numbers of a run, and what they were measured on."""

import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from exlstm.data.baselines import Baselines
from exlstm.train.evaluate import Score


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What `train` returns. `final` and `yardsticks` are None if the run was stopped before the end of its budget."""

    run: str  # the run's folder
    stopped: Literal["budget", "signal"]  # why the training loop ended
    step: int
    tokens: int  # trained on, repetitions included
    seconds: float  # of training, over all sessions of the run
    parameters: int
    seed: int
    shares: dict[str, float] | None = None  # of the training tokens, of each source of the text
    commit: str | None = None  # of exlstm, when this session of the run began
    final: Score | None = None  # on the whole validation text, state carried
    final_step: int | None = None  # the checkpoint that was scored: the best one
    coverage: float | None = None  # share of the validation text that the time was enough for
    yardsticks: Baselines | None = None  # bits per byte on the same text

    def to_json(self) -> dict[str, Any]:
        """summary.json: these numbers, the machine, and the commit of exlstm itself."""
        return {
            "format": 1,
            "run": Path(self.run).name,
            "stopped": self.stopped,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "parameters": self.parameters,
            "seed": self.seed,
            "shares": self.shares,
            "validation": self.final and {**self.final.to_json(), "coverage": self.coverage, "step": self.final_step},
            "yardsticks_bits_per_byte": self.yardsticks and asdict(self.yardsticks),
            "machine": machine(),
            "commit": self.commit,
        }

    def table(self) -> str:
        """The comparison that ends a run, for people; empty if the run was stopped early."""
        if self.final is None:
            return ""
        rows = [("this model", self.final.bits_per_byte)]
        if self.yardsticks is not None:
            rows += yardstick_rows(self.yardsticks)
        covered = "" if self.coverage is None or self.coverage >= 1 else f", {self.coverage:.0%} of it for this model"
        best_first = sorted(rows, key=lambda row: row[1])
        return "\n".join(
            [f"bits per byte on the validation text ({self.final.bytes:,} bytes{covered}; lower is better)"]
            + [f"  {value:6.3f}  {name}" for name, value in best_first]
        )


def yardstick_rows(found: Baselines) -> list[tuple[str, float]]:
    """Names for people, with bits per byte."""
    return [("trigram model", found.trigram), ("gzip -9", found.gzip), ("xz -9", found.xz)]


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
