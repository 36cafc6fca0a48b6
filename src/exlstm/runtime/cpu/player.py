"""Tables of jobs played in one call, by the caller and torch's own OpenMP threads: a whole token of decoding.

What a job and a table are: see `numba_jobs`.
"""

import ctypes
from typing import Any

import numpy as np

from exlstm.runtime.cpu.jobs import (
    AWAKE_SECONDS,
    CONTROL_BYTES,
    LINE,
    STOP,
    address_of,
    ask,
    load,
    looks_of,
    play,
    serve,
    store,
)
from exlstm.runtime.cpu.team import team
from exlstm.runtime.threads import FORKED, REGION, gnu_openmp

THREAD_NUMBER, TABLE, COUNT, PATIENCE, TO_REST = range(CONTROL_BYTES, CONTROL_BYTES + 40, 8)


def play_in_region(data: int, _piece: int) -> None:
    """What each thread of a region does: the first plays, the others do what it shares out until it is through."""
    if ask(load(data + THREAD_NUMBER)) == 0:
        rest = play(data, load(data + PATIENCE), load(data + TO_REST), load(data + TABLE), load(data + COUNT))
        store(data + TO_REST, rest)
        store(data + STOP, 1)
    else:
        serve(data, 1 << 62)


class Player:
    """Plays tables of jobs (see `_play`) as one region of torch's own OpenMP threads; without these, on a `Team`.

    Torch's threads go on looking for work for milliseconds after every operation of torch, and who wants their cores
    meanwhile gets half of one.
    """

    def __init__(self) -> None:
        self.memory = np.zeros(2 * CONTROL_BYTES + LINE, np.uint8)
        start = -self.memory.ctypes.data % LINE
        self.data = self.memory.ctypes.data + start
        self.numbers = self.memory[start : start + 2 * CONTROL_BYTES].view(np.int64)

    def play(self, table: int, count: int, threads: int) -> None:
        """One table from beginning to end. Only one thread at a time may call this."""
        openmp = None if FORKED.is_set() else gnu_openmp()
        if threads == 1:
            play(0, 0, 0, table, count)
        elif openmp is None:
            team(threads).play(table, count)
        else:
            parallel, number, _ = openmp
            given = {THREAD_NUMBER: address_in_c(number), TABLE: table, COUNT: count,
                     PATIENCE: looks_of(AWAKE_SECONDS / 10), STOP: 0}  # fmt: skip
            for place, value in given.items():
                self.numbers[place // 8] = value
            parallel(REGION(address_of(play_in_region)), self.data, threads, 0)


def address_in_c(function: Any) -> int:
    """Where a function of a C library is."""
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
