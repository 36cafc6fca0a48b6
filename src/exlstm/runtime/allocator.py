"""Memory that malloc has freed: whether it stays in the process."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
_NEVER = -1
_LARGEST = 32 << 20  # bytes: glibc takes no larger threshold
_HEAPS = 128 << 20  # bytes: two heaps of a thread, so that glibc keeps an empty one
_DEFAULT_PAD = 128 << 10  # bytes

_lock = threading.Lock()
_contexts: list[None] = []  # an entry for each that is open


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Freed memory stays in the process, inside this context or a function that it decorates. For training on a CPU.

    A training step frees the activations of all blocks. glibc returns them to the system, and the next step takes as
    many new pages, which the system clears one by one: up to a third of the time of a step. In here it keeps them, and
    returns them at the end. A tensor of more than 32 MB is returned at once in any case. Does nothing without glibc.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _contexts.append(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_TOP_PAD, _HEAPS)
    try:
        yield
    finally:
        with _lock:
            _contexts.pop()
            if not _contexts:
                # what glibc comes to by itself when it frees its largest block
                libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
                libc.mallopt(_TOP_PAD, _DEFAULT_PAD)
                libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
