"""A team of threads that stays awake between two pieces of work, for decoding: a hundred short jobs per token.

Handing work to a thread that sleeps costs about 100 us, as long as a whole layer takes. Here the threads wait by
looking at one number in memory, which costs about 1 us, and go to sleep after a millisecond without a job. Nobody needs
the interpreter lock while working, and nothing starts before the first job. What a job is: see `numba_jobs`.
"""

import atexit
import os
import threading
from functools import cache

import numpy as np

from exlstm.runtime.cpu.jobs import (
    AWAKE_SECONDS,
    CONTROL_BYTES,
    LINE,
    REST,
    STOP,
    alone,
    looks_of,
    play,
    serve,
    store_number,
    together,
)


class Team:
    """The caller and `threads` - 1 more. Any thread may call `run`; whoever finds the team busy works alone."""

    def __init__(self, threads: int) -> None:
        memory = np.zeros(CONTROL_BYTES + LINE, np.uint8)
        self.memory, self.control = memory, memory.ctypes.data + -memory.ctypes.data % LINE
        self.busy, self.bell, self.sleepers, self.rest = threading.Lock(), threading.Condition(), 0, 0
        self.patience = looks_of(AWAKE_SECONDS)  # which compiles, so that the threads do not wait for each other
        self.threads = [
            threading.Thread(target=self.live, name=f"exlstm-team-{n}", daemon=True) for n in range(1, threads)
        ]
        for thread in self.threads:
            thread.start()
        atexit.register(self.dismiss)

    def live(self) -> None:
        """What each thread of the team does."""
        stop = self.memory[self.control - self.memory.ctypes.data + STOP :]
        while not stop[0]:
            serve(self.control, self.patience)
            with self.bell:
                if not stop[0]:
                    self.sleepers += 1
                    self.bell.wait()
                    self.sleepers -= 1

    def run(self, function: int, arguments: int, pieces: int) -> None:
        """Calls the compiled `function(arguments, piece)` for every piece, in any order, and returns when all are done.

        pieces: at most 2^20 - 1.
        """
        if not self.busy.acquire(blocking=False):
            alone(function, arguments, pieces)
            return
        try:
            if self.rest:
                self.rest -= 1
                alone(function, arguments, pieces)
                return
            self.wake()
            if together(self.control, function, arguments, pieces) > self.patience // 10:
                self.rest = REST
        finally:
            self.busy.release()

    def play(self, table: int, count: int) -> None:
        """Many jobs, without the interpreter between them: see `_play`."""
        if not self.busy.acquire(blocking=False):
            play(0, 0, 0, table, count)
            return
        try:
            self.wake()
            self.rest = play(self.control, self.patience // 10, self.rest, table, count)
        finally:
            self.busy.release()

    def wake(self) -> None:
        """Calls those who sleep."""
        if self.sleepers:
            with self.bell:
                self.bell.notify_all()

    def dismiss(self) -> None:
        """The threads leave; `run` goes on working, alone."""
        store_number(self.control + STOP, 1)
        with self.bell:
            self.bell.notify_all()
        for thread in self.threads:
            thread.join(1.0)


@cache
def team(threads: int) -> Team:
    """The team of this size; made when it is first needed."""
    return Team(threads)


if hasattr(os, "register_at_fork"):
    # a forked child has the record of the team and none of its threads
    os.register_at_fork(after_in_child=team.cache_clear)
