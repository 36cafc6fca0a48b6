"""Sessions: heads that move, marks, going back, forks, one turn at a time, and restarts."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from test_state_store import MODEL, SIZE, assert_equal, store_of

from exlstm.infer.generate import generate
from exlstm.infer.requests import Request
from exlstm.serve.session_records import RewindPlan
from exlstm.serve.sessions import NoSuchMark, SessionBusy, SessionConflict, SessionGone, Sessions
from exlstm.serve.state_store import StateGone, StoreFull


class Talk:
    """A session and the turns that a server would make of it."""

    def __init__(self, sessions, owner="a", **options):
        self.sessions, self.store, self.owner = sessions, sessions.store, owner
        self.id = sessions.create(owner, **options).id

    @property
    def now(self):
        return self.sessions.get(self.owner, self.id)

    def turn(self, *tokens, plan=None):
        """Reads some tokens more, after what a plan wants read again."""
        with self.sessions.begin_turn(self.owner, self.id) as lease:
            head = lease.session.head if plan is None else (plan.mark and plan.mark.state)
            before = None if head is None else self.store.get(self.owner, head)
            reread = () if plan is None else plan.reread
            snapshot = MODEL.read([*reread, *tokens], before)
            info = self.store.put(self.owner, snapshot, parent=head)
            return self.sessions.commit(lease, info, tokens=tokens, rewound=plan)

    def snapshot(self):
        return self.store.get(self.owner, self.now.head)


def sessions_of(store=None, **options):
    return Sessions(store_of() if store is None else store, **options)


def test_turns_move_the_head():
    talk = Talk(sessions_of(wall_clock=lambda: 7.0), name="night", transcript=True)
    assert (talk.now.head, talk.now.tokens, talk.now.name, talk.now.created) == (None, 0, "night", 7.0)
    talk.turn(1, 2, 3)
    last = talk.turn(4)
    assert (last, last.tokens, [mark.tokens for mark in last.marks]) == (talk.now, 4, [3, 4])
    assert_equal(talk.snapshot(), MODEL.read([4], MODEL.read([1, 2, 3])))
    assert talk.now.tokens_from(0, 4) == (1, 2, 3, 4)
    assert talk.store.info("a", last.head).pinned
    assert talk.sessions.list("a") == [talk.now]


def test_a_turn_that_is_not_committed_changes_nothing():
    talk = Talk(sessions_of())
    talk.turn(1)
    before = talk.now
    lease = talk.sessions.begin_turn("a", talk.id)
    talk.store.put("a", MODEL.read([5]))
    assert talk.sessions.is_busy(talk.id)
    with pytest.raises(RuntimeError, match="gone away"), lease:
        raise RuntimeError("the client has gone away")
    assert talk.now == before
    assert not talk.sessions.is_busy(talk.id)


def test_one_turn_at_a_time():
    talk = Talk(sessions_of())
    head = talk.turn(1).head
    with talk.sessions.begin_turn("a", talk.id, if_state=head) as lease:
        for call in (
            lambda: talk.sessions.begin_turn("a", talk.id),
            lambda: talk.sessions.rewind("a", talk.id, turns=1),
            lambda: talk.sessions.delete("a", talk.id),
        ):
            with pytest.raises(SessionBusy):
                call()
        assert talk.sessions.fork("a", talk.id).head == head
    info = talk.store.put("a", MODEL.read([5]))
    with pytest.raises(SessionConflict, match="has ended already"):
        talk.sessions.commit(lease, info)
    with pytest.raises(SessionConflict, match="and not at"):
        talk.sessions.begin_turn("a", talk.id, if_state="st_" + "0" * 32)
    with talk.sessions.begin_turn("a", talk.id) as lease, pytest.raises(SessionConflict, match="rewind it"):
        talk.sessions.commit(lease, talk.store.info("a", head))
    with talk.sessions.begin_turn("a", talk.id) as lease, pytest.raises(StateGone):
        talk.sessions.commit(lease, replace(info, id="st_" + "0" * 32))
    assert talk.now.head == head


def test_a_lease_is_for_one_commit(monkeypatch):
    talk = Talk(sessions_of())
    one, two = (talk.store.put("a", MODEL.read([n])) for n in range(2))
    lease, pin, refused = talk.sessions.begin_turn("a", talk.id), talk.store.pin, []

    def other_thread(*arguments):
        try:
            talk.sessions.commit(lease, two)
        except SessionConflict as error:
            refused.append(error)
        return pin(*arguments)

    monkeypatch.setattr(talk.store, "pin", other_thread)
    assert talk.sessions.commit(lease, one) == talk.now
    assert (talk.now.head, len(refused)) == (one.id, 1)


def test_the_sessions_and_states_of_others_are_unknown():
    sessions = sessions_of()
    talk, other = Talk(sessions), Talk(sessions, owner="b")
    talk.turn(1)
    for call in (sessions.get, sessions.delete, sessions.begin_turn, sessions.fork, sessions.tree):
        with pytest.raises(SessionGone):
            call("b", talk.id)
        with pytest.raises(SessionGone):
            call("b", "../x")
    with pytest.raises(SessionGone):
        sessions.rewind("b", talk.id, turns=1)
    with pytest.raises(StateGone):
        sessions.create("b", state=talk.now.head)
    with sessions.begin_turn("b", other.id) as lease, pytest.raises(StateGone):
        sessions.commit(lease, sessions.store.info("a", talk.now.head))
    assert [each.id for each in sessions.list("b")] == [other.id]


def test_going_back_without_a_transcript():
    talk = Talk(sessions_of())
    heads = [talk.turn(*range(1, n + 2)).head for n in range(4)]
    plan = talk.sessions.rewind("a", talk.id, turns=1)
    assert (plan.mark.state, plan.reread, talk.now.head) == (heads[2], (), heads[2])
    talk.sessions.rewind("a", talk.id, state=heads[1])
    assert (talk.now.head, talk.now.tokens) == (heads[1], 3)
    assert talk.store.info("a", heads[3]).pinned is False, "it may be evicted now"
    for place in ({"tokens": 2}, {"turns": 3}, {"turns": -1}, {"state": heads[3]}, {"tokens": 99}, {"tokens": -1}):
        with pytest.raises(NoSuchMark, match=rf"its beginning, and to {heads[0]} \(1 tokens\), {heads[1]} \(3 tokens"):
            talk.sessions.rewind("a", talk.id, **place)
    for places in ({}, {"turns": 1, "tokens": 0}):
        with pytest.raises(ValueError, match="one place"):
            talk.sessions.rewind("a", talk.id, **places)
    talk.sessions.rewind("a", talk.id, tokens=1)
    assert talk.now.head == heads[0]
    talk.sessions.rewind("a", talk.id, turns=1)
    assert (talk.now.head, talk.now.tokens) == (None, 0)
    talk.turn(9)
    assert_equal(talk.snapshot(), MODEL.read([9]))


@pytest.mark.parametrize("based", [False, True])
def test_going_back_to_any_token(based):
    """Whatever was kept, the tokens of the talk are those of one that was never longer."""
    rng = random.Random(0)
    sessions = sessions_of(max_marks=3)
    start = [7, 8] if based else []
    state = sessions.store.put("a", MODEL.read(start)).id if based else None
    talk, said = Talk(sessions, state=state, transcript=True, mark_every=4), list(start)
    for _ in range(60):
        if rng.random() < 0.6:
            tokens = [rng.randrange(23) for _ in range(rng.randint(1, 5))]
            said += tokens
            talk.turn(*tokens)
        else:
            at = rng.randint(len(start), len(said))
            plan = sessions.rewind("a", talk.id, tokens=at)
            del said[at:]
            if plan.reread:
                assert talk.now.tokens > at
                talk.turn(plan=plan)
        for each in sessions.store.list("a"):
            # what is not pinned is evicted at once
            if not each.pinned and rng.random() < 0.3:
                sessions.store.delete("a", each.id)
        assert talk.now.tokens == len(said)
        assert talk.now.tokens_from(len(start), len(said)) == tuple(said[len(start) :])
        assert sum(mark.pinned for mark in talk.now.marks) <= 3 + 1
        pinned = [mark.tokens for mark in talk.now.marks if mark.pinned]
        assert all(b - a >= 4 for a, b in pairwise(pinned[:-1]))
        assert {each.id for each in sessions.store.list("a") if each.pinned} == {
            mark.state for mark in talk.now.marks if mark.pinned
        }
        if said:
            got, want = talk.snapshot(), MODEL.read(said)
            assert got.counts == want.counts
            assert (got.logits_BC - want.logits_BC).abs().max() < 1e-4


def test_a_plan_is_for_one_head():
    talk = Talk(sessions_of(), transcript=True, mark_every=100)
    talk.turn(1, 2, 3)
    plan = talk.sessions.rewind("a", talk.id, tokens=2)
    assert plan == RewindPlan(mark=None, reread=(1, 2), count=0, head=talk.now.head)
    talk.turn(4)
    with pytest.raises(SessionConflict, match="ask again"):
        talk.turn(5, plan=plan)
    assert talk.now.tokens_from(0, 4) == (1, 2, 3, 4)
    with talk.sessions.begin_turn("a", talk.id) as lease, pytest.raises(ValueError, match="pass all that was read"):
        talk.sessions.commit(lease, talk.store.put("a", MODEL.read([5], talk.snapshot())), tokens=[5, 6])
    talk.turn(9, plan=talk.sessions.rewind("a", talk.id, tokens=1))
    assert talk.now.tokens_from(0, 2) == (1, 9)


def test_a_transcript_keeps_its_last_tokens():
    talk = Talk(sessions_of(max_transcript=5), transcript=True)
    heads = [talk.turn(n, n, n).head for n in range(4)]
    assert (talk.now.offset, talk.now.tokens_from(7, 12)) == (7, (2, 2, 3, 3, 3))
    assert talk.now.tokens_from(6, 12) is None
    assert talk.sessions.rewind("a", talk.id, tokens=11).reread == (3, 3)
    with pytest.raises(NoSuchMark):
        talk.sessions.rewind("a", talk.id, tokens=5)
    talk.sessions.rewind("a", talk.id, state=heads[0])
    talk.turn(9)
    assert (talk.now.tokens, talk.now.tokens_from(3, 4)) == (4, (9,))


def test_a_fork_goes_its_own_way():
    sessions = sessions_of()
    talk = Talk(sessions, transcript=True, name="one")
    heads = [talk.turn(n).head for n in range(3)]
    other = Talk.__new__(Talk)
    other.sessions, other.store, other.owner = sessions, sessions.store, "a"
    other.id = sessions.fork("a", talk.id, at=heads[1], name="two").id
    assert (other.now.head, other.now.name, other.now.tokens_from(0, 2)) == (heads[1], "two", (0, 1))
    other.turn(9)
    assert (talk.now.head, talk.now.tokens) == (heads[2], 3)
    sessions.delete("a", talk.id)
    assert [sessions.store.info("a", head).pinned for head in heads] == [True, True, False]
    sessions.delete("a", other.id)
    assert not any(each.pinned for each in sessions.store.list("a"))
    empty = sessions.create("a")
    assert sessions.fork("a", empty.id).head is None
    gone = Talk(sessions, transcript=True)
    gone.turn(1)
    sessions.store.delete("a", gone.turn(2).head)
    with pytest.raises(NoSuchMark):
        sessions.fork("a", gone.id)


def test_the_tree_has_the_branches():
    talk = Talk(sessions_of())
    first, second = talk.turn(1).head, talk.turn(2).head
    talk.sessions.rewind("a", talk.id, turns=1)
    third = talk.turn(3).head
    Talk(talk.sessions).turn(8)
    tree = talk.sessions.tree("a", talk.id)
    assert [node.id for node in tree.nodes] == [first, second, third]
    assert set(tree.edges) == {(first, second), (first, third)}
    assert (tree.head, tree.marks) == (third, (first, third))


def test_pins_are_given_up_before_the_head():
    store = store_of(memory_bytes=8 * SIZE)
    talk = Talk(sessions_of(store))
    for n in range(20):
        talk.turn(n)
        assert store.info("a", talk.now.head).pinned
        assert [mark.pinned for mark in talk.now.marks][-3:] == [True] * min(n + 1, 3)
        assert talk.now.marks[0].pinned
        assert sum(mark.pinned for mark in talk.now.marks) <= 4, "half of the store"


def test_bounds():
    sessions = sessions_of(max_sessions=4, max_turns=3)
    talk = Talk(sessions)
    for n in range(5):
        talk.turn(n)
    assert ([mark.tokens for mark in talk.now.marks], talk.now.based) == ([3, 4, 5], True)
    with pytest.raises(NoSuchMark, match="it can to st_"):
        sessions.rewind("a", talk.id, turns=3)
    for _ in range(3):
        sessions.create("a")
    with pytest.raises(StoreFull, match="delete some"):
        sessions.create("a")
    with pytest.raises(StoreFull):
        sessions.create("b")
    assert sessions.list("b") == []
    sessions.delete("a", talk.id)
    sessions.create("b")
    for options in ({"name": "x" * 201}, {"mark_every": -1}):
        with pytest.raises(ValueError, match=r"200|mark_every"):
            sessions_of().create("a", **options)


def restarted(tmp_path, **options):
    store = store_of(folder=tmp_path / "states")
    store.load_folder()
    sessions = sessions_of(store, folder=tmp_path / "sessions", **options)
    return sessions, sessions.load_folder()


def test_a_restart_changes_nothing(tmp_path):
    store = store_of(folder=tmp_path / "states")
    talk = Talk(sessions_of(store, folder=tmp_path / "sessions"), transcript=True, mark_every=2, name="\ud800 ü")
    for n in range(5):
        talk.turn(n, n)
    gone = talk.sessions.create("a")
    talk.sessions.delete("a", gone.id)
    before, snapshot = talk.now, talk.snapshot()
    store.close()
    sessions, count = restarted(tmp_path)
    assert (count, sessions.list("a"), sessions.damaged) == (1, [before], 0)
    talk.sessions, talk.store = sessions, sessions.store
    assert_equal(talk.snapshot(), snapshot)
    assert [each.pinned for each in sessions.store.list("a")] == [mark.pinned for mark in before.marks]
    plan = sessions.rewind("a", talk.id, tokens=3)
    talk.turn(7, plan=plan)
    assert talk.now.tokens_from(0, 4) == (0, 0, 1, 7)


def test_a_session_whose_last_states_are_lost_is_at_the_one_before(tmp_path):
    store = store_of(folder=tmp_path / "states")
    talk = Talk(sessions_of(store, folder=tmp_path / "sessions"), transcript=True)
    heads = [talk.turn(n, n).head for n in range(4)]
    store.close()
    for head in heads[2:]:
        (tmp_path / "states" / head).unlink()
    sessions, _ = restarted(tmp_path)
    found = sessions.get("a", talk.id)
    assert (found.head, found.tokens, found.tokens_from(0, 4)) == (heads[1], 4, (0, 0, 1, 1))


@pytest.mark.slow
def test_a_talk_goes_on_after_a_kill(tmp_path):
    """States that were settled are there bit by bit, and the next tokens are those of a talk that went on."""
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_sessions import Talk, sessions_of, store_of
        store = store_of(folder=Path({str(tmp_path)!r}, "states"))
        talk = Talk(sessions_of(store, folder=Path({str(tmp_path)!r}, "sessions")), transcript=True)
        for n in range(6):
            print(talk.turn(n, n + 1).head, flush=True)
        store.settled()
        print(talk.id, flush=True)
        while True:
            talk.turn(6, 7)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        *heads, session = (process.stdout.readline().strip() for _ in range(7))
        assert session
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    sessions, count = restarted(tmp_path)
    assert (count, sessions.damaged, sessions.store.stats().damaged) == (1, 0, 0)
    want = None
    for n, head in enumerate(heads):
        want = MODEL.read([n, n + 1], want)
        assert_equal(sessions.store.get("a", head), want)
    found = sessions.get("a", session)
    more = (found.tokens - 12) // 2
    assert found.tokens_from(12, found.tokens) == (6, 7) * more
    for _ in range(more):
        want = MODEL.read([6, 7], want)
    said = [
        generate(MODEL, [Request(after=snapshot, max_tokens=20, seed=3)])[0].tokens
        for snapshot in (sessions.store.get("a", found.head), want)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"version": 1', b'"version": 2'),
        (b'"owner": "a"', b'"owner": 3'),
        (b'"marks": [[', b'"marks": [[1, '),
        (b'"transcript": "', b'"transcript": "AAAA'),
        (b'"offset": 0', b'"offset": -1'),
        (b'"name": null', b'"nam": null'),
        (b"{", b"[" * 100_000),
        (b'"id": "se_', b'"id": "se_0'),
    ],
)
def test_damaged_files_are_ignored(tmp_path, old, new):
    store = store_of(folder=tmp_path / "states")
    talk = Talk(sessions_of(store, folder=tmp_path / "sessions"), transcript=True)
    talk.turn(1)
    store.close()
    file = tmp_path / "sessions" / talk.id
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    os.symlink("/etc/passwd", tmp_path / "sessions" / ("se_" + "0" * 32))
    sessions, count = restarted(tmp_path)
    assert (count, sessions.damaged, sessions.list("a")) == (0, 2, [])


def test_a_full_disk_leaves_the_session_where_it_was(tmp_path, monkeypatch):
    store = store_of()
    talk = Talk(sessions_of(store, folder=tmp_path))
    talk.turn(1)
    before = talk.now

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            talk.turn(2)
        with pytest.raises(OSError, match="no space"):
            talk.sessions.create("a", state=before.head)
    assert (talk.now, talk.sessions.list("a")) == (before, [before])
    assert [each.pinned for each in store.list("a")] == [True, False]
    assert talk.turn(3).tokens == 2
