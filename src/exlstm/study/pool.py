"""Independent runs on the processes of this machine: jobs in, events out.

    with closing(run_local(jobs, workers=4)) as events:
        for event in events: ...

A job calls a module-level function `call(argument, report) -> row`. It runs on `report.device`, and may call
`report(fraction, text)` as often as it likes. The row is a dict that can be pickled.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

from exlstm.runtime.allocator import keep_freed_memory
from exlstm.study.store import ModelStore

TRACEBACK_LINES = 10
SECONDS_BETWEEN_REPORTS = 0.25


class ProgressReporter:
    """Sends the progress of a run, at most four times a second; calls in between are dropped.

    device: where the run executes. models: where it may keep its model, or find one that was kept.
    """

    models: ModelStore | None = None

    def __init__(
        self,
        name: str,
        device: str,
        send: "Callable[[RunProgress], object]",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device = device
        self._name, self._send, self._clock = name, send, clock
        self._next = -float("inf")

    def __call__(self, fraction: float, text: str) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + SECONDS_BETWEEN_REPORTS
            self._send(RunProgress(self._name, fraction, text))


class PoolJob(NamedTuple):
    """A run to execute. id: its name in events. call, argument: pickled for the worker."""

    id: str
    call: Callable[[Any, ProgressReporter], dict[str, Any]]
    argument: Any


class Started(NamedTuple):
    id: str


class RunProgress(NamedTuple):
    id: str
    fraction: float
    text: str


class Finished(NamedTuple):
    id: str
    row: dict[str, Any]


class Failed(NamedTuple):
    """The end of a run that failed. error: the last lines of the traceback, or how the process ended."""

    id: str
    error: str


Event = Started | RunProgress | Finished | Failed


def run_local(
    jobs: Iterable[PoolJob | None], *, workers: int, threads: int | None = None, devices: Sequence[str] = ("cpu",)
) -> Generator[Event, None, None]:
    """Runs the jobs in worker processes, which are used again from job to job, and yields events as they come.

    A job is taken from `jobs` only when a worker is free for it, after all events so far were yielded. None means that
    there is no job at the moment; the next is taken after the next event. Each job has one `Started` and then one
    `Finished` or `Failed`; an exception, or the end of the process, fails that run only. Closing the generator ends all
    workers at once; they also end with this process.

    workers: processes at a time; one is started when there is a job for it.
    threads: of torch in each worker; None divides the threads of torch in this process.
    devices: worker k has `devices[k % len(devices)]` as `report.device`.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; there has to be at least one.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; give each worker at least one, or None to share them out.")
    if not devices:
        raise ValueError('devices is empty; name at least one, such as "cpu".')
    each = threads or max(1, torch.get_num_threads() // workers)
    return _run([_Worker(devices[k % len(devices)], each) for k in range(workers)], iter(jobs))


def pack(job: PoolJob) -> bytes:
    return pickle.dumps((job.call, job.argument))


@keep_freed_memory()
def attempt(name: str, packed: bytes, report: ProgressReporter) -> Finished | Failed:
    """Runs a packed job. Any exception, also SystemExit, is a `Failed` of the run and does not end the worker."""
    try:
        call, argument = pickle.loads(packed)
        row = call(argument, report)
        pickle.dumps(row)  # raises for a row that cannot be sent
        return Finished(name, row)
    except BaseException:
        return Failed(name, last_lines(traceback.format_exc()))


def last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-TRACEBACK_LINES:])


def _run(slots: "list[_Worker]", jobs: Iterator[PoolJob | None]) -> Generator[Event, None, None]:
    try:
        while True:
            for worker in slots:
                if worker.job is None:
                    job = next(jobs, None)
                    if job is None:
                        break
                    worker.give(job)
                    yield Started(job.id)
            busy = [worker for worker in slots if worker.job is not None]
            if not busy:
                return
            # with a timeout: a child of a dead worker may hold the pipe open
            wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                yield from worker.events()
    finally:
        # killed at once: a run leaves nothing behind but its row
        for worker in slots:
            worker.end()


class _Worker:
    """A slot for a worker process, which is started with the first job, and again if it has died."""

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.job: PoolJob | None = None
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection

    def give(self, job: PoolJob) -> None:
        message = job.id, pack(job)
        try:
            if self.process is None or not self.process.is_alive():
                self.start()
            self.connection.send(message)
        except OSError:  # it died in the meantime
            self.start()
            self.connection.send(message)
        self.job = job

    def start(self) -> None:
        self.end()
        # spawn: torch's threads and CUDA do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # daemon: if the generator is not closed, Python's exit must not wait for the worker
        self.process = context.Process(target=_serve, args=(theirs, self.device, self.threads), daemon=True)
        with _no_interrupt(), theirs:
            self.process.start()

    def events(self) -> Iterator[Event]:
        """Events since the last call; if the process is dead, a `Failed` at the end."""
        assert self.job is not None
        assert self.process is not None
        dead = not self.process.is_alive()  # before reading, so that all that it sent is read
        try:
            while self.job is not None and self.connection.poll():
                event: Event = self.connection.recv()
                yield from self._pass_on(event)
        except (EOFError, OSError):
            dead = True
        if dead and self.job is not None:
            self.process.join(5.0)  # the pipe closes a moment before there is an exit code
            yield from self._pass_on(Failed(self.job.id, _ending(self.process.exitcode)))

    def _pass_on(self, event: Event) -> Iterator[Event]:
        if isinstance(event, Finished | Failed):
            self.job = None
        if isinstance(event, Failed) and self.device != "cpu":
            self.end()  # an error of CUDA persists in its process, and would fail every later run
        yield event

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
            self.connection.close()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """SIGINT is blocked in a process that is started inside, from its first moment on: the parent handles it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ending(code: int | None) -> str:
    if code is None:
        return "the worker closed its connection."
    if code >= 0:
        return f"the worker ended with exit code {code}."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", which is also how the system takes memory back" if name == "SIGKILL" else ""
    return f"the worker was ended by {name}{hint}."


def _serve(connection: Connection, device: str, threads: int) -> None:
    """The main function of a worker: runs jobs until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            name, packed = connection.recv()
            torch.set_num_threads(threads)  # the last run may have changed it
            connection.send(attempt(name, packed, ProgressReporter(name, device, connection.send)))


def _end_with_parent() -> None:
    """Ends this process when its parent ends: a killed parent closes no pipe, and a run may not read it for hours."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
