"""A pool of threads that spin between two tasks, for where torch's own threads cannot be reached.

Handing work to a thread that sleeps costs about 100 us, as long as a whole layer of a decoding step takes. Here threads
look at one number in memory, for a millisecond, and then sleep until the next task.
"""

import atexit
import ctypes
import os
import threading
from functools import cache

from exlstm.runtime.cpu.tasks import FAILED, STOP, control_block, replay_table, serve_until_idle, spins_in

AWAKE_SECONDS = 1e-3


class SpinPool:
    """The caller and `threads` - 1 more. Any thread may call it; one that finds it busy runs serially."""

    def __init__(self, threads: int) -> None:
        self.memory, self.control = control_block()
        self.busy, self.bell = threading.Lock(), threading.Condition()
        self.num_sleeping, self.backoff = 0, 0
        self.spin_limit = spins_in(AWAKE_SECONDS)  # which compiles, so that the threads do not wait for each other
        self.threads = [
            threading.Thread(target=self.live, name=f"exlstm-pool-{n}", daemon=True) for n in range(1, threads)
        ]
        for thread in self.threads:
            thread.start()
        atexit.register(self.stop)

    def at(self, place: int) -> ctypes.c_int64:
        """A number of the control block."""
        return ctypes.c_int64.from_address(self.control + place)

    def live(self) -> None:
        """The loop of each thread: serve, then sleep."""
        stop = self.at(STOP)
        while not stop.value:
            serve_until_idle(self.control, self.spin_limit)
            with self.bell:
                if not stop.value:
                    self.num_sleeping += 1
                    self.bell.wait()
                    self.num_sleeping -= 1

    def run(self, function: int, arguments: int, items: int, blocks: int) -> bool:
        """Runs a kernel, by its address, in so many blocks, in any order. False if it ran out of memory."""
        table = (ctypes.c_int64 * 5)(function, arguments, items, blocks, 1)
        return self.replay(ctypes.addressof(table), 1)

    def replay(self, table: int, count: int) -> bool:
        """Runs the tasks of a table, one after another, without the interpreter between them. False if one failed."""
        if not self.busy.acquire(blocking=False):
            return replay_table(0, 0, 0, table, count) > 0
        try:
            self.wake()
            self.at(FAILED).value = 0
            backoff = replay_table(self.control, self.spin_limit // 10, self.backoff, table, count) - 1
            self.backoff = max(backoff, 0)
            return backoff >= 0
        finally:
            self.busy.release()

    def wake(self) -> None:
        """Wakes sleeping threads."""
        if self.num_sleeping:
            with self.bell:
                self.bell.notify_all()

    def stop(self) -> None:
        """Ends the threads; later tasks run serially."""
        self.at(STOP).value = 1
        with self.bell:
            self.bell.notify_all()
        for thread in self.threads:
            thread.join(1.0)


@cache
def pool(threads: int) -> SpinPool:
    """The pool of this size; made when it is first needed."""
    return SpinPool(threads)


if hasattr(os, "register_at_fork"):
    # a forked child has the record of the pool and none of its threads
    os.register_at_fork(after_in_child=pool.cache_clear)
