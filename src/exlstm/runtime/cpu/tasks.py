"""Tasks that threads share by stealing: the compiled side of `SpinPool`, of regions and of replay.

A task is a kernel (its address), the address of its arguments, its items, and the blocks that these are cut into. The
caller works too and takes every block that no thread has begun, so a thread that sleeps or has lost its core is waited
for only if it is in the middle of a block. The control block is a few numbers in memory, each group in a cache line of
its own:

    word          ticket of the task, how many blocks it has, and which is next, in one number; taking a block is
                  one compare-and-swap of it, which also proves that the task read before belongs to the block
    task          what the blocks belong to
    done          blocks that are finished
    failed        calls of kernels that ran out of memory
    stop          not zero: threads leave
"""

import ctypes
import time
from functools import cache, cached_property
from typing import Any

import numpy as np

from exlstm.runtime.cpu.atomics import add, call, compare_and_swap, load, relax, store
from exlstm.runtime.cpu.jit import c_function, helper

WORD, FUNCTION, ARGUMENTS, ITEMS, BLOCKS, DONE, FAILED, STOP = 0, 64, 72, 80, 88, 128, 192, 256
CONTROL_BYTES, LINE = 320, 64
BITS = 20  # of the word for each of: next block, number of blocks
MAX_BLOCKS = (1 << BITS) - 1
TASK = 40  # bytes of a task in a table: kernel, arguments, items, blocks, and whether threads share it
# A task whose end was waited for longer than a tenth of the time that threads stay awake met a thread that has lost its
# core to another process. The next tasks are then run serially: two threads on a core and a half are slower than one.
BACKOFF_TASKS = 20


@helper()
def steal_block(control: int) -> bool:
    """Takes and computes one block of the task; False if there is none left."""
    word = load(control + WORD)
    block, blocks = word & MAX_BLOCKS, (word >> BITS) & MAX_BLOCKS
    if block >= blocks:
        return False
    function, arguments, items = load(control + FUNCTION), load(control + ARGUMENTS), load(control + ITEMS)
    if compare_and_swap(control + WORD, word, word + 1):
        if call(function, arguments, items * block // blocks, items * (block + 1) // blocks) == 0:
            add(control + FAILED, 1)
        add(control + DONE, 1)
    return True


@helper()
def run_parallel(control: int, function: int, arguments: int, items: int, blocks: int) -> int:
    """Runs a task to its end; returns the spins that its end was waited for. One caller at a time."""
    store(control + FUNCTION, function)
    store(control + ARGUMENTS, arguments)
    store(control + ITEMS, items)
    store(control + DONE, 0)
    ticket = (load(control + WORD) >> (2 * BITS)) + 1
    store(control + WORD, (((ticket << BITS) | blocks) << BITS))
    while steal_block(control):
        pass
    waited = 0
    while load(control + DONE) < blocks:
        waited += 1
        relax()
    return waited


@helper()
def replay_tasks(control: int, spin_limit: int, backoff: int, table: int, count: int) -> int:
    """Tasks of a table in their order: `backoff` of them serially at first, and more after one that was waited for.

    spin_limit: 0 if all of them are to be run serially. Returns how many more are to be run so; -1 after a failure.
    """
    for n in range(count):
        task = table + TASK * n
        function, arguments, items, blocks = load(task), load(task + 8), load(task + 16), load(task + 24)
        if load(task + 32) == 0 or spin_limit == 0 or backoff > 0:
            backoff -= load(task + 32) if backoff > 0 else 0
            if call(function, arguments, 0, items) == 0:
                return -1
        elif run_parallel(control, function, arguments, items, blocks) > spin_limit:
            backoff = BACKOFF_TASKS
    return -1 if spin_limit > 0 and load(control + FAILED) > 0 else backoff


@helper()
def serve(control: int, spin_limit: int) -> None:
    """Steals blocks of any task, until there has been none for `spin_limit` spins."""
    idle = 0
    while idle < spin_limit and load(control + STOP) == 0:
        if steal_block(control):
            idle = 0
        else:
            idle += 1
            relax()


def _serve(control: int, spin_limit: int) -> int:
    serve(control, spin_limit)
    return 1


def _replay(control: int, spin_limit: int, backoff: int, table: int, count: int) -> int:
    left: int = replay_tasks(control, spin_limit, backoff, table, count)
    return left + 1


class Function:
    """A compiled function as Python calls it: compiled on first call, run without the interpreter lock."""

    def __init__(self, function: Any) -> None:
        self.function, self.count = function, function.__code__.co_argcount

    @cached_property
    def call(self) -> Any:
        """The compiled function."""
        kind = ctypes.CFUNCTYPE(*[ctypes.c_int64] * (self.count + 1))
        return kind(c_function(self.function, self.count).address)

    def __call__(self, *arguments: int) -> int:
        return int(self.call(*arguments))


serve_until_idle, replay_table = Function(_serve), Function(_replay)


def control_block() -> tuple[Any, int]:
    """Memory for a control block, all zeros, and its address, where a cache line begins."""
    memory = np.zeros(CONTROL_BYTES + LINE, np.uint8)
    return memory, memory.ctypes.data + -memory.ctypes.data % LINE


@cache
def spins_in(seconds: float) -> int:
    """Spins of `serve` in this time."""
    memory, control = control_block()
    serve_until_idle(control, 1)  # compiled
    began = time.perf_counter()
    serve_until_idle(control, 10_000)
    del memory
    return max(100, int(10_000 * seconds / (time.perf_counter() - began)))
