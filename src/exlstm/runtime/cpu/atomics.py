"""Atomic loads and stores of int64, and calls by address, inside compiled functions."""

from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

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
    """Adds to an int64 atomically; returns the old value."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def _compare_and_swap(_context: Any, _address: Any, _expected: Any, _value: Any) -> Any:
    """Compare-and-swap of an int64; returns whether it had the expected value."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, expected, value = arguments
        found = builder.cmpxchg(_pointer(builder, address), expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


def _call(_context: Any, _function: Any, _arguments: Any, _first: Any, _last: Any) -> Any:
    """Calls a compiled kernel by its address; zero if it failed."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(LONG, [LONG] * 3)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 4), generate


def _call_c_int(_context: Any, _function: Any) -> Any:
    """Calls a C function `int()` by its address."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), []), LONG)

    return types.int64(types.int64), generate


def _relax(_context: Any) -> Any:
    """The pause instruction of a spin loop: it saves power and leaves room to the core's other thread."""
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


load: Any = intrinsic(_load)
store: Any = intrinsic(_store)
add: Any = intrinsic(_add)
compare_and_swap: Any = intrinsic(_compare_and_swap)
call: Any = intrinsic(_call)
call_c_int: Any = intrinsic(_call_c_int)
relax: Any = intrinsic(_relax)
