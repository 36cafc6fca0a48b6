"""Kernels whose threads share every item: they go through the same steps together, and wait for each other after each.

Every thread calls the kernel once, with its number and how many there are in the place of a range of items. That needs
all of them to run at the same time, which regions of OpenMP do, and a `SpinPool` does not: without OpenMP one thread
does all.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch

from exlstm.runtime.cpu.atomics import add, call, call_c_int, load, relax
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import I64, Kernel
from exlstm.runtime.cpu.region import REGION, address_of_bytes, usable_openmp
from exlstm.runtime.cpu.tasks import Function

FUNCTION, ARGUMENTS, ARRIVED, FAILED, THREAD_NUMBER, NUM_THREADS = range(0, 48, 8)
SPINS = 4096  # looks at the counter before a thread gives way to others of its core
ENOUGH = 1 << 40  # arrivals in the place of a thread that failed: the others need not wait for it


class Barrier(NamedTuple):
    """How often threads have arrived, all together, and the address of a function that gives way to other threads."""

    arrived: I64
    give_way: int


NO_BARRIER = Barrier(None, 0)


def new_barrier() -> Barrier:
    """A barrier at which no thread has arrived yet."""
    return Barrier(torch.zeros(1, dtype=torch.int64), give_way())


@cache
def give_way() -> int:
    """The address of sched_yield, or 0 where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


@helper()
def wait_for_all(barrier: Barrier, arrivals: int) -> None:
    """Waits until threads have arrived so many times: the number of threads, times that of this wait, from 1 on."""
    add(barrier.arrived, 1)
    looks = 0
    while load(barrier.arrived) < arrivals:
        relax()
        looks += 1
        if looks > SPINS and barrier.give_way != 0:
            call_c_int(barrier.give_way)


def _shared_region(data: int) -> int:
    """The body of a region: each thread calls the kernel once."""
    number, threads = call_c_int(load(data + THREAD_NUMBER)), call_c_int(load(data + NUM_THREADS))
    if call(load(data + FUNCTION), load(data + ARGUMENTS), number, threads) == 0:
        add(data + FAILED, 1)
        add(load(data + ARRIVED), ENOUGH)
    return 1


shared_region = Function(_shared_region)


def launch_shared(kernel: Kernel, threads: int, barrier: Barrier, *arguments: Any) -> None:
    """Runs a kernel whose threads share every item, on so many, or fewer if there are not as many.

    The kernel's `first` is the number of a thread and its `last` how many there are; its results may not depend on
    them. `barrier` is among its arguments.
    Raises ValueError for a tensor that does not fit, MemoryError if there was too little memory.
    """
    block, openmp = kernel.checked(arguments), usable_openmp()
    if openmp is None:
        finished = kernel.call(block, 0, 1)
    else:
        arrived = barrier.arrived.data_ptr()
        data = (ctypes.c_int64 * 6)(kernel.address, address_of_bytes(block), arrived, 0, *openmp.queries)
        openmp.run(ctypes.cast(shared_region.call, REGION), ctypes.addressof(data), threads)
        finished = data[FAILED // 8] == 0
    if not finished:
        raise MemoryError(f"the kernel {kernel.name} got no memory to work in; give it a smaller batch.")
