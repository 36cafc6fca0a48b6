"""Work shared out among threads: kernels that release the interpreter lock run side by side, one piece each.

Torch's own threads do the work where they can be reached, which is where torch came with GNU's OpenMP. They are awake,
looking for work, for a while after every operation of torch: a piece given to them starts in microseconds, while one
given to another thread has to wait for them to let go of the core. Elsewhere, and in a forked child, where OpenMP's
threads no longer exist, plain threads do. Either way this is one region per call, and may be called from several
threads at once.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Event
from typing import Any

import torch

Piece = Callable[[int], None]  # does the piece of this number
FORKED = Event()
REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def share_out(scan: Callable[..., Any], items: int, *arguments: Any, threads: int | None = None) -> None:
    """Runs `scan(first, last, *arguments)` over all items, one piece per thread; the caller works on the first piece.

    threads: at most this many; by default, and never more than, as many as torch has been given.
    The first exception of a piece is raised again when all pieces are done.
    """
    most = torch.get_num_threads() if threads is None else min(threads, torch.get_num_threads())
    pieces = max(1, min(most, items))
    if pieces == 1:
        scan(0, items, *arguments)
        return
    edges = list(pairwise(items * piece // pieces for piece in range(pieces + 1)))
    failures: list[BaseException] = []

    def work(piece: int) -> None:
        try:
            scan(*edges[piece], *arguments)
        except BaseException as failure:  # an exception must not leave a thread that is not ours
            failures.append(failure)

    run = in_plain_threads if FORKED.is_set() or gnu_openmp() is None else in_torch_threads
    run(work, pieces)
    if failures:
        raise failures[0]


def in_torch_threads(work: Piece, pieces: int) -> None:
    """One parallel region of the OpenMP that torch uses."""
    openmp = gnu_openmp()
    assert openmp is not None
    parallel, number, team = openmp

    def region(_data: Any) -> None:
        # the team may be smaller than asked for
        for piece in range(number(), pieces, team()):
            work(piece)

    parallel(REGION(region), None, pieces, 0)


def in_plain_threads(work: Piece, pieces: int) -> None:
    """Threads of our own, which sleep between calls: waking them takes about 100 us."""
    others = [pool(pieces - 1).submit(work, piece) for piece in range(1, pieces)]
    work(0)
    for other in others:
        other.result()


@cache
def gnu_openmp() -> tuple[Callable[..., Any], Callable[[], int], Callable[[], int]] | None:
    """(run a region, my number, size of the team) of the GNU OpenMP that is loaded already, or None."""
    try:
        mode = os.RTLD_NOLOAD | os.RTLD_NOW  # only what torch has loaded: a second OpenMP would have threads of its own
        parallel = ctypes.CDLL("libgomp.so.1", mode=mode).GOMP_parallel
        inside = ctypes.PyDLL("libgomp.so.1", mode=mode)  # the calling thread keeps the interpreter lock
        number, team = inside.omp_get_thread_num, inside.omp_get_num_threads
    except (AttributeError, OSError):
        return None
    parallel.argtypes = [REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel, number, team


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for pieces of work; made once for each number of them."""
    return ThreadPoolExecutor(threads, thread_name_prefix="exlstm-ops")


def in_child() -> None:
    """A forked child has the records of its parent's threads, but none of them, and would wait for ever."""
    pool.cache_clear()
    FORKED.set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_child)
