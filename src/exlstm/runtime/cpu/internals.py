"""Every private name of Numba that exlstm leans on, with the reason, and the version that it was last checked with.

`../internals.py` does the same for torch. Checked with Numba 0.68.1 and llvmlite 0.50; Numba's manual for extending it
uses `cgutils`, its notes on caching name `FunctionCache`, and the rest is stable since 0.59.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.serialize import dumps
from numba.np.arrayobj import populate_array

__all__ = [
    "FunctionCache",
    "alloca",
    "array_value",
    "compile_function",
    "dumps",
    "llvm_function",
    "loop",
    "memcpy",
    "memset",
    "tuple_parts",
    "unliteral_arguments",
    "use_cache",
]


def use_cache(made: Any, cache: FunctionCache) -> None:
    """Asks `cache` for compiled forms of a function: Numba's own cache misses edits of functions that are inlined."""
    made._cache = cache


def unliteral_arguments(made: Any) -> None:
    """Compiles a function of Numba once for all whole numbers, not again for each constant that is passed."""
    for_types = made.get_call_template
    made.get_call_template = lambda args, kws: for_types(tuple(map(types.unliteral, args)), kws)


def compile_function(function: Callable[..., Any], signature: Any, cache: FunctionCache) -> Any:
    """`function` compiled as a function of C, which has an `address`. On an exception it prints it and returns zero."""
    made: Any = CFunc(function, signature, {}, {"error_model": "numpy"})
    use_cache(made, cache)
    made.compile()
    return made


def alloca(builder: Any, kind: Any) -> Any:
    """Room for a value on the stack, made once per call of the function."""
    return cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]


def llvm_function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """A function that the linker or LLVM knows by its name."""
    kind = ir.FunctionType(result, arguments)
    return cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]


def loop(builder: Any, start: Any, stop: Any, step: Any) -> Any:
    """A `with` block that is run for every index; gives (index, count)."""
    return cgutils.for_range_slice(builder, start, stop, step)


def memset(builder: Any, pointer: Any, size: Any) -> None:
    """So many bytes become zero."""
    cgutils.memset(builder, pointer, size, 0)  # type: ignore[no-untyped-call]


def memcpy(builder: Any, out: Any, x: Any, count: Any, item_size: int) -> None:
    """Copies so many items."""
    cgutils.raw_memcpy(builder, out, x, count, item_size)  # type: ignore[no-untyped-call]


def tuple_parts(builder: Any, value: Any, count: int | None = None) -> list[Any]:
    """The values of a tuple."""
    return list(cgutils.unpack_tuple(builder, value, count))  # type: ignore[no-untyped-call]


def array_value(context: Any, builder: Any, kind: Any, address: Any, shape: list[Any], strides: list[Any]) -> Any:
    """The value of an array that owns no memory; strides in numbers. Numba has no public way to make one."""
    made = context.make_array(kind)(context, builder)
    number = shape[0].type(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    populate_array(  # type: ignore[no-untyped-call]
        made, builder.inttoptr(address, made.data.type), shape, [builder.mul(x, number) for x in strides], number, None
    )
    return made._getvalue()
