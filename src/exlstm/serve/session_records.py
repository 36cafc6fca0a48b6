"""Records of sessions: names that point at a state, and the states that they have been at."""

import base64
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import TracebackType
from typing import Any

from exlstm.nn.fields import SizeOrZero, check_fields, json_value
from exlstm.serve.state_records import StateInfo

VERSION = 1
TOKEN = "I"  # of an array: 4 bytes


class SessionGone(ValueError):
    """No such session of this owner."""


class SessionBusy(ValueError):
    """Another turn of the session is under way."""


class SessionConflict(ValueError):
    """The session has gone on from another state than the request says."""


class NoSuchMark(ValueError):
    """The session cannot go back to that place: there is no state there, and no transcript to read again."""


@dataclass(frozen=True, kw_only=True)
class SessionMark:
    """A state that a session has been at, after so many tokens. pinned: the session keeps it from being evicted."""

    state: str
    tokens: int
    pinned: bool = False


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session; a value.

    marks: the states at the ends of turns, the last of which is the head; the first one may be the state that it was
    created with. based: whether that is so. transcript: tokens as bytes, those from number `offset` on; None: not kept.
    mark_every: see `Sessions`.
    """

    id: str
    owner: str
    name: str | None
    created: float
    based: bool = False
    marks: tuple[SessionMark, ...] = ()
    transcript: bytes | None = field(default=None, repr=False)
    offset: int = 0
    mark_every: SizeOrZero | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def head(self) -> str | None:
        """The state that the next turn goes on from; None before the first turn."""
        return self.marks[-1].state if self.marks else None

    @property
    def tokens(self) -> int:
        """Tokens that the head has read."""
        return self.marks[-1].tokens if self.marks else 0

    def tokens_from(self, start: int, end: int) -> tuple[int, ...] | None:
        """Tokens of the transcript, from one number to another; None if they are not kept."""
        if self.transcript is None or not self.offset <= start <= end <= self.offset + len(self.transcript) // 4:
            return None
        return tuple(array(TOKEN, self.transcript[4 * (start - self.offset) : 4 * (end - self.offset)]))

    def cut(self, count: int) -> "Session":
        """The session with its first marks, and the transcript up to the last of them."""
        marks = self.marks[:count]
        end = marks[-1].tokens if marks else 0
        kept = None if self.transcript is None else self.transcript[: 4 * max(0, end - self.offset)]
        return replace(self, marks=marks, transcript=kept, offset=min(self.offset, end), based=self.based and count > 0)

    def grown(self, mark: SessionMark, tokens: Sequence[int], most: int) -> "Session":
        """The session with one mark more, whose tokens come to the transcript: its last `most` are kept."""
        if self.transcript is None:
            return replace(self, marks=(*self.marks, mark))
        whole = self.transcript + array(TOKEN, tokens).tobytes()
        kept = whole[-4 * most :]
        offset = self.offset + (len(whole) - len(kept)) // 4
        return replace(self, marks=(*self.marks, mark), transcript=kept, offset=offset)

    def to_json(self) -> bytes:
        """The session as the content of a file."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["marks"] = [[mark.state, mark.tokens, mark.pinned] for mark in self.marks]
        if self.transcript is not None:
            values["transcript"] = base64.b64encode(self.transcript).decode()
        return json.dumps({"version": VERSION, **values}).encode()


def session_from_json(data: bytes) -> Session:
    """The inverse of `to_json`. ValueError for anything else."""
    values = json_value(data)
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise ValueError("it is no session of this version")
    try:
        marks = tuple(_mark(entry) for entry in values["marks"])
        transcript = None if values["transcript"] is None else base64.b64decode(values["transcript"], validate=True)
        session = Session(**{**values, "marks": marks, "transcript": transcript})
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is no session ({error})") from error
    end = session.offset + len(transcript or b"") // 4
    if transcript is not None and (len(transcript) % 4 or end != session.tokens):
        raise ValueError("its transcript does not end at its head")
    if any(mark.tokens < 0 for mark in marks) or session.offset < 0:
        raise ValueError("it counts tokens below 0")
    return session


def _mark(entry: Any) -> SessionMark:
    state, tokens, pinned = entry
    if not (type(state) is str and type(tokens) is int and type(pinned) is bool):
        raise TypeError("a mark is no state, count and truth value")
    return SessionMark(state=state, tokens=tokens, pinned=pinned)


@dataclass(frozen=True, kw_only=True)
class RewindPlan:
    """Where a session goes back to: to `mark`, from which `reread` are read again. count: marks that are left.

    mark: None is before the first turn. head: of the session when the plan was made.
    """

    mark: SessionMark | None
    reread: tuple[int, ...]
    count: int
    head: str | None


@dataclass(frozen=True, kw_only=True)
class StateTree:
    """The states of a session and those that they come from and that come of them.

    edges: (parent, child). head: of the session. marks: states that it has been at and that are left.
    """

    nodes: tuple[StateInfo, ...]
    edges: tuple[tuple[str, str], ...]
    head: str | None
    marks: tuple[str, ...]


class Lease:
    """The right to a session's turn; a `with` block gives it back.

    session: as it was at the beginning. committing: its turn is being committed.
    """

    def __init__(self, session: Session, release: Callable[["Lease"], None]) -> None:
        self.session, self._release, self.committing = session, release, False

    def release(self) -> None:
        """Ends the turn; the session stays as it is. Nothing happens the second time."""
        self._release(self)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def tree_of(states: Mapping[str, StateInfo], session: Session) -> StateTree:
    """The tree of a session among an owner's states."""
    children: dict[str, list[str]] = {}
    for each in states.values():
        if each.parent is not None and each.parent in states:
            children.setdefault(each.parent, []).append(each.id)
    marks = tuple(mark.state for mark in session.marks if mark.state in states)
    found, waiting = set(marks), list(marks)
    while waiting:
        here = waiting.pop()
        parent = states[here].parent
        near = [*children.get(here, ()), *([parent] if parent is not None and parent in states else [])]
        waiting += [each for each in near if each not in found]
        found.update(near)
    nodes = tuple(sorted((states[each] for each in found), key=lambda each: (each.created, each.id)))
    edges = tuple((node.parent, node.id) for node in nodes if node.parent in found and node.parent is not None)
    return StateTree(nodes=nodes, edges=edges, head=session.head, marks=marks)
