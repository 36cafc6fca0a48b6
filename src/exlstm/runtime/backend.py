"""Which backend of an op runs: one visible decision, and a record of it for `exlstm.explain`.

Every op lists its candidates, best first, each with the reason why it cannot run here, or None.
"auto" takes the first that can; naming a backend that cannot run is an error that says why.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor

from exlstm.runtime.internals import is_compiling
from exlstm.runtime.tracing import tracer, tracing_obstacle


class Choice(NamedTuple):
    """One decision: the op, the backend that runs, and why (or why not the better ones)."""

    op: str
    backend: str
    why: str


FASTEST = "the fastest that there is for this device and dtype"
_record: ContextVar[list[Choice] | None] = ContextVar("exlstm_backend_choices", default=None)


def choose(
    op: str,
    backend: str,
    candidates: Sequence[tuple[str, str | None]],
    tensors: Iterable[Tensor | None] = (),
    *,
    portable: Sequence[str] = (),
) -> str:
    """Name of the backend to run.

    backend: "auto" or a candidate's name. candidates: (name, obstacle or None), best first.
    tensors: the op's inputs. Tracing and transforms of torch exclude some backends.
    portable: fast forms that a graph for other runtimes may have; else it has the definition.
    Raises ValueError for an unknown name and for a named backend with an obstacle.
    """
    if (tracing := tracer(tensors)) is not None:
        candidates = [(name, obstacle or tracing_obstacle(name, tracing, portable)) for name, obstacle in candidates]
    if backend == "auto" and candidates[0][1] is None:
        picked, why = candidates[0][0], FASTEST
    elif backend == "auto":
        # in words that the compilers of all torch versions can trace
        first = min(n for n, (_, obstacle) in enumerate(candidates) if obstacle is None)
        picked = candidates[first][0]
        why = "; ".join(f"not {name}: {obstacle}" for name, obstacle in candidates[:first])
    elif backend not in (obstacles := dict(candidates)):
        raise ValueError(f"{op} has no backend {backend!r}; use one of {['auto', *obstacles]}.")
    elif obstacles[backend] is not None:
        raise ValueError(f"backend {backend!r} of {op} cannot run: {obstacles[backend]}; use backend='auto'.")
    else:
        picked, why = backend, "asked for by name"
    record(op, picked, why)
    return picked


def record(op: str, backend: str, why: str = FASTEST) -> None:
    """Records a decision, for `recorded`."""
    # torch.compile cannot look into the variable, and a compiled graph is not explained
    choices = None if is_compiling() else _record.get()
    if choices is not None:
        choices.append(Choice(op, backend, why))


@contextmanager
def recorded() -> Iterator[list[Choice]]:
    """Collects every choice made inside the `with` block."""
    choices: list[Choice] = []
    token = _record.set(choices)
    try:
        yield choices
    finally:
        _record.reset(token)
