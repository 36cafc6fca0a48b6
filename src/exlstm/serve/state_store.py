"""Store of states: immutable values by id, each in the namespace of its owner, in memory and on disk.

    store = StateStore(model, memory_bytes=1 << 30, disk_bytes=10 << 30, folder=folder, max_states=10_000,
                       idle_seconds=86_400, tokenizer_digest=digest)
    info = store.put(owner, snapshot, parent=before.id);  snapshot = store.get(owner, info.id)

Every state is written to the folder soon after it came, in a thread; a crash loses what was not yet written. Methods
may be called from any thread, and some wait for the disk: not from an event loop. An id of another owner is as unknown
as one that never was.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition

import torch

from exlstm.models.lm import LM
from exlstm.models.states.content import state_from_bytes, state_to_bytes
from exlstm.models.states.snapshot import Snapshot, check_owner
from exlstm.serve.state_files import StateFiles
from exlstm.serve.state_records import (
    MOST_EXCERPT,
    NotExportable,
    OwnerStates,
    Reservation,
    StateEntry,
    StateGone,
    StateInfo,
    StoreFull,
    StoreStats,
    check_one_row,
    kept,
    new_entry,
    new_id,
    on_device,
)
from exlstm.serve.state_room import StateRoom
from exlstm.serve.state_writer import StateWriter

__all__ = ["NotExportable", "StateGone", "StateInfo", "StateStore", "StoreFull", "StoreStats"]
NAME = re.compile(r"(?!st_)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_OWNER = 256  # characters of its name


class StateStore:
    """States of one model.

    memory_bytes, disk_bytes, max_states: bounds, see `StateRoom`. folder: None keeps states in memory alone.
    idle_seconds: after which a state ends that was not used, unless it is pinned. tokenizer_digest: of the tokenizer,
    which files and uploads must not contradict. clock: seconds that only go on. wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        model: LM,
        *,
        memory_bytes: int,
        disk_bytes: int,
        folder: Path | None,
        max_states: int,
        idle_seconds: float,
        tokenizer_digest: str | None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if min(memory_bytes, max_states) < 1 or disk_bytes < 0 or idle_seconds <= 0:
            raise ValueError(
                f"memory_bytes is {memory_bytes}, max_states {max_states}, disk_bytes {disk_bytes} and idle_seconds "
                f"{idle_seconds}; they must be positive, and disk_bytes at least 0."
            )
        self.model, self.tokenizer_digest = model, tokenizer_digest
        self._clock, self._wall_clock, self._changed = clock, wall_clock, Condition()
        self._files = StateFiles(folder, model, tokenizer_digest) if folder is not None and disk_bytes else None
        self._writer = StateWriter(self._files)
        self._room = StateRoom(
            {"memory": memory_bytes, "disk": disk_bytes, "states": max_states},
            idle_seconds=idle_seconds,
            clock=clock,
            changed=self._changed,
            discard=self._writer.discard,
        )
        self._preloaded: dict[str, StateEntry] = {}
        self._restored = 0

    def put(
        self,
        owner: str,
        snapshot: Snapshot,
        *,
        parent: str | None = None,
        pinned: bool = False,
        excerpt: str | None = None,
        finish_reason: str | None = None,
        state: str | None = None,
    ) -> StateInfo:
        """Keeps a snapshot of one row, and returns what is known of it: the new id among others.

        parent: the state that it went on from. pinned: it is neither evicted nor expires; half of a share may be.
        excerpt: text to show, cut to its first 500 characters. state: its id, if one of `new_id` was told before.
        Raises ValueError for a snapshot of several rows or of another model, StateGone for a parent that was not the
        owner's in the last hour, and StoreFull.
        """
        check_owner(self.model, snapshot)
        excerpt = None if excerpt is None else excerpt[:MOST_EXCERPT]
        return self._put(
            owner, snapshot, parent, pinned=pinned, excerpt=excerpt, finish_reason=finish_reason, state=state
        )

    def info(self, owner: str, state: str) -> StateInfo:
        """What is known of a state; asking does not use it. Raises StateGone."""
        with self._changed:
            return self._info(*self._find(owner, state))

    def list(self, owner: str) -> Sequence[StateInfo]:
        """Preloaded states, then the owner's, the least recently used first."""
        with self._changed:
            self._room.expire()
            states = self._room.states_of(owner)
            return [self._info(states, entry) for entry in (*self._preloaded.values(), *states.entries.values())]

    def get(self, owner: str, state: str) -> Snapshot:
        """The snapshot of a state, on the model's device; it is the most recently used one then. Raises StateGone.

        One that has to be read from the disk stays in memory, where there is room.
        """
        with self._changed:
            states, entry = self._find(owner, state)
            if entry.about.id not in self._preloaded:
                states.touch(entry, self._clock())
            snapshot = entry.snapshot
        if snapshot is None:
            snapshot = self._read(states, entry)
        return on_device(snapshot, self.model.embed.weight.device)

    def delete(self, owner: str, state: str) -> None:
        """Ends a state, and removes its file before it returns; children stay.

        Raises StateGone, and ValueError for a preloaded state.
        """
        with self._changed:
            states, entry = self._find(owner, state)
            if entry.about.id in self._preloaded:
                raise ValueError(f"the state {state} was preloaded, and cannot be deleted.")
            self._room.remove(states, entry)
        self.settled()

    def content(self, owner: str, state: str, dtype: torch.dtype | None = None) -> bytes:
        """A state as the bytes of a file; see `state_to_bytes`. Raises StateGone and NotExportable."""
        if not self.info(owner, state).exportable:
            raise NotExportable(f"the content of the state {state} is not given away by this server; go on from it.")
        return state_to_bytes(self.get(owner, state), dtype=dtype, tokenizer_digest=self.tokenizer_digest)

    def add_content(self, owner: str, data: bytes | memoryview) -> StateInfo:
        """Keeps the state in the bytes of a file, in memory that was reserved if there is some.

        Raises ValueError, StateMismatch among them, for bytes of no state of one row of this model, and StoreFull.
        """
        snapshot = state_from_bytes(data, self.model, tokenizer_digest=self.tokenizer_digest)
        return self._put(owner, snapshot, None, take_reserved=True)

    @contextmanager
    def reserve(self, owner: str, nbytes: int) -> Iterator[None]:
        """Memory for a state of so many bytes that is received in the `with` block; `add_content` takes it.

        Raises StoreFull.
        """
        if nbytes < 0:
            raise ValueError(f"{nbytes} bytes cannot be reserved; name 0 or more.")
        held = Reservation(nbytes=nbytes)
        with self._changed:
            self._room.expire()
            states = self._room.open(owner)
            self._room.make_room(states, "memory", nbytes)
            self._room.charge(states, "memory", nbytes)
            states.reservations.append(held)
        try:
            yield
        finally:
            with self._changed:
                self._room.charge(states, "memory", -held.nbytes)
                states.reservations.remove(held)

    def preload(self, name: str, snapshot: Snapshot, exportable: bool = False) -> StateInfo:
        """Makes a state known to all owners by a name, read-only and beside all bounds.

        exportable: whether its content, and that of states that go on from it, may be downloaded.
        """
        check_owner(self.model, snapshot)
        check_one_row(snapshot)
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot be the name of a state; use up to 64 letters, digits, '.', '_' and '-', the first a "
                "letter or a digit, and not 'st_' in front."
            )
        entry = new_entry(
            name,
            "",
            kept(snapshot),
            None,
            created=self._wall_clock(),
            last_used=self._clock(),
            pinned=True,
            exportable=exportable,
        )
        with self._changed:
            if name in self._preloaded:
                raise ValueError(f"there is a preloaded state {name!r} already; choose another name.")
            self._preloaded[name] = entry
            return self._info(OwnerStates(), entry)

    def pin(self, owner: str, state: str) -> bool:
        """Pins a state once more, until `unpin`. False, and nothing is done, beyond half of the owner's share.

        Pins are not written to the disk. Raises StateGone.
        """
        with self._changed:
            states, entry = self._find(owner, state)
            if entry.about.id in self._preloaded:
                return True
            if not entry.pinned and not self._may_pin(states, entry.about.bytes):
                return False
            self._room.pin(states, entry, by=1)
            return True

    def unpin(self, owner: str, state: str) -> None:
        """Takes back one `pin`; nothing happens to a state that is gone."""
        with self._changed, suppress(StateGone):
            states, entry = self._find(owner, state)
            if entry.pins:
                self._room.pin(states, entry, by=-1)

    def settled(self) -> None:
        """Waits until all that was to be written or removed is."""
        self._writer.settled()

    def flush(self) -> None:
        """Writes all states that are not on the disk, those among them whose writing has failed, and waits."""
        with self._changed:
            entries = [entry for states in self._room.owners.values() for entry in states.resident.values()]
            for entry in entries:
                if not entry.file_bytes and not entry.writing:
                    self._writer.write_soon(self._room, entry)
        self.settled()

    def close(self) -> None:
        """`flush`, and the end of the thread that writes."""
        self.flush()
        self._writer.close()

    def stats(self) -> StoreStats:
        """Counts of now and since the start."""
        with self._changed:
            self._room.expire()
            owners, total = self._room.owners.values(), self._room.total
            resident = [entry for states in owners for entry in states.resident.values()]
            return StoreStats(
                owners=sum(states.used["states"] > 0 for states in owners),
                states=total["states"],
                preloaded=len(self._preloaded),
                in_memory=len(resident),
                memory_bytes=total["memory"],
                disk_bytes=total["disk"],
                unwritten=sum(not entry.file_bytes for entry in resident),
                evicted=self._room.evicted,
                expired=self._room.expired,
                restored=self._restored,
                failed_writes=self._writer.failed,
                damaged=0 if self._files is None else self._files.damaged,
                foreign=0 if self._files is None else self._files.foreign,
            )

    def load_folder(self) -> int:
        """Takes up the states of this model in the folder, at the start; returns how many.

        What is damaged, or of another model, is left alone and counted. Beyond the bounds the oldest are evicted, and
        what has no room beside pinned states is left alone. All of them begin to be idle now.
        """
        if self._files is None:
            return 0
        before = self._room.total["states"]
        for about, size in sorted(self._files.found(), key=lambda each: each[0].created):
            with self._changed:
                states = self._room.open(about.owner)
                if about.id in states.entries:
                    continue
                try:
                    self._room.make_room(states, "disk", size)
                    self._room.make_room(states, "states", 1)
                except StoreFull:
                    continue
                entry = StateEntry(about=about, snapshot=None, last_used=self._clock(), file_bytes=size)
                self._room.add(states, entry)
        return self._room.total["states"] - before

    def _put(
        self,
        owner: str,
        snapshot: Snapshot,
        parent: str | None,
        *,
        pinned: bool = False,
        excerpt: str | None = None,
        finish_reason: str | None = None,
        take_reserved: bool = False,
        state: str | None = None,
    ) -> StateInfo:
        check_one_row(snapshot)
        if len(owner) > MOST_OWNER:
            raise ValueError(f"the owner {owner[:60]!r} has {len(owner)} characters; name one by up to {MOST_OWNER}.")
        state, snapshot = state or new_id(), kept(snapshot)
        with self._changed:
            self._room.expire()
            states = self._room.open(owner)
            if pinned and not self._may_pin(states, snapshot.nbytes):
                raise StoreFull("half of what this owner may keep is pinned; keep the state unpinned, or delete some.")
            entry = new_entry(
                state,
                owner,
                snapshot,
                parent,
                created=self._wall_clock(),
                last_used=self._clock(),
                pinned=pinned,
                exportable=self._exportable(states, parent),
                excerpt=excerpt,
                finish_reason=finish_reason,
            )
            if take_reserved and states.reservations:
                held = max(states.reservations, key=lambda each: each.nbytes)
                self._room.charge(states, "memory", -held.nbytes)
                held.nbytes = 0
            self._room.make_room(states, "memory", entry.about.bytes)
            self._room.make_room(states, "states", 1)
            self._room.add(states, entry)
            self._writer.write_soon(self._room, entry)
            return self._info(states, entry)

    def _exportable(self, states: OwnerStates, parent: str | None) -> bool:
        """Whether a child of this state is; a parent that has just ended is remembered. Raises StateGone."""
        if parent is None:
            return True
        if parent in self._preloaded:
            return self._preloaded[parent].about.exportable
        if parent in states.entries:
            return states.entries[parent].about.exportable
        if not states.has_known(parent, self._clock()):
            raise StateGone(parent)
        return states.ended[parent][1]

    def _may_pin(self, states: OwnerStates, nbytes: int) -> bool:
        return self._room.may_pin(states, nbytes, "memory" if self._files is None else "disk")

    def _find(self, owner: str, state: str) -> tuple[OwnerStates, StateEntry]:
        """The owner's states, and the entry of one of them or of a preloaded one."""
        self._room.expire()
        states = self._room.states_of(owner)
        entry = self._preloaded.get(state) or states.entries.get(state)
        if entry is None:
            raise StateGone(state, expired=states.has_known(state, self._clock()))
        return states, entry

    def _info(self, states: OwnerStates, entry: StateEntry) -> StateInfo:
        left = entry.last_used + self._room.idle_seconds - self._clock()
        return entry.info(expires=self._wall_clock() + left, children=states.children[entry.about.id])

    def _read(self, states: OwnerStates, entry: StateEntry) -> Snapshot:
        """The snapshot of an entry that is on the disk alone; without the lock."""
        assert self._files is not None
        snapshot = self._files.read(entry.about.id)
        snapshot = None if snapshot is None else kept(snapshot)
        with self._changed:
            if snapshot is None:
                if not entry.gone:
                    self._room.remove(states, entry)
                raise StateGone(entry.about.id, expired=True)
            self._restored += 1
            with suppress(StoreFull):
                self._room.make_room(states, "memory", entry.about.bytes)
                if entry.snapshot is None and not entry.gone:
                    entry.snapshot = snapshot
                    self._room.remember(states, entry)
        return snapshot
