"""Progress over a long text: a line on stderr every few seconds, and none for work that ends sooner."""

import sys
import time

SECONDS = 5.0
UNIT = 1_000_000


class ProgressLine:
    """A counter of bytes or characters. what: the name of the work. total: the size of the whole text, if known."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total = what, total
        self.done, self.told = 0, time.monotonic()

    def add(self, size: int) -> None:
        """Counts `size` more as done, and prints a line if the last one is old."""
        self.done += size
        if time.monotonic() - self.told >= SECONDS:
            of = "" if self.total is None else f" of {self.total / UNIT:,.0f}"
            self.tell(f"{self.done / UNIT:,.0f}{of} MB")

    def tell(self, state: str) -> None:
        """Prints a line now."""
        self.told = time.monotonic()
        print(f"[{self.what}: {state}]", file=sys.stderr, flush=True)
