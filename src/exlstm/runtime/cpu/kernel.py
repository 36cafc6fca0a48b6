"""CPU kernels: how one is declared, and how its arguments get from torch into compiled code.

    @kernel()
    def scale_rows(first: int, last: int, D: int, x_MD: F32, y_MD: F32, factor: float) -> None:
        for m in range(first, last): ...

A kernel computes items first to last - 1 of its work. Its other parameters are numbers (int, float, bool), addresses of
tensors, or NamedTuples of these. An address is annotated with the numbers that lie there; capitals at the end of its
name are sizes, and the tensor must have their product of numbers. `launch` runs kernels, and only it.

Compiled is one function of C for each kernel: f(address of the arguments, first, last). Every argument is 8 bytes.
"""

import ctypes
import re
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import prod
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from exlstm.runtime.cpu.jit import c_function, helper


class MemoryLayout(NamedTuple):
    """Layout of the numbers that a kernel reads at an address.

    dtype: None is bfloat16 where the argument `bf16` is true, else float32.
    order: "dense", contiguous; "rows", contiguous along the last axis, with strides passed to the kernel along the
    others; "any", with strides passed for all axes, and either dtype.
    """

    dtype: torch.dtype | None
    order: str = "dense"


# outside a kernel an address is a tensor or None, inside an integer
F32 = Annotated[Any, MemoryLayout(torch.float32)]
F64 = Annotated[Any, MemoryLayout(torch.float64)]
I64 = Annotated[Any, MemoryLayout(torch.int64)]
Bools = Annotated[Any, MemoryLayout(torch.bool)]
BF16 = Annotated[Any, MemoryLayout(torch.bfloat16)]
Floats = Annotated[Any, MemoryLayout(None)]
F32Rows = Annotated[Any, MemoryLayout(torch.float32, "rows")]
FloatRows = Annotated[Any, MemoryLayout(None, "rows")]
Strided = Annotated[Any, MemoryLayout(None, "any")]
Constants = Annotated[Any, "constants"]  # of a `ConstantTable`
Addresses = Annotated[Any, "addresses"]  # of several tensors in a row, only as the last parameter


class ConstantTable:
    """Numbers that a kernel reads as int64, made once and passed often. held: the owner of tensors addressed there."""

    def __init__(self, numbers: Sequence[int], held: object = None) -> None:
        self.numbers, self.held = array("q", numbers), held
        self.address = self.numbers.buffer_info()[0]


def address(x: Tensor | None, count: int, dtype: torch.dtype) -> int:
    """The address of x, of `count` numbers, for a `ConstantTable`; 0 for None. ValueError if it would be misread."""
    if x is None:
        return 0
    if x.dtype is not dtype or x.numel() != count or not x.is_contiguous() or not x.is_cpu:
        raise misread("a tensor in a table", x, count, dtype, "dense")
    return x.data_ptr()


def misread(what: str, x: Tensor, count: int | None, dtype: torch.dtype, order: str) -> ValueError:
    """The error for a tensor of another dtype, size or layout than a kernel reads."""
    numbers = "numbers" if count is None else f"{count} numbers"
    return ValueError(
        f"{what} is {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} on {x.device}; "
        f"a kernel reads {numbers} of {dtype} on a CPU there, order {order!r}."
    )


class Parameter(NamedTuple):
    """A parameter, or a field of one that is a record. sizes: the names of the sizes of a tensor."""

    name: str
    kind: Any
    sizes: tuple[str, ...] = ()


Structure = Any  # a kind, or (NamedTuple class, its fields' structures)
Reader = Callable[[Sequence[Any]], bytes]
SIZES = re.compile(r"_([A-Z]+)\d*$")


def flattened(name: str, hint: Any) -> Iterator[Parameter]:
    """The parameters of an annotation: one, or those of a record's fields."""
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        for field, inner in get_type_hints(hint, include_extras=True).items():
            yield from flattened(field, inner)
        return
    kind = get_args(hint)[1] if get_origin(hint) is Annotated else hint
    if kind not in (int, float, bool, "constants", "addresses") and not isinstance(kind, MemoryLayout):
        raise TypeError(f"the parameter {name} of a kernel is annotated {hint}; use a number, an address or a record.")
    found = SIZES.search(name)
    yield Parameter(name, kind, tuple(found.group(1)) if found and isinstance(kind, MemoryLayout) else ())


def structure(hint: Any) -> Structure:
    """The type of a parameter inside a kernel."""
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        fields = [structure(inner) for inner in get_type_hints(hint, include_extras=True).values()]
        return types.BaseTuple.from_types([*fields], hint)  # type: ignore[no-untyped-call]
    return {float: types.float64, bool: types.boolean}.get(hint, types.int64)


def pattern(hint: Any, names: Iterator[str]) -> str:
    """The parameters of an annotation as the left side of an assignment, with these names: (p0, p1) of a record."""
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        fields = get_type_hints(hint, include_extras=True).values()
        return f"({' '.join(pattern(inner, names) + ',' for inner in fields)})"
    return next(names)


class Pointer(NamedTuple):
    """A parameter that is an address, for the check of its tensor. known: the product of sizes that are constants."""

    place: int
    name: str
    layout: MemoryLayout
    sizes: tuple[int, ...]  # places of the others
    known: int
    is_sized: bool

    def test(self, x: str, bf16: str) -> str:
        """The condition under which a kernel reads the tensor x as it is, as source; p0, p1, ... are the parameters.

        bf16: source for whether a tensor of either dtype is bfloat16.
        """
        dtype, order = self.layout
        tests = [f"{x}.is_cpu"]
        if dtype is not None:
            tests.append(f"{x}.dtype is {dtype}")
        elif order == "any":
            tests.append(f"({x}.dtype is torch.bfloat16 or {x}.dtype is torch.float32 and not {bf16})")
        else:
            tests.append(f"{x}.dtype is (torch.bfloat16 if {bf16} else torch.float32)")
        if order != "any":
            tests.append(f"({x}.is_contiguous(){f' or {x}.stride(-1) == 1' if order == 'rows' else ''})")
        if self.is_sized:
            tests.append(f"{x}.numel() == {' * '.join([str(self.known), *(f'p{size}' for size in self.sizes)])}")
        return " and ".join(tests)


class Kernel:
    """A kernel, compiled when its address is first needed. `constants`: sizes that are no parameters."""

    def __init__(self, function: Callable[..., None], constants: dict[str, int]) -> None:
        self.function, self.name = function, function.__name__
        hints = get_type_hints(function, include_extras=True)
        hints.pop("return", None)
        names = list(hints)
        if names[:2] != ["first", "last"]:
            raise TypeError(f"the kernel {self.name} begins with the parameters {names[:2]}; they must be first, last.")
        self.structures = [structure(hints[name]) for name in names[2:]]
        self.has_records = any(isinstance(x, types.BaseTuple) for x in self.structures)
        self.parameters = [each for name in names[2:] for each in flattened(name, hints[name])]
        places = {each.name: n for n, each in enumerate(self.parameters)}
        self.flag = places.get("bf16", -1)
        self.pointers = [
            Pointer(n, each.name, each.kind, tuple(places[x] for x in each.sizes if x in places),
                    prod(constants[x] for x in each.sizes if x not in places), bool(each.sizes))
            for n, each in enumerate(self.parameters) if isinstance(each.kind, MemoryLayout)
        ]  # fmt: skip
        self.tables = [n for n, each in enumerate(self.parameters) if each.kind == "constants"]
        self.has_tail = bool(self.parameters) and self.parameters[-1].kind == "addresses"
        self.format = "".join("d" if each.kind is float else "q" for each in self.parameters)
        self.pack = struct.Struct(self.format).pack
        each_name = (f"p{n}" for n in range(len(self.parameters)))
        self.pattern = " ".join(pattern(hints[name], each_name) + "," for name in names[2:])

    @cached_property
    def address(self) -> int:
        """The address of the compiled function."""
        return int(self.compiled.address)

    @cached_property
    def call(self) -> Any:
        """The compiled function: (arguments, first, last) -> 0 if it ran out of memory. It releases Python's lock."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        return kind(self.address)

    @cached_property
    def compiled(self) -> Any:
        """The function of C that calls the kernel."""
        body, unpack = helper()(self.function), unpacking(self.structures, self.has_tail)

        def entry(arguments: int, first: int, last: int) -> int:
            body(first, last, *unpack(arguments))
            return 1

        # Numba makes the names of symbols from these
        entry.__name__ = entry.__qualname__ = f"{self.name}_entry"
        entry.__module__ = self.function.__module__
        return c_function(entry, 3, source=self.function)

    def flat(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments, with the fields of records in their places and a list of tensors at the end."""
        if len(arguments) != len(self.structures):
            raise TypeError(f"the kernel {self.name} takes {len(self.structures)} arguments, not {len(arguments)}.")
        if self.has_records:
            found: list[Any] = []
            flatten(arguments, found)
        else:
            found = list(arguments)
        if self.has_tail:
            found.extend(found.pop())
        return found

    @cached_property
    def checked(self) -> Reader:
        """The function from arguments to what compiled code reads.

        It raises ValueError for a tensor that the kernel would misread, for it receives the address alone. Its source
        is made for this kernel: a loop over parameters takes several times as long, which small kernels would wait for.
        """
        values = [f"p{n}" for n in range(len(self.parameters))]
        lines = [f"if len(arguments) != {len(self.structures)}: flat(arguments)", f"{self.pattern} = arguments"]
        bf16 = f"p{self.flag}" if self.flag >= 0 else "False"
        for pointer in self.pointers:
            x, values[pointer.place] = f"p{pointer.place}", f"a{pointer.place}"
            lines += [
                f"if {x} is None: a{pointer.place} = 0",
                f"elif {pointer.test(x, bf16)}: a{pointer.place} = {x}.data_ptr()",
                f"else: refuse({pointer.place}, arguments)",
            ]
        if self.has_tail:
            given = ", ".join([*values[:-1], f"*{values[-1]}"])
            lines.append(f"return packed([{given}], torch.Tensor.data_ptr)")
        else:
            given = ", ".join(f"{x}.address" if n in self.tables else x for n, x in enumerate(values))
            lines.append(f"return pack({given})")
        scope: dict[str, Any] = {
            "torch": torch,
            "flat": self.flat,
            "refuse": self.refuse,
            "packed": self.packed,
            "pack": self.pack,
        }
        exec("\n    ".join(["def checked(arguments):", *lines]), scope)
        made: Reader = scope["checked"]
        return made

    def refuse(self, place: int, arguments: Sequence[Any]) -> None:
        """Raises the error for a tensor that does not fit, the parameter at this place."""
        flat = self.flat(arguments)
        (pointer,) = (each for each in self.pointers if each.place == place)
        dtype, order = pointer.layout
        if dtype is None:
            dtype = torch.bfloat16 if self.flag >= 0 and flat[self.flag] else torch.float32
        count = prod([pointer.known, *(flat[size] for size in pointer.sizes)]) if pointer.is_sized else None
        raise misread(f"{pointer.name} of the kernel {self.name}", flat[place], count, dtype, order)

    def packed(self, values: list[Any], address: Callable[[Tensor], int]) -> bytes:
        """Values of parameters, some of them tensors, as compiled code reads them. address: where a tensor is."""
        for n in self.tables:
            values[n] = values[n].address
        if not self.has_tail:
            return self.pack(*values)
        fixed = len(self.parameters)
        tail = [address(x) for x in values[fixed - 1 :]]
        return struct.pack(f"{self.format}{len(tail)}q", *values[: fixed - 1], 0, *tail)

    def bound(self, flat: Sequence[Any], address: Callable[[Tensor], int]) -> bytes:
        """As `checked`, of arguments that were checked before, with tensors where `address` says."""
        values = list(flat)
        for place, *_ in self.pointers:
            values[place] = 0 if values[place] is None else address(values[place])
        return self.packed(values, address)


def flatten(record: Sequence[Any], found: list[Any]) -> None:
    """Appends numbers and tensors, and the fields of records in their places."""
    for x in record:
        if isinstance(x, tuple):
            flatten(x, found)
        else:
            found.append(x)


def unpacking(structures: Sequence[Structure], has_tail: bool) -> Any:
    """A function inside kernels: from the address of the arguments to a tuple of them."""
    made = types.BaseTuple.from_types(tuple(structures))  # type: ignore[no-untyped-call]
    word = ir.IntType(64)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        places = iter(range(1 << 20))

        def loaded(kind: Any) -> Any:
            if isinstance(kind, types.BaseTuple):
                return context.make_tuple(builder, kind, [loaded(each) for each in kind.types])  # type: ignore[attr-defined]
            n = next(places)
            value = ir.DoubleType() if kind is types.float64 else word
            here = builder.add(arguments[0], word(8 * n))
            x = builder.load(builder.inttoptr(here, value.as_pointer()))
            return builder.icmp_signed("!=", x, word(0)) if kind is types.boolean else x

        values = [loaded(kind) for kind in structures]
        if has_tail:
            values[-1] = builder.add(arguments[0], word(8 * (next(places))))
        return context.make_tuple(builder, made, values)

    def typed(_context: Any, _arguments: Any) -> Any:
        return made(types.int64), generate

    return intrinsic(typed)


def kernel(**constants: int) -> Callable[[Callable[..., None]], Kernel]:
    """Declares a kernel. constants: sizes in the names of its tensors that are no parameters, such as G=4."""
    return lambda function: Kernel(function, constants)
