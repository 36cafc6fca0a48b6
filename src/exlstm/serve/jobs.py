"""Jobs: a request of a client as the sequences that the engine runs for it, and what they have given so far.

A job has parts, one per prompt; a part has samples, each a choice of the answer. The engine's thread hands over events,
a list per step; the job's coroutine takes all that have come since it last looked.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from exlstm.infer.requests import Event, Request
from exlstm.serve.errors import Refusal


class Signal:
    """A flag for which one coroutine may wait; cheaper than an event of asyncio, for it is used once per token."""

    def __init__(self) -> None:
        self.is_set = False
        self.waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Sets the flag and wakes the coroutine."""
        self.is_set = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        """Waits for the flag, and takes it down."""
        if not self.is_set:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        self.is_set, self.waiter = False, None


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A prompt with its samples. first: index of the choice of the first sample; the others follow."""

    request: Request
    tokens: int
    seeds: Sequence[int]
    first: int


@dataclass(eq=False)
class Job:
    """A client's request in the engine.

    deadline: on the loop's clock. pending: events with the index of their choice, not taken yet. error: what has ended
    it in the engine. started: parts of which reading has begun. cause: for which it was cancelled.
    gone: whether the client has closed its connection. late: whether its time is up.
    """

    owner: str
    parts: Sequence[Part]
    created: float
    deadline: float
    pending: list[tuple[int, Event]] = field(default_factory=list)
    wake: Signal = field(default_factory=Signal)
    error: Refusal | None = None
    started: int = 0
    started_at: float | None = None
    cause: str | None = None
    gone: bool = False
    late: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(part.tokens for part in self.parts)

    @property
    def choices(self) -> int:
        """Number of choices."""
        return sum(len(part.seeds) for part in self.parts)

    def put(self, choice: int, event: Event) -> None:
        """Adds an event; called on the loop's thread."""
        self.pending.append((choice, event))
        self.wake.set()

    def refuse(self, error: Refusal) -> None:
        """Ends the job; called on the loop's thread."""
        self.error = error
        self.wake.set()

    def take(self) -> list[tuple[int, Event]]:
        """The events since the last call."""
        events, self.pending = self.pending, []
        return events


def is_last(event: Event, request: Request) -> bool:
    """True for the last event of a sequence. A snapshot may come after the end of the text."""
    if event.finish_reason is None:
        return event.snapshot is not None
    return not request.keep_snapshot or event.snapshot is not None or event.finish_reason == "error"
