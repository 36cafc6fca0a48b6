"""Progress over a long text: a line on stderr every few seconds, and none for what is done sooner."""

import sys
import time

SECONDS = 5.0
UNIT = 1_000_000


class Progress:
    """Counts bytes or characters. what: the work, as the line says it. total: of all the text, if it is known."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total = what, total
        self.done, self.told = 0, time.monotonic()

    def add(self, size: int) -> None:
        """So much more has been worked through."""
        self.done += size
        if time.monotonic() - self.told >= SECONDS:
            of = "" if self.total is None else f" of {self.total / UNIT:,.0f}"
            self.tell(f"{self.done / UNIT:,.0f}{of} MB")

    def tell(self, state: str) -> None:
        """A line at once."""
        self.told = time.monotonic()
        print(f"[{self.what}: {state}]", file=sys.stderr, flush=True)
