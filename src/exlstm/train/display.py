"""Progress of training: a live bar on a terminal, a plain line every few seconds elsewhere."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, cast

import torch

from exlstm.runtime.machine import clock

_PLAIN_SECONDS = 5.0
_SPEED_SECONDS = 10.0  # window of the average speed
_SMOOTHING = 0.95


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """Numbers of one optimizer step, for the display."""

    step: int
    fraction: float
    seconds: float
    loss: float
    bits_per_byte: float
    lr: float
    tokens: int


class Output:
    """Standard output that may end before the run does: a closed terminal, a pipe whose reader has left.

    `ended` is true from the first write that fails; what is written after it is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.ended = stream, False

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def note(self, text: str) -> None:
        """Writes a line and flushes."""
        self.write(f"{text}\n")
        self.flush()

    def __getattr__(self, name: str) -> Any:
        """`isatty`, `encoding` and other attributes of the stream."""
        return getattr(self.stream, name)

    def _try(self, act: Callable[[], Any]) -> None:
        if self.ended:
            return
        try:
            act()
        except OSError:
            self.ended = True
            # what is still in the stream's buffer would fail again when Python ends
            with suppress(OSError, ValueError):
                self._drop()

    def _drop(self) -> None:
        number, nowhere = self.stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class Display(Protocol):
    """Shows steps, and lines of text between them."""

    def show(self, progress: StepProgress) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Meter:
    """Running averages of steps: smoothed loss and recent speed, as a line with learning rate and memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.recent: deque[tuple[float, int]] = deque()
        self.loss = self.bits = self.weight = 0.0
        self.first: StepProgress | None = None

    def left(self, progress: StepProgress) -> str:
        """Time until the budget is used up, at the speed since the first step; empty if unknown.

        The first step is not counted: kernels are compiled in it.
        """
        if self.first is None:
            self.first = progress
        done = progress.fraction - self.first.fraction
        if done <= 0:
            return ""
        return f"{clock((progress.seconds - self.first.seconds) * (1 - progress.fraction) / done)} left"

    def line(self, progress: StepProgress, now: float) -> str:
        self.weight = _SMOOTHING * self.weight + 1 - _SMOOTHING
        self.loss = _SMOOTHING * self.loss + (1 - _SMOOTHING) * progress.loss
        self.bits = _SMOOTHING * self.bits + (1 - _SMOOTHING) * progress.bits_per_byte
        self.recent.append((now, progress.tokens))
        while len(self.recent) > 2 and now - self.recent[0][0] > _SPEED_SECONDS:
            self.recent.popleft()
        (then, before), (_, tokens) = self.recent[0], self.recent[-1]
        speed = f"{(tokens - before) / (now - then):,.0f}" if now > then else "-"
        return (
            f"step {progress.step:,}  loss {self.loss / self.weight:.3f}  {self.bits / self.weight:.3f} bits/byte  "
            f"{speed} tokens/s  lr {progress.lr:.1e}  {memory(self.device)}"
        )


class PlainDisplay:
    """Plain lines: for files, pipes and logs."""

    def __init__(self, device: torch.device, output: Output) -> None:
        self.meter = Meter(device)
        self.note = output.note
        self.shown = -_PLAIN_SECONDS

    def show(self, progress: StepProgress) -> None:
        now = time.monotonic()
        line, left = self.meter.line(progress, now), self.meter.left(progress)
        if now - self.shown >= _PLAIN_SECONDS or progress.fraction >= 1:
            self.shown = now
            self.note(f"{progress.fraction:4.0%}  {line}  {left}".rstrip())

    def close(self) -> None:
        pass


class LiveDisplay:
    """Two lines at the bottom of the terminal, redrawn at every step; notes scroll above them."""

    def __init__(self, device: torch.device, output: Output) -> None:
        from rich.console import Console
        from rich.live import Live

        self.meter = Meter(device)
        self.console = Console(file=cast("TextIO", output), highlight=False)
        self.live = Live(console=self.console, refresh_per_second=4)
        self.live.start()

    def show(self, progress: StepProgress) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = self.meter.line(progress, time.monotonic())
        top = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=progress.fraction, width=40)
        top.add_row(bar, f"{progress.fraction:.0%}", self.meter.left(progress))
        self.live.update(Group(top, Text(line, no_wrap=True, overflow="ellipsis")))

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.live.stop()


def open_display(device: torch.device, output: Output) -> Display:
    """A live display on a terminal, a plain one elsewhere."""
    return LiveDisplay(device, output) if output.isatty() else PlainDisplay(device, output)


def memory(device: torch.device) -> str:
    """Peak memory of the GPU, or of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"
