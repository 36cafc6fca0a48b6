"""Capture of a decoding step: the kernels that it launches, in order, so that they can be replayed.

While a `Graph` is active, every `launch` of a CPU kernel also adds a node to it, with the tensors and numbers that the
kernel was given. `cpu/aten.py` adds what torch computes in between; `cpu/graph.py` replays. Numba is not needed here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class NotCapturable(Exception):
    """An operation of a step cannot be replayed; the message names it."""


class Node(NamedTuple):
    """A launch of a kernel. Its items may run in any order; parallel: worth several threads."""

    kernel: Any
    items: int
    arguments: tuple[Any, ...]
    parallel: bool


@dataclass
class Graph:
    """The launches of a step that is being captured."""

    nodes: list[Node] = field(default_factory=list)


_active: ContextVar[Graph | None] = ContextVar("exlstm_capture", default=None)


def active() -> Graph | None:
    """The graph that is being captured, if there is one."""
    # torch.compile cannot look into the variable, and nothing is captured while it traces
    return None if torch.compiler.is_compiling() else _active.get()


def refuse(what: str) -> None:
    """Raises NotCapturable if a graph is being captured: for computations that `launch` and torch do not see."""
    if active() is not None:
        raise NotCapturable(what)


@contextmanager
def capturing(graph: Graph) -> Iterator[None]:
    """Captures into `graph` inside the `with` block."""
    token = _active.set(graph)
    try:
        yield
    finally:
        _active.reset(token)
