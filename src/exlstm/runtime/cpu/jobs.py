"""Short jobs that several threads share out among themselves: the compiled side of `Team` and `Player`.

A job is a compiled function (its address), the address of its arguments, and a number of pieces. The caller works too
and takes whatever nobody else has begun, so a thread that sleeps or has lost its core is waited for only if it is in
the middle of a piece. The control block is a few numbers in memory, each group in a cache line of its own:

    word          ticket of the job, how many pieces it has, and which is next, in one number; taking a piece is
                  one compare-and-swap of it, which also proves that the arguments read before belong to the job
    done          pieces that are finished
    stop          not zero: threads leave
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from exlstm.runtime.cpu.jit import KernelCache, compiled

WORD, FUNCTION, ARGUMENTS, DONE, STOP = 0, 64, 72, 128, 192  # bytes from the start of the control block
CONTROL_BYTES, LINE = 256, 64
BITS = 20  # of the word for each of: next piece, number of pieces
MOST = (1 << BITS) - 1
AWAKE_SECONDS = 1e-3
# Who waits a tenth of that at the end of a job waits for a thread that has lost its core to another process. The next
# jobs are then done alone: two threads on a core and a half would be slower than one.
REST = 20

LONG = ir.IntType(64)


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, LONG.as_pointer())


def _load(_context: Any, _address: Any) -> Any:
    """The int64 at an address, never from before a later load or store (sequentially consistent)."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), generate


def _store(_context: Any, _address: Any, _value: Any) -> Any:
    """Writes an int64 after everything written before."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _add(_context: Any, _address: Any, _value: Any) -> Any:
    """Adds to an int64 in one step; returns what it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def _swap(_context: Any, _address: Any, _expected: Any, _value: Any) -> Any:
    """Replaces an int64 if it is what is expected; whether it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, expected, value = arguments
        found = builder.cmpxchg(_pointer(builder, address), expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


def _call(_context: Any, _function: Any, _job: Any, _piece: Any) -> Any:
    """Calls a compiled `void(int64 job, int64 piece)` by its address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [LONG, LONG])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _relax(_context: Any) -> Any:
    """Lets the core breathe while it waits."""
    machine = binding.get_default_triple().split("-")[0]

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        if machine == "x86_64":
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        elif machine in ("aarch64", "arm64"):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            builder.call(builder.module.declare_intrinsic("llvm.aarch64.hint", (), kind), [ir.IntType(32)(1)])
        return context.get_dummy_value()

    return types.void(), generate


def _ask(_context: Any, _function: Any) -> Any:
    """Calls a C function `int()` by its address."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), []), LONG)

    return types.int64(types.int64), generate


load: Any = intrinsic(_load)
store: Any = intrinsic(_store)
add: Any = intrinsic(_add)
swap: Any = intrinsic(_swap)
call: Any = intrinsic(_call)
ask: Any = intrinsic(_ask)
relax: Any = intrinsic(_relax)


@cache
def address_of(function: Callable[[int, int], None]) -> int:
    """Address of `function(arguments, piece)`, compiled for `Team.run`; it is kept on disk as kernels are."""
    kernel: Any = CFunc(function, ((types.int64, types.int64), types.void), {}, {"error_model": "numpy"})
    kernel._cache = KernelCache(function)
    kernel.compile()
    KEPT.append(kernel)
    return int(kernel.address)


KEPT: list[Any] = []  # compiled functions that live as long as the process


def _take(control: int) -> bool:
    """Takes and does one piece, if there is one."""
    word = load(control + WORD)
    if (word & MOST) >= ((word >> BITS) & MOST):
        return False
    function, arguments = load(control + FUNCTION), load(control + ARGUMENTS)
    if swap(control + WORD, word, word + 1):
        call(function, arguments, word & MOST)
        add(control + DONE, 1)
    return True


take = compiled(_take)


def _together(control: int, function: int, arguments: int, pieces: int) -> int:
    """One job from beginning to end: how many looks it was waited for others. Only one caller at a time may do this."""
    store(control + FUNCTION, function)
    store(control + ARGUMENTS, arguments)
    store(control + DONE, 0)
    ticket = (load(control + WORD) >> (2 * BITS)) + 1
    store(control + WORD, (((ticket << BITS) | pieces) << BITS))
    while take(control):
        pass
    waited = 0
    while load(control + DONE) < pieces:
        waited += 1
        relax()
    return waited


def _alone(function: int, arguments: int, pieces: int) -> None:
    """One job by the caller alone."""
    for piece in range(pieces):
        call(function, arguments, piece)


def _play(control: int, patience: int, rest: int, table: int, count: int) -> int:
    """Many jobs, one after another: so many of them alone at first, and REST after one that was waited for too long.

    control: 0 if all of them are to be done alone. table: four numbers per job: its function, its arguments, its
    pieces, and whether it is worth sharing. Returns how many more are to be done alone.
    """
    for n in range(count):
        at = table + 32 * n
        function, arguments, pieces = load(at), load(at + 8), load(at + 16)
        if load(at + 24) == 0 or control == 0:
            alone(function, arguments, pieces)
        elif rest > 0:
            rest -= 1
            alone(function, arguments, pieces)
        elif together(control, function, arguments, pieces) > patience:
            rest = REST
    return rest


def _serve(control: int, patience: int) -> None:
    """Does pieces of whatever comes, until nothing has come for `patience` looks."""
    idle = 0
    while idle < patience and load(control + STOP) == 0:
        if take(control):
            idle = 0
        else:
            idle += 1
            relax()


together, alone, serve = compiled(_together), compiled(_alone), compiled(_serve)
play = compiled(_play)


@cache
def looks_of(seconds: float) -> int:
    """How often `serve` looks for work in this time."""
    control = np.zeros(CONTROL_BYTES, np.int64)
    serve(control.ctypes.data, 1)  # compiled
    began = time.perf_counter()
    serve(control.ctypes.data, 10_000)
    return max(100, int(10_000 * seconds / (time.perf_counter() - began)))


def _store_number(address: int, value: int) -> None:
    store(address, value)


store_number = compiled(_store_number)
