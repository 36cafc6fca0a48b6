"""The thread of the engine: jobs in, lists of events out, once per step.

The loop's thread never waits for a model. What it asks for is a call in a queue, done between two steps; what it gets
is one `Delivery` per step, by one wake-up, however many streams there are.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from exlstm.infer.engine import Engine
from exlstm.infer.requests import Event
from exlstm.serve.errors import Refusal, engine_failed
from exlstm.serve.jobs import Job, Part, is_last

NOT_STARTED = "the request could not be started; change it."
STEP_FAILED = "the engine failed; send the request again."
R = TypeVar("R")
FAILURES, WINDOW = 3, 60.0  # so many failed steps in so many seconds end the server


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a step gave. started: parts of which reading began. seconds, rows, prefill: of the step, in tokens."""

    events: list[tuple[Job, int, Event]]
    started: list[tuple[Job, Part]]
    ended: list[Job]
    seconds: float
    prefill: int
    running: int
    waiting: int


@dataclass(eq=False)
class Route:
    """Where events of a sequence go."""

    job: Job
    part: Part
    choice: int


@dataclass(eq=False)
class EngineThread:
    """An engine with its thread. deliver: called on the loop's thread. failed: called there when the engine cannot go
    on. beat: when the thread last came by, on `time.monotonic`."""

    engine: Engine
    loop: asyncio.AbstractEventLoop
    deliver: Callable[[Delivery], None]
    failed: Callable[[BaseException], None]
    calls: deque[Callable[[], None]] = field(default_factory=deque)
    something: threading.Condition = field(default_factory=threading.Condition)
    routes: dict[int, Route] = field(default_factory=dict)
    numbers: dict[Job, set[int]] = field(default_factory=dict)
    failures: deque[float] = field(default_factory=deque)
    beat: float = 0.0
    stopping: bool = False

    def start(self) -> None:
        """Starts the thread."""
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.beat = time.monotonic()
        self.thread.start()

    def call(self, fn: Callable[[], None]) -> None:
        """Has the engine's thread call `fn` between two steps."""
        with self.something:
            self.calls.append(fn)
            self.something.notify()

    async def result(self, fn: Callable[[], R]) -> R:
        """What `fn` returns, called on the engine's thread between two steps."""
        done: asyncio.Future[R] = self.loop.create_future()

        def run() -> None:
            try:
                value = fn()
            except Exception as error:
                self.loop.call_soon_threadsafe(settle, done.set_exception, error)
            else:
                self.loop.call_soon_threadsafe(settle, done.set_result, value)

        def settle(put: Callable[[Any], None], value: Any) -> None:
            if not done.done():
                put(value)

        self.call(run)
        return await done

    def submit(self, job: Job) -> None:
        """Hands a job over; its events follow, or an error."""
        self.call(lambda: self.accept(job))

    def cancel(self, job: Job) -> None:
        """Ends what is left of a job, without events."""
        self.call(lambda: self.drop(job))

    def stop(self) -> None:
        """Ends the thread after the step at hand, and waits for it."""
        self.stopping = True
        self.call(lambda: None)
        self.thread.join()

    def accept(self, job: Job) -> None:
        """Submits the parts of a job, or none of them."""
        own = self.numbers[job] = set()
        try:
            for part in job.parts:
                for choice, number in enumerate(self.engine.submit_samples(part.request, part.seeds), part.first):
                    self.routes[number] = Route(job, part, choice)
                    own.add(number)
        except Exception as error:
            self.drop(job)
            # only a ValueError has a sentence for users
            refusal = Refusal(400, str(error)) if isinstance(error, ValueError) else engine_failed(NOT_STARTED)
            self.loop.call_soon_threadsafe(job.refuse, refusal)

    def drop(self, job: Job) -> None:
        """Cancels the sequences of a job."""
        for number in self.numbers.pop(job, ()):
            self.engine.cancel(number)
            self.routes.pop(number, None)

    def run(self) -> None:
        """Steps while there is work; waits for calls otherwise."""
        while not self.stopping:
            with self.something:
                while not self.calls and not self.engine.busy:
                    self.beat = time.monotonic()
                    self.something.wait(1.0)
                calls = [self.calls.popleft() for _ in range(len(self.calls))]
            for fn in calls:
                fn()
            self.beat = time.monotonic()
            if self.engine.busy and not self.stopping:
                try:
                    self.step()
                except Exception as error:
                    self.give_up(error)

    def step(self) -> None:
        """A step of the engine, delivered."""
        began, before = time.perf_counter(), self.engine.waiting_tokens
        events = self.engine.step()
        seconds = time.perf_counter() - began
        found: list[tuple[Job, int, Event]] = []
        ended: list[Job] = []
        # once for each prompt, whose samples begin together
        started = [
            (route.job, route.part)
            for number in self.engine.take_started()
            if (route := self.routes.get(number)) is not None and route.choice == route.part.first
        ]
        for event in events:
            route = self.routes.get(event.request)
            if route is None:
                continue
            found.append((route.job, route.choice, event))
            if event.prompt_logprobs:  # the prompt is scored once for all samples
                others = range(route.choice + 1, route.part.first + len(route.part.seeds))
                found += [(route.job, choice, event) for choice in others]
            if is_last(event, route.part.request):
                del self.routes[event.request]
                left = self.numbers[route.job]
                left.discard(event.request)
                if not left:
                    del self.numbers[route.job]
                    ended.append(route.job)
        self.loop.call_soon_threadsafe(
            self.deliver,
            Delivery(
                events=found,
                started=started,
                ended=ended,
                seconds=seconds,
                prefill=before - self.engine.waiting_tokens,
                running=self.engine.running,
                waiting=self.engine.waiting,
            ),
        )

    def give_up(self, error: Exception) -> None:
        """Ends all requests after a step that failed as a whole; the server, if that happens again and again."""
        now = time.monotonic()
        self.failures.append(now)
        while self.failures[0] < now - WINDOW:
            self.failures.popleft()
        for job in list(self.numbers):
            self.drop(job)
            self.loop.call_soon_threadsafe(job.refuse, Refusal(500, STEP_FAILED, "engine_error"))
        if len(self.failures) >= FAILURES:
            self.stopping = True
            self.loop.call_soon_threadsafe(self.failed, error)
