"""Kernels for the CPU, compiled by Numba when they are first called and kept on disk for the next process.

Numba's own cache watches only the file a kernel stands in, not those whose functions are inlined into it, and keeps an
index that two processes which compile at once can damage. Here every compiled form is a file of its own. Its name says
all that it was made from and for: the sources, Numba, Python, the types of the arguments, the CPU. It is written beside
its place and renamed. Whatever goes wrong with such a file, a kernel is compiled for this process and nothing fails.

Import this page only from a Numba kernel's page: it imports Numba.
"""

import logging
import os
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
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from exlstm.runtime.cpu.simd import FASTMATH

OPS = Path(__file__).parents[2] / "ops"
jit: Any = numba.njit  # its types do not know all of its options


def compiled(function: Callable[..., Any]) -> Any:
    """`function` for Numba: without the GIL, with the floating point of `numba_math`; division by zero is infinite.

    It may call functions of its own page, of the other numba*.py pages of its folder, and of those of `ops`.
    """
    kernel: Any = jit(nogil=True, fastmath=FASTMATH, error_model="numpy", no_cfunc_wrapper=True)(function)
    kernel._cache = KernelCache(function)
    return kernel


def helper(fastmath: Collection[str] = FASTMATH) -> Callable[[Callable[..., Any]], Any]:
    """Decorates what only kernels call: compiled once for whole numbers, not again for each constant that is passed.

    It has no way in from Python, which would take longer to compile than the rest.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        options = {"fastmath": set(fastmath), "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        made = jit(error_model="numpy", **options)(function)
        for_types = made.get_call_template
        made.get_call_template = lambda args, kws: for_types(tuple(map(types.unliteral, args)), kws)
        return made

    return decorate


class KernelCache(FunctionCache):
    """What Numba asks before it compiles a kernel for some types, and tells afterwards."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.files = None
        # RuntimeError: Numba knows no writable folder; OSError: the sources cannot be read
        with suppress(RuntimeError, OSError):
            super().__init__(function)  # type: ignore[no-untyped-call]
            self.files = KernelFiles(Path(self.cache_path), self._impl.filename_base, sources(function))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled kernel, or None: then Numba compiles."""
        target_context.refresh()
        if self.files is not None:
            # unreadable, damaged, of another Numba in spite of its name: all the same as not there
            with suppress(Exception):
                return self._impl.rebuild(target_context, self.files.load(self.key(sig, target_context.codegen())))
        tell(self.files is not None)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled kernel, if that can be done."""
        if self.files is not None:
            with suppress(Exception):
                self.files.save(self.key(sig, data.codegen), self._impl.reduce(data))

    def key(self, sig: Any, codegen: Any) -> object:
        """The types of the arguments, the CPU and its features, the bytecode."""
        return self._index_key(sig, codegen)  # type: ignore[no-untyped-call]


class KernelFiles:
    """The compiled forms of one kernel: one file for each key, which begins with a checksum."""

    def __init__(self, folder: Path, kernel: str, stamp: str) -> None:
        self.folder, self.kernel, self.stamp = folder, f"exlstm-{kernel}", stamp

    def path(self, key: object) -> Path:
        """Where the form of this key is or would be."""
        digest = sha256(repr((key, numba.__version__)).encode()).hexdigest()
        return self.folder / f"{self.kernel}.{self.stamp}.{digest[:16]}.nbc"

    def load(self, key: object) -> Any:
        """What was saved under this key. OSError if there is none, ValueError if it is damaged."""
        content = self.path(key).read_bytes()
        if sha256(content[32:]).digest() != content[:32]:
            raise ValueError(f"{self.path(key)} is damaged; it will be replaced.")
        return pickle.loads(content[32:])

    def save(self, key: object, reduced: Any) -> None:
        """Writes a form, and removes what other versions of the sources have left."""
        content: bytes = dumps(reduced)  # type: ignore[no-untyped-call]
        path = self.path(key)
        beside = path.with_suffix(f".{os.getpid()}.new")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(sha256(content).digest() + content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        for other in self.folder.glob(f"{self.kernel}.*.nbc"):
            if not other.name.startswith(f"{self.kernel}.{self.stamp}."):
                other.unlink(missing_ok=True)


def sources(function: Callable[..., Any]) -> str:
    """A hash of every source that a kernel may be made from: those of its folder and of this one.

    For an op these are all pages of the op, of the ops that it may inline, and the loose pages of `ops`.
    """
    own, ops = Path(getfile(function)).resolve(), OPS.resolve()
    pages = {*own.parent.glob("*.py"), *Path(__file__).parent.glob("*.py")}
    if ops in own.parents:
        folders = {ops / own.relative_to(ops).parts[0], ops / "norm"}
        pages |= {*ops.glob("*.py"), *(page for folder in folders for page in folder.rglob("*.py"))}
    return sha256(b"".join(page.read_bytes() for page in sorted(pages))).hexdigest()[:16]


@cache
def tell(kept: bool) -> None:
    """Says once per process what the user waits for. `logging.getLogger("exlstm")` is where to silence it."""
    then = "the next start finds them on disk" if kept else "there is no writable folder to keep them in"
    logging.getLogger("exlstm").warning(
        "exlstm is compiling its CPU kernels for this machine, which takes some seconds; %s.", then
    )
