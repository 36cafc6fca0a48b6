"""What a decoding step does, written down, so that it can be done again without the interpreter.

While a `Tape` records, every op that runs a kernel of ours also writes down which one, with the addresses it got, and
allocates nothing that would go away. `numba_replay` records what torch does in between, and plays it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

Kernel = Callable[[int, int], None]  # (address of the arguments, number of a piece), to be compiled
Kept = TypeVar("Kept")


TAPED = frozenset(
    {"linear", "mlstm", "gated_norm", "slstm", "conv", "block_linear"}
)  # the ops whose Numba kernels for one step write themselves down


class NotRecordable(Exception):
    """A function does something that cannot be written down."""


@dataclass(frozen=True)
class Entry:
    """A kernel that was run: all its pieces, in any order, and on several threads where that is worth it."""

    kernel: Kernel
    arguments: tuple[int, ...]
    pieces: int
    shared: bool


@dataclass
class Tape:
    """The kernels that ran, in order, and what has to stay alive for them."""

    entries: list[Entry] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)

    def add(self, kernel: Kernel, *arguments: int, pieces: int = 1, shared: bool = False) -> None:
        """Writes a kernel down."""
        self.entries.append(Entry(kernel, arguments, pieces, shared))

    def keep(self, thing: Kept) -> Kept:
        """`thing`, which lives as long as the tape."""
        self.kept.append(thing)
        return thing


_tape: ContextVar[Tape | None] = ContextVar("exlstm_tape", default=None)


def recording() -> Tape | None:
    """The tape that records, if there is one."""
    return _tape.get()


@contextmanager
def recorded_on(tape: Tape) -> Iterator[None]:
    """Records on `tape` inside the `with` block."""
    token = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(token)
