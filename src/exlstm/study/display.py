"""Progress of a study: a live table on a terminal, a line per run that has ended elsewhere."""

import sys
import time
from typing import Any

from exlstm.runtime.machine import clock
from exlstm.study.contract import Run
from exlstm.study.pool import Event, Failed, Finished, RunProgress, Started

_SHOWN = 8  # running runs in the live table


class ProgressTable:
    """Numbers of runs done, running and failed, and an estimate of the time that is left."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        self.title, self.quiet = title, quiet
        self.total = self.done = self.failed = 0
        self.running: dict[str, tuple[str, float, str]] = {}
        self.began = time.monotonic()
        self.live: Any = None
        if not quiet and sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(refresh_per_second=4)
            self.live.start()

    def plan(self, total: int) -> None:
        """Sets the number of runs, as far as it is known."""
        self.total = total
        self._draw()

    def show(self, event: Event, run: Run) -> None:
        """Shows an event of a run."""
        label = describe(run)
        if isinstance(event, Started):
            self.running[event.id] = (label, 0.0, "")
        elif isinstance(event, RunProgress):
            self.running[event.id] = (label, event.fraction, event.text)
        else:
            self.running.pop(event.id, None)
            self.done += isinstance(event, Finished)
            self.failed += isinstance(event, Failed)
            self._note(event, label)
        self._draw()

    def line(self) -> str:
        """The first line of the table."""
        ended = self.done + self.failed
        parts = [f"{self.done} of {self.total} done", f"{len(self.running)} running", f"{self.failed} failed"]
        if ended and ended < self.total:
            speed = (time.monotonic() - self.began) / (ended + sum(part for _, part, _ in self.running.values()))
            rest = self.total - ended - sum(part for _, part, _ in self.running.values())
            parts.append(f"about {clock(speed * rest)} left")
        return f"{self.title}: {', '.join(parts)}"

    def close(self) -> None:
        """Ends the live table, which stays on the terminal."""
        if self.live is not None:
            self.live.stop()

    def _note(self, event: Event, label: str) -> None:
        if self.quiet or (self.live is not None and isinstance(event, Finished)):
            return
        if isinstance(event, Finished):
            text = f"done    {label}: {outcome(event.row)}"
        else:
            assert isinstance(event, Failed)
            text = f"failed  {label}: {event.error.strip().splitlines()[-1]}"
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        else:
            print(f"[{self.done + self.failed}/{self.total}] {text}", flush=True)

    def _draw(self) -> None:
        if self.live is None:
            return
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for label, fraction, text in list(self.running.values())[:_SHOWN]:
            table.add_row(Text(label), ProgressBar(total=1.0, completed=fraction, width=20), Text(text))
        self.live.update(Group(Text(self.line()), table))


def describe(run: Run) -> str:
    """A run as text: its facets, learning rate and seed."""
    rate = [f"lr {run.lr:g}"] if hasattr(run, "lr") else []
    return ", ".join([*run.facets().values(), *rate, f"seed {run.seed}"])


def outcome(row: dict[str, Any]) -> str:
    """The result of a run as text."""
    tests = row.get("metrics", {}).get("tests", [])
    scores = ", ".join(f"{test['score']:.3f}" for test in tests)
    return f"score {scores}, {row['seconds']:.0f} s" if scores else "done"
