"""Sessions: names for a talk that goes on, each of which points at a state and knows where it has been.

    session = sessions.create(owner)
    with sessions.begin_turn(owner, session.id) as lease:
        info = store.put(owner, snapshot, parent=lease.session.head)
        sessions.commit(lease, info, tokens=read_and_sampled)

States never change, so a turn that is not committed has changed nothing, going back is naming an earlier state, and a
fork names the same one. The head and the marks are pinned in the store, as long as all that an owner's sessions pin
takes up half of the owner's share: beyond it a session's oldest marks but the first are unpinned, which may be evicted
then.

Methods may be called from any thread, and wait for the disk. An id of another owner is as unknown as any.
"""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

from exlstm.serve.private_folder import PrivateFolder
from exlstm.serve.session_records import (
    Lease,
    NoSuchMark,
    RewindPlan,
    Session,
    SessionBusy,
    SessionConflict,
    SessionGone,
    SessionMark,
    StateTree,
    session_from_json,
    tree_of,
)
from exlstm.serve.state_records import StateGone, StateInfo, StoreFull
from exlstm.serve.state_room import SHARES
from exlstm.serve.state_store import StateStore

__all__ = ["Lease", "NoSuchMark", "Session", "SessionBusy", "SessionConflict", "SessionGone", "Sessions"]
ID = re.compile(r"se_[0-9a-f]{32}")
MOST_NAME = 200  # characters


class Sessions:
    """Sessions whose states are in a store.

    folder: None keeps them in memory alone. max_sessions: of all owners; one owner may have a quarter of them, or all
    while there is no other. max_marks: marks that a session pins beside its first. max_turns: marks that it knows; the
    oldest are forgotten beyond. max_transcript: tokens that are kept of a transcript, the last ones.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        folder: Path | None = None,
        max_sessions: int = 10_000,
        max_marks: int = 64,
        max_turns: int = 1000,
        max_transcript: int = 1 << 18,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if min(max_sessions, max_marks, max_turns, max_transcript) < 1:
            raise ValueError("a bound of sessions, marks, turns or transcripts is below 1; each must be at least 1.")
        self.store, self.damaged = store, 0
        self.max_sessions, self.max_marks, self.max_turns = max_sessions, max_marks, max_turns
        self.max_transcript, self._wall_clock, self._lock = max_transcript, wall_clock, Lock()
        self._folder = None if folder is None else PrivateFolder(folder, ID)
        self._sessions: dict[str, dict[str, Session]] = {}
        self._leases: dict[str, Lease] = {}  # by the session's id

    def create(
        self,
        owner: str,
        name: str | None = None,
        state: str | None = None,
        transcript: bool = False,
        mark_every: int | None = None,
    ) -> Session:
        """A new session, at a state of the owner or at the beginning.

        transcript: keep its tokens, so that it can go back to any of them. mark_every: tokens between the marks that
        are pinned; None: the end of every turn is one.
        Raises ValueError for a name of more than 200 characters, StateGone, and StoreFull beyond the bound of sessions.
        """
        session = Session(
            id=f"se_{secrets.token_hex(16)}",
            owner=owner,
            name=None if name is None else checked_name(name),
            created=self._wall_clock(),
            transcript=b"" if transcript else None,
            mark_every=mark_every,
        )
        if state is not None:
            info = self.store.info(owner, state)
            mark = SessionMark(state=info.id, tokens=info.tokens)
            session = replace(session, marks=(mark,), offset=info.tokens if transcript else 0, based=True)
        return self._begin(session)

    def get(self, owner: str, session: str) -> Session:
        """A session as it is now. Raises SessionGone."""
        with self._lock:
            return self._find(owner, session)

    def list(self, owner: str) -> Sequence[Session]:
        """The owner's sessions, the oldest first."""
        with self._lock:
            return sorted(self._sessions.get(owner, {}).values(), key=lambda each: (each.created, each.id))

    def is_busy(self, session: str) -> bool:
        """Whether a turn of a session is under way."""
        with self._lock:
            return session in self._leases

    def delete(self, owner: str, session: str) -> None:
        """Ends a session; its states stay in the store, unpinned. Raises SessionGone and SessionBusy."""
        with self.begin_turn(owner, session) as lease:
            if self._folder is not None:
                self._folder.delete(session)
            with self._lock:
                del self._sessions[owner][session]
            self._unpin(lease.session.owner, lease.session.marks)

    def begin_turn(self, owner: str, session: str, if_state: str | None = None) -> Lease:
        """The right to the session's next turn.

        if_state: the head that the request expects. Raises SessionGone, SessionBusy, and SessionConflict for another
        head.
        """
        with self._lock:
            found = self._find(owner, session)
            if session in self._leases:
                raise SessionBusy(f"a turn of the session {session} is under way; wait for its end, or fork it.")
            if if_state is not None and if_state != found.head:
                raise SessionConflict(f"the session {session} is at {found.head}, and not at {if_state[:60]!r}.")
            lease = self._leases[session] = Lease(found, self._release)
            return lease

    def commit(
        self, lease: Lease, state: StateInfo, *, tokens: Sequence[int] = (), rewound: RewindPlan | None = None
    ) -> Session:
        """Moves the session to a state, and ends the turn.

        tokens: what the turn has read, for a session with a transcript. rewound: the plan of `rewind` that the turn has
        followed: the state is the one after its mark, what was to be read again, and then `tokens`.
        Raises SessionConflict for a lease that has ended or a plan of another head, StateGone, and ValueError unless
        the tokens are as many as the state has read more. The session is as it was, then.
        """
        before = lease.session
        with self._lock:
            if self._leases.get(before.id) is not lease or lease.committing:
                raise SessionConflict(f"this turn of the session {before.id} has ended already; begin another.")
            lease.committing = True
        try:
            after = self._settled_marks(self._grown(before, state, tuple(tokens), rewound), before)
            after = self._replace(before, after)
        finally:
            lease.committing = False
        lease.release()
        return after

    def rewind(
        self,
        owner: str,
        session: str,
        *,
        state: str | None = None,
        turns: int | None = None,
        tokens: int | None = None,
    ) -> RewindPlan:
        """Goes back to a state that the session has been at, by so many turns, or to so many tokens.

        A plan with nothing to read again has been followed when it is returned. With a transcript the plan may be to
        read some tokens again after the nearest mark, and the session is as it was until such a turn is committed.
        Raises NoSuchMark, SessionGone, SessionBusy, and ValueError unless one place is named.
        """
        if sum(place is not None for place in (state, turns, tokens)) != 1:
            raise ValueError("name one place to go back to: a state, a number of turns, or a number of tokens.")
        with self.begin_turn(owner, session) as lease:
            plan = self._plan(lease.session, state, turns, tokens)
            if not plan.reread:
                after = self._settled_marks(lease.session.cut(plan.count), lease.session)
                self._replace(lease.session, after)
            return plan

    def fork(self, owner: str, session: str, at: str | None = None, name: str | None = None) -> Session:
        """A new session that has been where this one was, up to its head or to a state `at` that it has been at.

        Raises SessionGone and NoSuchMark.
        """
        found = self.get(owner, session)
        plan = self._plan(replace(found, transcript=None), at, None if at is not None else 0, None)
        kept = found.cut(plan.count)
        new = replace(
            kept,
            id=f"se_{secrets.token_hex(16)}",
            created=self._wall_clock(),
            name=found.name if name is None else checked_name(name),
            marks=tuple(replace(mark, pinned=False) for mark in kept.marks),
        )
        return self._begin(new)

    def tree(self, owner: str, session: str) -> StateTree:
        """The states of a session, where they come from, and what came of them. Raises SessionGone."""
        return tree_of({each.id: each for each in self.store.list(owner)}, self.get(owner, session))

    def load_folder(self) -> int:
        """Takes up the sessions in the folder, after the store has its states; returns how many.

        A session whose last states were not yet written is at the last one that was. Damaged files are left alone and
        counted.
        """
        if self._folder is None:
            return 0
        self._folder.sweep()
        count = 0
        for name in self._folder.names():
            try:
                session = session_from_json(self._folder.read(name)[0])
                if session.id != name:
                    raise ValueError("it has the name of another")
            except (OSError, ValueError):
                self.damaged += 1
                continue
            known = [self._is_known(session.owner, mark) for mark in session.marks]
            if any(known):
                session = session.cut(len(known) - known[::-1].index(True))
            marks = [replace(mark, pinned=mark.pinned and self._pin(session.owner, mark)) for mark in session.marks]
            with self._lock:
                self._sessions.setdefault(session.owner, {})[name] = replace(session, marks=tuple(marks))
            count += 1
        return count

    def _grown(self, before: Session, state: StateInfo, tokens: tuple[int, ...], rewound: RewindPlan | None) -> Session:
        """The session with a mark more, not yet pinned. The errors of `commit`."""
        base, read = before, tokens
        if rewound is not None:
            if rewound.head != before.head:
                raise SessionConflict(f"the session {before.id} has gone on since it was to be rewound; ask again.")
            base, read = before.cut(rewound.count), (*rewound.reread, *tokens)
        if base.transcript is not None and len(read) != state.tokens - base.tokens:
            raise ValueError(
                f"the turn has {len(read):,} tokens for the transcript, and the state {state.tokens - base.tokens:,} "
                "more than before; pass all that was read."
            )
        if any(mark.state == state.id for mark in base.marks):
            raise SessionConflict(f"the session {base.id} has been at {state.id} already; rewind it.")
        mark = SessionMark(state=self.store.info(before.owner, state.id).id, tokens=state.tokens)
        return base.grown(mark, read, self.max_transcript)

    def _find(self, owner: str, session: str) -> Session:
        found = self._sessions.get(owner, {}).get(session)
        if found is None:
            raise SessionGone(f"the session {session[:60]!r} is unknown; create one, or name another.")
        return found

    def _release(self, lease: Lease) -> None:
        with self._lock:
            if self._leases.get(lease.session.id) is lease:
                del self._leases[lease.session.id]

    def _begin(self, session: Session) -> Session:
        """Adds a new session, whose marks are not pinned yet; nobody knows its id before it is there."""
        with self._lock:
            own, total = self._sessions.setdefault(session.owner, {}), sum(map(len, self._sessions.values()))
            share = self.max_sessions // (1 if total == len(own) else SHARES)
            if len(own) >= share or total >= self.max_sessions:
                raise StoreFull(f"there are {len(own):,} sessions of this owner, and room for {share:,}; delete some.")
            own[session.id] = session
        try:
            wanted = tuple(replace(mark, pinned=True) for mark in session.marks)
            return self._replace(session, self._settled_marks(replace(session, marks=wanted), session))
        except BaseException:
            with self._lock:
                del own[session.id]
            raise

    def _replace(self, before: Session, after: Session) -> Session:
        """Puts a session in the place of another, on the disk first. OSError leaves the one before."""
        try:
            if self._folder is not None:
                self._folder.write(after.id, after.to_json())
        except OSError:
            marks = self._pinned(before.owner, after.marks, before.marks)
            after = replace(before, marks=marks)
            raise
        finally:
            with self._lock:
                self._sessions[after.owner][after.id] = after
        return after

    def _settled_marks(self, after: Session, before: Session) -> Session:
        """The session with pins on its head and on the marks that it keeps; those of the session before are changed.

        A mark keeps its pin if it is `mark_every` tokens behind the pinned one before it.
        """
        marks, based = after.marks[-self.max_turns :], after.based or len(after.marks) > self.max_turns
        wanted: list[SessionMark] = []
        last: int | None = None
        for mark in marks[:-1]:
            keeps = mark.pinned and (last is None or mark.tokens - last >= (after.mark_every or 0))
            last = mark.tokens if keeps else last
            wanted.append(replace(mark, pinned=keeps))
        wanted += [replace(mark, pinned=True) for mark in marks[-1:]]
        for place in [place for place, mark in enumerate(wanted) if mark.pinned and place][: -self.max_marks]:
            wanted[place] = replace(wanted[place], pinned=False)
        return replace(after, marks=self._pinned(after.owner, before.marks, tuple(wanted)), based=based)

    def _pinned(
        self, owner: str, before: tuple[SessionMark, ...], wanted: tuple[SessionMark, ...]
    ) -> tuple[SessionMark, ...]:
        """The marks with the pins that they have got, in place of those of the marks before; the newest come first."""
        held = {mark.state for mark in before if mark.pinned}
        target = {mark.state for mark in wanted if mark.pinned}
        self._unpin(owner, [mark for mark in before if mark.pinned and mark.state not in target])
        held &= target
        # the first one is given up last: without it there may be no way to what came soon after
        oldest = iter([mark for mark in (*wanted[1:], *wanted[:1]) if mark.state in held])
        for mark in reversed([mark for mark in wanted if mark.pinned and mark.state not in held]):
            while not (got := self._pin(owner, mark)) and (given_up := next(oldest, None)) is not None:
                self._unpin(owner, [given_up])
                held.discard(given_up.state)
            held |= {mark.state} if got else set()
        return tuple(replace(mark, pinned=mark.state in held) for mark in wanted)

    def _pin(self, owner: str, mark: SessionMark) -> bool:
        with suppress(StateGone):
            return self.store.pin(owner, mark.state)
        return False

    def _unpin(self, owner: str, marks: Sequence[SessionMark]) -> None:
        for mark in marks:
            if mark.pinned:
                self.store.unpin(owner, mark.state)

    def _is_known(self, owner: str, mark: SessionMark) -> bool:
        with suppress(StateGone):
            return self.store.info(owner, mark.state).id == mark.state
        return False

    def _plan(self, session: Session, state: str | None, turns: int | None, tokens: int | None) -> RewindPlan:
        """See `rewind`. Without a transcript only a place with a state that is left can be reached."""
        marks = session.marks
        known = [self._is_known(session.owner, mark) for mark in marks]
        # how many marks are left, and the tokens of the place
        places = {count: marks[count - 1].tokens for count in range(1, len(marks) + 1) if known[count - 1]}
        if not session.based:
            places[0] = 0
        count = -1
        if state is not None:
            count = next((n for n in places if n and marks[n - 1].state == state), -1)
        elif turns is not None and 0 <= turns <= len(marks) - session.based:
            count = len(marks) - turns
            tokens = marks[count - 1].tokens if count else 0
        if tokens is not None and count not in places and 0 <= tokens <= session.tokens:
            count = max((n for n, place in places.items() if place <= tokens), default=-1)
        reread: tuple[int, ...] | None = ()
        if count in places and tokens is not None and places[count] != tokens:
            reread = session.tokens_from(places[count], tokens)
        if count not in places or reread is None:
            left = ", ".join(f"{marks[n - 1].state} ({place:,} tokens)" for n, place in sorted(places.items()) if n)
            start = "" if session.based else "its beginning, and to "
            raise NoSuchMark(
                f"the session {session.id} cannot go back there without a transcript of the tokens; "
                f"it can to {start}{left or 'no state'}."
            )
        return RewindPlan(mark=marks[count - 1] if count else None, reread=reread, count=count, head=session.head)


def checked_name(name: str) -> str:
    """The name. ValueError for more than 200 characters."""
    if len(name) > MOST_NAME:
        raise ValueError(f"the name {name[:20]!r}... has {len(name)} characters; use up to {MOST_NAME}.")
    return name
