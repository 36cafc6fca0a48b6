"""Room for states: bounds of memory, disk and number, an owner's share of each, and what is evicted.

An owner may use a quarter of every bound, or all of it while there are no states of others. Beyond that the least
recently used states of that owner go: from memory to the disk, from the disk for good. Where the bound itself is
reached, those of the owner with the most go. Pinned states stay; a copy of them on the disk is enough. They can be half
of an owner's share, so that there is room for others that come later.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from math import inf
from threading import Condition

from exlstm.serve.state_records import MEASURES, Measure, OwnerStates, StateEntry, StoreFull, pinned_amounts

SHARES = 4  # owners that can each use up their share
PINNED_SHARE = 2  # one state in so many of a share may be pinned
UNITS: Mapping[Measure, str] = {"memory": "bytes of memory", "disk": "bytes of disk", "states": "states"}


class StateRoom:
    """Entries of all owners, and what they take up. Its lock is held in every call.

    changed: the lock, notified when a write has ended. discard: removes the file of an id, later.
    """

    def __init__(
        self,
        bounds: Mapping[Measure, int],
        *,
        idle_seconds: float,
        clock: Callable[[], float],
        changed: Condition,
        discard: Callable[[str], None],
    ) -> None:
        self.bounds, self.idle_seconds, self.clock = bounds, idle_seconds, clock
        self.changed, self.discard = changed, discard
        self.owners: dict[str, OwnerStates] = {}
        self.total: Counter[Measure] = Counter()
        self.evicted = self.expired = 0
        self._next_expiry = inf

    def states_of(self, owner: str) -> OwnerStates:
        """The states of an owner; kept once there is one."""
        return self.owners.get(owner) or OwnerStates()

    def open(self, owner: str) -> OwnerStates:
        """The states of an owner, to add one."""
        return self.owners.setdefault(owner, OwnerStates())

    def share(self, states: OwnerStates, measure: Measure) -> int:
        """What the owner may use."""
        alone = not any(other.used["states"] for other in self.owners.values() if other is not states)
        return self.bounds[measure] // (1 if alone else SHARES)

    def charge(self, states: OwnerStates, measure: Measure, amount: int) -> None:
        """Counts what is taken up, or with a negative amount freed."""
        states.used[measure] += amount
        self.total[measure] += amount

    def make_room(self, states: OwnerStates, measure: Measure, amount: int) -> None:
        """Evicts until so much more can be charged; waits for states that are being written. StoreFull if it cannot."""
        while True:
            share = self.share(states, measure)
            if states.used[measure] + amount > share:
                victims = [states]
            elif self.total[measure] + amount > self.bounds[measure]:
                victims = sorted(self.owners.values(), key=lambda each: -each.used[measure])
            else:
                return
            if amount > share or not any(self._evict(victim, measure) for victim in victims):
                raise StoreFull(
                    f"there is no room for {amount:,} {UNITS[measure]} more: {states.used[measure]:,} of "
                    f"{share:,} are in use, by states that are pinned or on their way; delete some, or wait."
                )

    def add(self, states: OwnerStates, entry: StateEntry) -> None:
        """A new entry, for which there is room."""
        states.add(entry)
        for measure, amount in zip(MEASURES, (resident_bytes(entry), entry.file_bytes, 1), strict=True):
            self.charge(states, measure, amount)
        self._next_expiry = min(self._next_expiry, entry.last_used + self.idle_seconds)

    def remember(self, states: OwnerStates, entry: StateEntry) -> None:
        """Counts a snapshot that an entry has got back, for which there is room."""
        states.resident[entry.about.id] = entry
        self.charge(states, "memory", resident_bytes(entry))

    def remove(self, states: OwnerStates, entry: StateEntry) -> None:
        """Ends an entry; its file goes later."""
        self._forget(states, entry)
        if entry.file_bytes or entry.writing:
            self.discard(entry.about.id)
        self.charge(states, "disk", -entry.file_bytes)
        self.charge(states, "states", -1)
        states.drop(entry, self.clock(), self.bounds["states"])
        entry.file_bytes, entry.gone = 0, True

    def may_pin(self, states: OwnerStates, nbytes: int, measure: Measure) -> bool:
        """Whether one state more can be pinned. measure: of the tier where pinned states end, memory or disk."""
        amounts, wanted = pinned_amounts(nbytes), (measure, "states")
        return all(
            states.pinned[each] + amounts[each] <= self.share(states, each) // PINNED_SHARE
            for each in MEASURES
            if each in wanted
        )

    def pin(self, states: OwnerStates, entry: StateEntry, *, by: int) -> None:
        """Changes the number of its pins."""
        before, entry.pins = entry.pinned, entry.pins + by
        if before != entry.pinned:
            states.count_pinned(entry, 1 if entry.pinned else -1)
            self._next_expiry = min(self._next_expiry, entry.last_used + self.idle_seconds)

    def expire(self) -> None:
        """Ends what was not used for long."""
        now = self.clock()
        if now < self._next_expiry:
            return
        earliest = inf
        for states in self.owners.values():
            for entry in [entry for entry in states.entries.values() if not entry.pinned]:
                if entry.last_used + self.idle_seconds <= now:
                    self.remove(states, entry)
                    self.expired += 1
                else:
                    # the first is the least recently used one
                    earliest = min(earliest, entry.last_used + self.idle_seconds)
                    break
        self._next_expiry = earliest

    def _evict(self, states: OwnerStates, measure: Measure) -> bool:
        """Takes a copy or a state away, or waits for one that is being written; False if there is none."""
        for entry in (states.resident if measure == "memory" else states.entries).values():
            if measure == "memory" and entry.writing:
                self.changed.wait()
                return True
            if measure == "memory" and entry.file_bytes:
                self._forget(states, entry)
                return True
            if entry.pinned or (measure == "disk" and not entry.file_bytes):
                continue
            if measure == "disk" and entry.snapshot is not None:
                self.discard(entry.about.id)
                self.charge(states, "disk", -entry.file_bytes)
                entry.file_bytes = 0
            else:
                self.remove(states, entry)
                self.evicted += 1
            return True
        return False

    def _forget(self, states: OwnerStates, entry: StateEntry) -> None:
        """Takes an entry's copy in memory away."""
        self.charge(states, "memory", -resident_bytes(entry))
        states.resident.pop(entry.about.id, None)
        entry.snapshot = None


def resident_bytes(entry: StateEntry) -> int:
    """Bytes of memory that the entry takes up."""
    return 0 if entry.snapshot is None else entry.about.bytes
