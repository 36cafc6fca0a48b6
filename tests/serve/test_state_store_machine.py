"""The store of states against a model of dicts: whatever is put, asked for, deleted, expires and restarts."""

import shutil
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from test_state_store import HUGE, MODEL, SIZE, SNAPSHOTS, Clock, assert_equal

from exlstm.serve.state_store import StateGone, StateStore, StoreFull

OWNERS = st.sampled_from("ab")
STATES, RESIDENT, IDLE = 8, 4, 100.0


@dataclass
class Known:
    number: int
    created: int
    parent: str | None
    pinned: bool
    used: float
    resident: bool = True


class StoreMachine(RuleBasedStateMachine):
    """A folder keeps everything, so that the bounds of memory and of the number of states can be predicted."""

    ids = Bundle("ids")

    def __init__(self):
        super().__init__()
        self.folder, self.clock, self.ticks = Path(tempfile.mkdtemp()), Clock(), count(1)
        self.known = {"a": OrderedDict(), "b": OrderedDict()}
        self.ended = {"a": {}, "b": {}}
        self.store = self.open()

    def open(self):
        store = StateStore(
            MODEL, memory_bytes=RESIDENT * SIZE, disk_bytes=HUGE, folder=self.folder, max_states=STATES,
            idle_seconds=IDLE, tokenizer_digest=None, clock=self.clock, wall_clock=lambda: float(next(self.ticks)),
        )  # fmt: skip
        store.load_folder()
        return store

    def end(self, owner, state):
        del self.known[owner][state]
        self.ended[owner][state] = self.clock.now

    def expire(self):
        for owner, states in self.known.items():
            for state, each in list(states.items()):
                if not each.pinned and each.used + IDLE <= self.clock.now:
                    self.end(owner, state)

    def make_room(self, owner, bound, measured, evict):
        """False if there is none. measured: the entries of an owner that count. evict: of these, the first that can."""
        other = "ab".replace(owner, "")
        while True:
            share = bound // (4 if self.known[other] else 1)
            if len(measured(owner)) + 1 > share:
                victims = owner
            elif len(measured(owner)) + len(measured(other)) + 1 > bound:
                victims = sorted("ab", key=lambda each: -len(measured(each)))
            else:
                return True
            if not any(map(evict, victims)):
                return False

    def share(self, owner):
        return STATES // (4 if self.known["ab".replace(owner, "")] else 1)

    def pinned(self, owner):
        return sum(each.pinned for each in self.known[owner].values())

    def resident(self, owner):
        return [each for each in self.known[owner].values() if each.resident]

    def to_disk(self, owner):
        for each in self.resident(owner)[:1]:
            each.resident = False
            return True
        return False

    def drop(self, owner):
        free = [state for state, each in self.known[owner].items() if not each.pinned]
        if free:
            self.end(owner, free[0])
        return bool(free)

    @rule(target=ids, owner=OWNERS, number=st.integers(0, 11), pinned=st.sampled_from([False, False, True]))
    def put(self, owner, number, pinned):
        return self.put_after(owner, None, number, pinned)

    @rule(target=ids, owner=OWNERS, parent=ids, number=st.integers(0, 11), pinned=st.just(False))
    def put_after(self, owner, parent, number, pinned):
        self.expire()
        known = parent is None or parent in self.known[owner] or self.is_remembered(owner, parent)
        try:
            info = self.store.put(owner, SNAPSHOTS[number], parent=parent, pinned=pinned)
        except StateGone:
            assert not known
            return "st_" + "f" * 32
        except StoreFull:
            if pinned and self.pinned(owner) + 1 > self.share(owner) // 2:
                return "st_" + "f" * 32
            assert known
            assert self.make_room(owner, RESIDENT, self.resident, self.to_disk)
            assert not self.make_room(owner, STATES, self.known.__getitem__, self.drop)
            return "st_" + "f" * 32
        assert known
        assert not pinned or self.pinned(owner) + 1 <= self.share(owner) // 2
        assert self.make_room(owner, RESIDENT, self.resident, self.to_disk)
        assert self.make_room(owner, STATES, self.known.__getitem__, self.drop)
        self.known[owner][info.id] = Known(number, info.created, parent, pinned, self.clock.now)
        self.store.settled()
        return info.id

    def is_remembered(self, owner, state):
        return state in self.ended[owner] and self.ended[owner][state] >= self.clock.now - 3600

    @rule(owner=OWNERS, state=ids)
    def get(self, owner, state):
        self.expire()
        if state not in self.known[owner]:
            with pytest.raises(StateGone) as caught:
                self.store.get(owner, state)
            assert caught.value.expired == self.is_remembered(owner, state)
            return
        snapshot = self.store.get(owner, state)
        each = self.known[owner][state]
        assert_equal(snapshot, SNAPSHOTS[each.number])
        self.known[owner].move_to_end(state)
        each.used = self.clock.now
        if not each.resident:
            assert self.make_room(owner, RESIDENT, self.resident, self.to_disk)
            each.resident = True

    @rule(owner=OWNERS, state=consumes(ids))
    def delete(self, owner, state):
        self.expire()
        try:
            self.store.delete(owner, state)
        except StateGone:
            assert state not in self.known[owner]
        else:
            self.end(owner, state)

    @rule(seconds=st.sampled_from([30.0, 30.0, 90.0, 4000.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule()
    def restart(self):
        self.store.close()
        self.store = self.open()
        self.ended = {"a": {}, "b": {}}
        for owner, states in self.known.items():
            self.known[owner] = OrderedDict(sorted(states.items(), key=lambda item: item[1].created))
            for each in states.values():
                each.resident, each.used = False, self.clock.now

    @invariant()
    def lists_are_equal(self):
        self.expire()
        for owner, states in self.known.items():
            found = self.store.list(owner)
            assert [each.id for each in found] == list(states)
            for each, want in zip(found, states.values(), strict=True):
                assert (each.where == "memory") == want.resident
                assert (each.parent, each.pinned, each.created) == (want.parent, want.pinned, want.created)
                assert each.children == sum(other.parent == each.id for other in states.values())
        stats = self.store.stats()
        assert stats.memory_bytes == SIZE * stats.in_memory <= SIZE * RESIDENT
        assert stats.states == sum(map(len, self.known.values())) <= STATES

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.folder)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=25)


@pytest.mark.slow
class TestStoreAtLength(StoreMachine.TestCase):
    settings = settings(max_examples=150, stateful_step_count=60)
