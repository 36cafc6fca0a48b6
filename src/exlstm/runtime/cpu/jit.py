"""Functions compiled by Numba when they are first needed, and cached on disk for the next process.

Numba's own cache watches only the file a function stands in, not those whose functions are inlined into it, and keeps
an index that two processes which compile at once can damage. Here every compiled form is a file of its own. Its name
hashes its inputs: the sources, Numba, Python, the types of the arguments, the CPU. An error with such a file is
ignored: the function is compiled for this process.
"""

import logging
import pickle
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from hashlib import sha256
from inspect import getfile
from pathlib import Path
from typing import Any

import numba
from numba import types

from exlstm.runtime.cpu.internals import FunctionCache, compile_function, dumps, unliteral_arguments
from exlstm.runtime.cpu.simd import FASTMATH
from exlstm.runtime.files import write_atomically

OPS = Path(__file__).parents[2] / "ops"
INLINED = ("layer", "linear", "lstm", "norm")  # ops whose pages the kernels of others inline
jit: Any = numba.njit  # its types do not know all of its options


def helper(fastmath: Collection[str] = FASTMATH, *, inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function that only kernels call, with the floating point of `simd`; division by zero is infinite.

    It is compiled once for whole numbers, not again for each constant that is passed, and has no way in from Python,
    which would take longer to compile than the rest. inline: LLVM may not choose to call it.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        options = {"fastmath": set(fastmath), "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        options |= {"forceinline": inline}
        made = jit(error_model="numpy", **options)(function)
        unliteral_arguments(made)
        return made

    return decorate


def c_function(function: Callable[..., Any], arguments: int, *, source: Callable[..., Any] | None = None) -> Any:
    """`function` of so many int64, which returns an int64, compiled as a function of C with an `address`.

    It returns zero on an exception, for want of memory. source: the function whose file and name the compiled form is
    cached under; by default the same.
    """
    cache = CompiledForms(function if source is None else source)
    made = compile_function(function, ([types.int64] * arguments, types.int64), cache)
    HELD.append(made)
    return made


HELD: list[Any] = []  # references to compiled functions, for the life of the process


class CompiledForms(FunctionCache):
    """Numba's cache of a function: loads compiled forms from, and saves them to, `CompiledFiles`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.files = None
        # RuntimeError: Numba knows no writable folder; OSError, TypeError: the sources cannot be read
        with suppress(RuntimeError, OSError, TypeError):
            super().__init__(function)  # type: ignore[no-untyped-call]
            self.files = CompiledFiles(Path(self.cache_path), self._impl.filename_base, sources(function))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled form, or None: then Numba compiles."""
        target_context.refresh()
        if self.files is not None:
            # unreadable, damaged or of another Numba: as if it were missing
            with suppress(Exception):
                return self._impl.rebuild(target_context, self.files.load(self.key(sig, target_context.codegen())))
        announce(self.files is not None)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Saves a compiled form; errors are ignored."""
        if self.files is not None:
            with suppress(Exception):
                self.files.save(self.key(sig, data.codegen), self._impl.reduce(data))

    def key(self, sig: Any, codegen: Any) -> object:
        """The types of the arguments, the CPU and its features, the bytecode."""
        return self._index_key(sig, codegen)  # type: ignore[no-untyped-call]


class CompiledFiles:
    """The compiled forms of one function: one file for each key, which begins with a checksum."""

    def __init__(self, folder: Path, name: str, stamp: str) -> None:
        self.folder, self.name, self.stamp = folder, f"exlstm-{name}", stamp

    def path(self, key: object) -> Path:
        """The path of this key's form."""
        digest = sha256(repr((key, numba.__version__)).encode()).hexdigest()
        return self.folder / f"{self.name}.{self.stamp}.{digest[:16]}.nbc"

    def load(self, key: object) -> Any:
        """The form saved under this key. OSError if there is none, ValueError if it is damaged."""
        content = self.path(key).read_bytes()
        if sha256(content[32:]).digest() != content[:32]:
            raise ValueError(f"{self.path(key)} is damaged; it will be replaced.")
        return pickle.loads(content[32:])

    def save(self, key: object, reduced: Any) -> None:
        """Writes a form, and removes those of other versions of the sources."""
        content: bytes = dumps(reduced)  # type: ignore[no-untyped-call]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(key), sha256(content).digest() + content, durable=False)
        for other in self.folder.glob(f"{self.name}.*.nbc"):
            if not other.name.startswith(f"{self.name}.{self.stamp}."):
                other.unlink(missing_ok=True)


def sources(function: Callable[..., Any]) -> str:
    """A hash of every source that a function may be made from: those of its folder and of this one.

    For an op these are all pages of the op, of those that others inline, and the loose pages of `ops`.
    """
    own, ops = Path(getfile(function)).resolve(), OPS.resolve()
    pages = {own, *own.parent.glob("*.py"), *Path(__file__).parent.glob("*.py")}
    if ops in own.parents:
        folders = {ops / folder for folder in (own.relative_to(ops).parts[0], *INLINED)}
        pages |= {*ops.glob("*.py"), *(page for folder in folders for page in folder.rglob("*.py"))}
    return sha256(b"".join(page.read_bytes() for page in sorted(pages))).hexdigest()[:16]


@cache
def announce(cached: bool) -> None:
    """Logs, once per process, why a first call takes seconds. `logging.getLogger("exlstm")` is where to silence it."""
    then = "the next start finds them on disk" if cached else "there is no writable folder to keep them in"
    logging.getLogger("exlstm").warning(
        "exlstm is compiling its CPU kernels for this machine, which takes some seconds; %s.", then
    )
