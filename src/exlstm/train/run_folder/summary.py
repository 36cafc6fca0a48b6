"""The final numbers of a run, and the machine that they were measured on."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from exlstm.data.baselines import Baselines
from exlstm.runtime.machine import machine
from exlstm.train.evaluate import TextScore


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The result of `train`. final, yardsticks: None if the run was stopped before the end of its budget."""

    run: str  # the run's folder
    stopped: Literal["budget", "signal"]  # why the training loop ended
    step: int
    tokens: int  # trained on, repetitions included
    seconds: float  # of training, over all sessions of the run
    parameters: int
    seed: int
    shares: dict[str, float] | None = None  # of the training tokens, of each source of the text
    commit: str | None = None  # of exlstm, when this session of the run began
    final: TextScore | None = None  # on the whole validation text, state carried on
    final_step: int | None = None  # the checkpoint that was scored: the best one
    coverage: float | None = None  # share of the validation text that was scored in the time limit
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
        """The comparison with the yardsticks as text; empty if the run was stopped early."""
        if self.final is None:
            return ""
        rows = [("this model", self.final.bits_per_byte)]
        if self.yardsticks is not None:
            rows += baseline_rows(self.yardsticks)
        covered = "" if self.coverage is None or self.coverage >= 1 else f", {self.coverage:.0%} of it for this model"
        best_first = sorted(rows, key=lambda row: row[1])
        return "\n".join(
            [f"bits per byte on the validation text ({self.final.bytes:,} bytes{covered}; lower is better)"]
            + [f"  {value:6.3f}  {name}" for name, value in best_first]
        )


def baseline_rows(found: Baselines) -> list[tuple[str, float]]:
    """Names of the baselines, with bits per byte."""
    return [("trigram model", found.trigram), ("gzip -9", found.gzip), ("xz -9", found.xz)]
