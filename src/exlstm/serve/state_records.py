"""Records of the store of states: what is known of a state, of an owner's states, and the errors."""

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from exlstm.mixers.state import map_state
from exlstm.models.states.snapshot import Snapshot

Measure = Literal["memory", "disk", "states"]
MEASURES: tuple[Measure, ...] = ("memory", "disk", "states")
REMEMBERED = 3600.0  # seconds that the id of a state is known after its end
MOST_EXCERPT = 500


class StateGone(ValueError):
    """No such state of this owner. expired: there was one in the last hour."""

    def __init__(self, state: str, *, expired: bool = False) -> None:
        self.expired = expired
        known = "has expired or was deleted" if expired else "is unknown"
        super().__init__(f"the state {state[:60]!r} {known}; read the prompt again, or name another state.")


class StoreFull(ValueError):
    """There is no room for a state, and nothing of its owner that may be evicted."""


class NotExportable(ValueError):
    """A state that goes back to a preloaded one whose content the operator does not give away."""


@dataclass(frozen=True, kw_only=True)
class StateInfo:
    """What is known of a state.

    tokens: read so far. bytes: of its tensors. created, expires: seconds since 1970; expires is None while it is
    pinned. exportable: whether its content may be downloaded, which children inherit. children: living states that
    went on from it. excerpt, finish_reason: as they were given.
    """

    id: str
    owner: str
    parent: str | None
    tokens: int
    bytes: int
    created: float
    expires: float | None
    pinned: bool
    exportable: bool
    where: Literal["memory", "disk"]
    children: int
    excerpt: str | None
    finish_reason: str | None


@dataclass(frozen=True, kw_only=True)
class StoreStats:
    """Counts of the store. The first seven are of now, the others since its start.

    damaged, foreign: files of the folder that cannot be read, and that are of another model or tokenizer. restored:
    states that came back from the disk when they were asked for.
    """

    owners: int
    states: int
    preloaded: int
    in_memory: int
    memory_bytes: int
    disk_bytes: int
    unwritten: int
    evicted: int
    expired: int
    restored: int
    failed_writes: int
    damaged: int
    foreign: int


@dataclass(kw_only=True, eq=False)
class StateEntry:
    """A state in the store. about: what never changes. pins: of sessions, beside the owner's own.

    file_bytes: 0 while it is not on the disk. writing: it is on its way there. gone: it is no longer in the store.
    """

    about: StateInfo
    snapshot: Snapshot | None
    last_used: float
    pins: int = 0
    file_bytes: int = 0
    writing: bool = False
    gone: bool = False

    @property
    def pinned(self) -> bool:
        """True while it is neither evicted nor expires."""
        return self.about.pinned or self.pins > 0

    def info(self, *, expires: float, children: int) -> StateInfo:
        """What is known of it now."""
        return replace(
            self.about,
            pinned=self.pinned,
            expires=None if self.pinned else expires,
            children=children,
            where="disk" if self.snapshot is None else "memory",
        )


@dataclass(kw_only=True, eq=False)
class Reservation:
    """Memory that is held for a state on its way; 0 once the state has taken it."""

    nbytes: int


@dataclass(kw_only=True, eq=False)
class OwnerStates:
    """The states of one owner, the least recently used first, and what they take up.

    resident: those in memory. pinned: what the pinned ones take up. ended: ids of the last hour, when they ended, and
    whether they were exportable.
    """

    entries: OrderedDict[str, StateEntry] = field(default_factory=OrderedDict)
    resident: OrderedDict[str, StateEntry] = field(default_factory=OrderedDict)
    children: Counter[str] = field(default_factory=Counter)
    used: Counter[Measure] = field(default_factory=Counter)
    pinned: Counter[Measure] = field(default_factory=Counter)
    reservations: list[Reservation] = field(default_factory=list)
    ended: OrderedDict[str, tuple[float, bool]] = field(default_factory=OrderedDict)

    def add(self, entry: StateEntry) -> None:
        """A new entry, as the most recently used one; what it takes up is counted elsewhere."""
        self.entries[entry.about.id] = entry
        if entry.snapshot is not None:
            self.resident[entry.about.id] = entry
        if entry.about.parent is not None:
            self.children[entry.about.parent] += 1
        if entry.pinned:
            self.count_pinned(entry, 1)

    def touch(self, entry: StateEntry, now: float) -> None:
        """Makes it the most recently used one."""
        entry.last_used = now
        self.entries.move_to_end(entry.about.id)
        if entry.about.id in self.resident:
            self.resident.move_to_end(entry.about.id)

    def drop(self, entry: StateEntry, now: float, most_ended: int) -> None:
        """Forgets an entry but for its id."""
        name, parent = entry.about.id, entry.about.parent
        del self.entries[name]
        self.resident.pop(name, None)
        if entry.pinned:
            self.count_pinned(entry, -1)
        if parent is not None:
            self.children[parent] -= 1
            if not self.children[parent]:
                del self.children[parent]
        self.ended[name] = now, entry.about.exportable
        while self.ended and (len(self.ended) > most_ended or next(iter(self.ended.values()))[0] < now - REMEMBERED):
            self.ended.popitem(last=False)

    def count_pinned(self, entry: StateEntry, sign: int) -> None:
        """Counts what a pinned entry takes up of every bound, or no longer does."""
        for measure, amount in pinned_amounts(entry.about.bytes).items():
            self.pinned[measure] += sign * amount

    def has_known(self, name: str, now: float) -> bool:
        """True for the id of a state that ended in the last hour."""
        return name in self.ended and self.ended[name][0] >= now - REMEMBERED


def pinned_amounts(nbytes: int) -> dict[Measure, int]:
    """What a pinned state of so many bytes takes up, wherever it is."""
    return {"memory": nbytes, "disk": nbytes, "states": 1}


def new_id() -> str:
    """The id of a new state, which nobody can guess."""
    return f"st_{secrets.token_hex(16)}"


def new_entry(
    state: str,
    owner: str,
    snapshot: Snapshot,
    parent: str | None,
    *,
    created: float,
    last_used: float,
    pinned: bool,
    exportable: bool,
    excerpt: str | None = None,
    finish_reason: str | None = None,
) -> StateEntry:
    """The entry of a state that is in memory alone. created, last_used: on the clocks of the store."""
    about = StateInfo(
        id=state,
        owner=owner,
        parent=parent,
        tokens=snapshot.counts[0],
        bytes=snapshot.nbytes,
        created=created,
        expires=None,
        pinned=pinned,
        exportable=exportable,
        where="memory",
        children=0,
        excerpt=excerpt,
        finish_reason=finish_reason,
    )
    return StateEntry(about=about, snapshot=snapshot, last_used=last_used)


def check_one_row(snapshot: Snapshot) -> None:
    """ValueError for a snapshot of several rows."""
    if len(snapshot) != 1:
        raise ValueError(f"a snapshot of {len(snapshot)} rows cannot be kept as one state; take its rows().")


def kept(snapshot: Snapshot) -> Snapshot:
    """The snapshot on the CPU, without memory that only a larger tensor needs."""

    def own(x: Tensor) -> Tensor:
        x = x.detach().cpu()
        return x if x.untyped_storage().nbytes() <= x.nbytes else x.clone()

    return moved(snapshot, own)


def on_device(snapshot: Snapshot, device: torch.device) -> Snapshot:
    """The snapshot there."""
    return moved(snapshot, lambda x: x.to(device))


def moved(snapshot: Snapshot, move: Callable[[Tensor], Tensor]) -> Snapshot:
    """The snapshot with every tensor moved."""
    return Snapshot(
        state=map_state(move, snapshot.state),
        logits_BC=move(snapshot.logits_BC),
        seen_BC=move(snapshot.seen_BC),
        counts=snapshot.counts,
        weights=snapshot.weights,
    )
