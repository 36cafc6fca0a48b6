"""Tensors inside Numba kernels, by the addresses that they begin at.

Arrays cost ten times more than addresses on their way into a kernel, and each of Numba's own ways to make one or a
slice of one takes it longer to compile than the loop that the array is for. These are a few instructions each. Numbers
are float32 where nothing else is said. Import this page only from a Numba kernel's page: it imports Numba.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from exlstm.runtime.cpu.internals import array_value, memcpy, memset, tuple_parts

FLOAT = ir.FloatType()
SIZE = 4  # bytes of a float32
LINE = 64  # bytes of a cache line
LINE_NUMBERS = LINE // SIZE  # spare numbers of an array for `line_of`


def place(builder: Any, address: Any, n: Any) -> Any:
    """A pointer to number n at an address."""
    return builder.gep(builder.inttoptr(address, FLOAT.as_pointer()), [n])


def _at(_context: Any, _address: Any, _n: Any) -> Any:
    """Reads number n at an address."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(place(builder, *arguments), align=SIZE)

    return types.float32(types.intp, types.intp), generate


def _put(_context: Any, _address: Any, _n: Any, _value: Any) -> Any:
    """Writes number n at an address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], place(builder, *arguments[:2]), align=SIZE)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), generate


def _copy(_context: Any, _out: Any, _x: Any, _count: Any) -> Any:
    """Copies `count` numbers from `x` to `out`, which do not overlap."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        out, x, count = arguments
        out, x = (builder.inttoptr(address, FLOAT.as_pointer()) for address in (out, x))
        memcpy(builder, out, x, count, SIZE)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def _clear(_context: Any, _out: Any, _count: Any) -> Any:
    """Writes `count` zeros at `out`."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        out, count = arguments
        pointer = builder.inttoptr(out, FLOAT.as_pointer())
        memset(builder, pointer, builder.mul(count, count.type(SIZE)))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


def _tensor_at(_context: Any, _address: Any, shape: Any, dtype: Any) -> Any:
    """The contiguous tensor with this `data_ptr()`; shape: a number or several."""
    ndim = len(shape) if isinstance(shape, types.BaseTuple) else 1
    kind = types.Array(dtype.dtype, ndim, "C")

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        sizes = [arguments[1]]
        if ndim > 1:
            sizes = tuple_parts(builder, arguments[1])
        strides = [sizes[0].type(1)]
        for size in sizes[:0:-1]:
            strides.insert(0, builder.mul(strides[0], size))
        return array_value(context, builder, kind, arguments[0], sizes, strides)

    given: Any = types.UniTuple(types.intp, ndim) if ndim > 1 else types.intp  # type: ignore[no-untyped-call]
    return kind(types.intp, given, dtype), generate


def _rows_at(_context: Any, _address: Any, _rows: Any, _columns: Any, _apart: Any) -> Any:
    """The matrix at an address whose rows begin `apart` numbers after one another."""
    kind = types.Array(types.float32, 2, "A")

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, rows, columns, apart = arguments
        return array_value(context, builder, kind, address, [rows, columns], [apart, rows.type(1)])

    return kind(*[types.intp] * 4), generate


def _part(_context: Any, x: Any, _first_row: Any, _first_column: Any, _rows: Any, _columns: Any) -> Any:
    """So many rows and columns of a matrix of `rows_at`, or of its transpose, in its memory."""
    kind = types.Array(types.float32, 2, "A")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
        apart, first = tuple_parts(builder, matrix.strides, 2), arguments[1:3]
        begin = builder.ptrtoint(matrix.data, apart[0].type)
        for stride, index in zip(apart, first, strict=True):
            begin = builder.add(begin, builder.mul(stride, index))
        strides = [builder.sdiv(stride, stride.type(SIZE)) for stride in apart]
        return array_value(context, builder, kind, begin, arguments[3:], strides)

    return kind(x, *[types.intp] * 4), generate


def _row(_context: Any, x: Any, _t: Any) -> Any:
    """Row t of a matrix of `rows_at`. The row is known to be contiguous, the matrix is not."""
    kind = types.Array(types.float32, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
        (_, columns), (apart, size) = (tuple_parts(builder, x, 2) for x in (matrix.shape, matrix.strides))
        begin = builder.add(builder.ptrtoint(matrix.data, apart.type), builder.mul(apart, arguments[1]))
        return array_value(context, builder, kind, begin, [columns], [size.type(1)])

    return kind(x, types.intp), generate


def _address_of(_context: Any, kind: Any) -> Any:
    """The address of an array. It keeps no reference: an array made in the kernel needs `hold` after its last use."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        data = context.make_array(kind)(context, builder, arguments[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(kind), generate


def _line_of(_context: Any, kind: Any) -> Any:
    """Address of the first cache line that begins in an array, which has LINE_NUMBERS to spare.

    Where an array begins is up to malloc, and a vector that lies in two lines takes twice the time.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = context.get_value_type(types.intp)
        data = builder.ptrtoint(context.make_array(kind)(context, builder, arguments[0]).data, word)
        return builder.and_(builder.add(data, word(LINE - 1)), word(-LINE))

    return types.intp(kind), generate


def _hold(_context: Any, kind: Any) -> Any:
    """Does nothing, but Numba does not free the array before this call."""

    def generate(context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_dummy_value()

    return types.void(kind), generate


def _prefetch(_context: Any, _address: Any, _n: Any) -> Any:
    """Prefetches the cache line of number n, which may lie beyond the end."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # for reading, to keep, data
        builder.call(fetch, [builder.bitcast(place(builder, *arguments), byte), whole(0), whole(3), whole(1)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


def _number_at(kind: Any, result: Any) -> Any:
    """A function that reads one number of this kind at an address."""

    def read(_context: Any, _address: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], kind.as_pointer()))

        return result(types.intp), generate

    return intrinsic(read)


def _put_double(_context: Any, _address: Any, _value: Any) -> Any:
    """The float64 at an address becomes `value`."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, value = arguments
        builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.float64), generate


def _put_byte(_context: Any, _address: Any, _value: Any) -> Any:
    """The byte at an address becomes 1 if `value`, else 0."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8)
        value = builder.zext(arguments[1], byte)
        builder.store(value, builder.inttoptr(arguments[0], byte.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.boolean), generate


def _put_uint16(_context: Any, _address: Any, _value: Any) -> Any:
    """The two bytes at an address become `value`."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, value = arguments
        builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.uint16), generate


at: Any = intrinsic(_at)
put: Any = intrinsic(_put)
copy: Any = intrinsic(_copy)
clear: Any = intrinsic(_clear)
tensor_at: Any = intrinsic(_tensor_at)
rows_at: Any = intrinsic(_rows_at)
address_of: Any = intrinsic(_address_of)
line_of: Any = intrinsic(_line_of)
hold: Any = intrinsic(_hold)
prefetch: Any = intrinsic(_prefetch)
row: Any = intrinsic(_row)
part: Any = intrinsic(_part)
double_at, byte_at = _number_at(ir.DoubleType(), types.float64), _number_at(ir.IntType(8), types.int8)
uint16_at, long_at = _number_at(ir.IntType(16), types.uint16), _number_at(ir.IntType(64), types.int64)
put_byte: Any = intrinsic(_put_byte)
put_uint16: Any = intrinsic(_put_uint16)
put_double: Any = intrinsic(_put_double)
