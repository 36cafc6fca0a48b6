"""Parallel regions: a kernel on several threads, without the interpreter.

torch's own threads do the work where they can be reached, which is where torch came with GNU's OpenMP. They are awake,
looking for work, for a while after every operation of torch: a region starts in microseconds, while other threads would
have to wait for them to let go of the core. Elsewhere, and in a forked child, where OpenMP's threads no longer exist, a
`SpinPool` does it. Regions may be begun by several threads at once.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from threading import Event
from typing import Any

from exlstm.runtime.cpu.atomics import add, call, call_c_int, load
from exlstm.runtime.cpu.pool import pool
from exlstm.runtime.cpu.tasks import Function

FORKED = Event()
REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
FUNCTION, ARGUMENTS, ITEMS, BLOCKS, FAILED, THREAD_NUMBER, NUM_THREADS = range(0, 56, 8)


def _region(data: int) -> int:
    """The body of a region: each thread runs its blocks of the items. There may be fewer threads than blocks."""
    function, arguments, items, blocks = load(data), load(data + ARGUMENTS), load(data + ITEMS), load(data + BLOCKS)
    for block in range(call_c_int(load(data + THREAD_NUMBER)), blocks, call_c_int(load(data + NUM_THREADS))):
        if call(function, arguments, items * block // blocks, items * (block + 1) // blocks) == 0:
            add(data + FAILED, 1)
    return 1


region = Function(_region)


def parallel_for(function: int, arguments: bytes, items: int, threads: int) -> bool:
    """Runs a kernel, by its address, on so many threads, a block of consecutive items each; False if one failed."""
    openmp, here = usable_openmp(), address_of_bytes(arguments)
    if openmp is None:
        return pool(threads).run(function, here, items, threads)
    data = (ctypes.c_int64 * 7)(function, here, items, threads, 0, *openmp.queries)
    openmp.run(ctypes.cast(region.call, REGION), ctypes.addressof(data), threads)
    return data[FAILED // 8] == 0


def address_of_bytes(content: bytes) -> int:
    """The address of the content, valid as long as the object lives."""
    return ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value or 0


class OpenMP:
    """The GNU OpenMP that torch has loaded. queries: addresses of omp_get_thread_num and omp_get_num_threads."""

    def __init__(self, library: Any) -> None:
        self.parallel = library.GOMP_parallel
        self.parallel.argtypes = [REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self.parallel.restype = None
        self.queries = tuple(
            ctypes.cast(function, ctypes.c_void_p).value or 0
            for function in (library.omp_get_thread_num, library.omp_get_num_threads)
        )

    def run(self, body: Callable[..., None], data: int, threads: int) -> None:
        """One region; `body` is a function of C."""
        self.parallel(body, data, threads, 0)


@cache
def gnu_openmp() -> OpenMP | None:
    """The GNU OpenMP that is loaded already, or None: a second one would have threads of its own."""
    try:
        return OpenMP(ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW))
    except (AttributeError, OSError):
        return None


def usable_openmp() -> OpenMP | None:
    """`gnu_openmp`, but not in a forked child."""
    return None if FORKED.is_set() else gnu_openmp()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FORKED.set)
