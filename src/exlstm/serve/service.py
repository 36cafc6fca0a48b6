"""The service: a model with what serves it, shared by all routes. Used on the loop's thread alone."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from torch import Tensor

from exlstm import __version__
from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.engine import Engine
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.requests import Event
from exlstm.models.lm import LM
from exlstm.models.states.content import StateMismatch, expected_state_bytes, header_bytes
from exlstm.models.states.fingerprint import weights_of
from exlstm.models.states.snapshot import Snapshot
from exlstm.serve.admission import Admission
from exlstm.serve.engine_thread import Delivery, EngineThread
from exlstm.serve.errors import Refusal, bad_field, busy
from exlstm.serve.formats import Heading
from exlstm.serve.grammar import GrammarConstraint, Grammars, GrammarSpec
from exlstm.serve.jobs import Job, Part
from exlstm.serve.limits import Limits
from exlstm.serve.metrics import Metrics
from exlstm.serve.prompts import Prompts
from exlstm.serve.replies import Reply
from exlstm.serve.schemas import SamplingFields
from exlstm.serve.sessions import Lease, NoSuchMark, SessionBusy, SessionConflict, SessionGone, Sessions
from exlstm.serve.state_store import NotExportable, StateGone, StateInfo, StateStore, StoreFull
from exlstm.serve.templates import ChatTemplate
from exlstm.serve.token_names import TokenNames

Phase = Literal["loading", "ready", "draining", "failed"]
STUCK = 60.0  # seconds without a sign of the engine's thread


@dataclass(kw_only=True, eq=False)
class StartingPoint:
    """Where a request goes on from: a state with its id, perhaps the head of a session; or nothing.

    reached, tokens: the state after the turn of a session, and what was read since. next_id: of the state after the
    answer, where it was told before.
    """

    snapshot: Snapshot | None = None
    state: str | None = None
    lease: Lease | None = None
    reached: StateInfo | None = None
    tokens: list[int] = field(default_factory=list)
    next_id: str | None = None


@dataclass(kw_only=True, eq=False)
class Service:
    """A model being served.

    names: under which it is known, the first being its own. caches: of prefixes, one per owner, so that the time of a
    request tells nothing of others'. jobs: those in the engine. load: how the model was loaded, for the model's entry.
    """

    model: LM
    tokenizer: Tokenizer
    engine: Engine
    limits: Limits
    names: Sequence[str]
    store: StateStore
    sessions: Sessions
    metrics: Metrics
    template: ChatTemplate | None
    caches: Mapping[str, PrefixCache]
    about: dict[str, Any]
    preloaded_states: Sequence[str] = ()
    phase: Phase = "loading"
    jobs: set[Job] = field(default_factory=set)
    thread: EngineThread = field(init=False)

    def __post_init__(self) -> None:
        self.token_names = TokenNames(self.tokenizer)
        self.vocab_size = self.engine.vocab_size
        self.prompts = Prompts(self.tokenizer, self.vocab_size, self.limits.prompt_tokens)
        self.admission = Admission(self.limits)
        self.grammars = Grammars(self.tokenizer, self.vocab_size, self.tokenizer.boundary)
        fingerprint = weights_of(self.model).fingerprint() or ""
        self.fingerprint = fingerprint
        self.system_fingerprint = f"exlstm-{fingerprint[:12]}-{__version__}"
        self.created = int(time.time())
        size = expected_state_bytes(self.model)
        # of a state that grows, as much as the longest prompt makes
        most = self.model.state_bytes(self.limits.prompt_tokens) if size is None else size
        self.state_file_bytes = most + header_bytes(self.model)

    def start(self, failed: Any) -> None:
        """Starts the engine's thread. failed: called if the engine cannot go on."""
        self.thread = EngineThread(self.engine, asyncio.get_running_loop(), self.deliver, failed)
        self.thread.start()
        self.phase = "ready"

    async def stop(self) -> None:
        """Ends the engine's thread after its step, has the states written, and ends what else runs."""
        self.phase = "draining"
        await asyncio.to_thread(self.thread.stop)
        await asyncio.to_thread(self.store.close)
        self.grammars.workers.shutdown(wait=False)
        if self.template is not None:
            self.template.close()

    def check_ready(self) -> None:
        """Refusal while no new work is taken."""
        if self.phase != "ready":
            raise busy(f"the server is {self.phase}; try again later.", self.phase, 5, status=503)

    @property
    def healthy(self) -> bool:
        """Whether new work is taken and the engine answers."""
        return self.phase == "ready" and time.monotonic() - self.thread.beat < STUCK

    def check_model(self, name: str) -> str:
        """The name of a model as answers give it. Refusal with 404 for one that is not here."""
        if name in ("", "default") or name in self.names:
            return name if name in self.names else self.names[0]
        if self.preloaded(name) is not None:
            return name
        raise Refusal(404, f"there is no model {name[:80]!r}; GET /v1/models lists them.", "model_not_found", "model")

    def preloaded(self, name: str) -> str | None:
        """The name of the preloaded state in `MODEL:NAME`, if there is one."""
        model, colon, state = name.rpartition(":")
        return state if colon and model in self.names and state in self.preloaded_states else None

    def models(self) -> list[dict[str, Any]]:
        """Entries of the models: under every name, and with every preloaded state."""
        names = [*self.names, *(f"{self.names[0]}:{state}" for state in self.preloaded_states)]
        return [
            {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "exlstm",
                "root": self.names[0],
                "parent": None,
                "max_model_len": self.limits.prompt_tokens,
                "permission": [],
                "exlstm": {
                    "fingerprint": self.fingerprint,
                    "state_bytes": self.engine.bytes_per_sequence,
                    "context": "unbounded" if self.model.config.positions is None else self.model.config.positions,
                    "chat": self.template is not None,
                    "limits": self.limits.public(),
                    **self.about,
                },
            }
            for name in names
        ]

    def certificate(self, body: SamplingFields, seed: int) -> dict[str, Any]:
        """What a request was, and of which model: with equal weights it has the same answer again."""
        return {
            "version": __version__,
            "fingerprint": self.fingerprint,
            "tokenizer": self.store.tokenizer_digest,
            "weights": self.about["weights"],
            "request": body.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"seed": seed},
        }

    def heading(self, kind: str, model: str) -> Heading:
        """Fields of a new answer."""
        name = f"{kind}-{uuid4().hex}"
        return Heading(id=name, created=int(time.time()), model=model, fingerprint=self.system_fingerprint)

    async def start_of(self, owner: str, body: SamplingFields) -> StartingPoint:
        """Where a request goes on from. Refusal for a state or session that is not there, or that is busy."""
        if body.session is not None:
            return await self.turn_of(owner, body.session, body.if_state)
        name = self.preloaded(body.model)
        state = body.state or name
        if state is None:
            return StartingPoint()
        return StartingPoint(snapshot=await self.snapshot_of(owner, state), state=state)

    async def turn_of(self, owner: str, session: str, if_state: str | None) -> StartingPoint:
        """A turn of a session; waits a second for one that is in flight."""
        for attempt in range(21):
            try:
                with translated("session"):
                    lease = self.sessions.begin_turn(owner, session, if_state)
                break
            except SessionBusy:
                if attempt == 20:
                    raise Refusal(409, "a turn of this session is in flight; try again.", "session_busy") from None
                await asyncio.sleep(0.05)
        head = lease.session.head
        if head is None:
            return StartingPoint(lease=lease)
        try:
            return StartingPoint(snapshot=await self.snapshot_of(owner, head), state=head, lease=lease)
        except BaseException:
            lease.release()
            raise

    async def snapshot_of(self, owner: str, state: str) -> Snapshot:
        """The snapshot of a state, perhaps from disk. Refusal with 404 if it is not there, or another's."""
        with translated("state"):
            return await asyncio.to_thread(self.store.get, owner, state)

    def keep(self, owner: str, event: Event, start: StartingPoint, ids: Tensor, reason: str) -> StateInfo | None:
        """Keeps the state after an answer. None if there is no room for it."""
        assert event.snapshot is not None
        with suppress(StoreFull):
            info = self.store.put(owner, event.snapshot, parent=start.state, finish_reason=reason, state=start.next_id)
            if start.lease is not None:
                start.reached, start.tokens = info, [*ids.tolist(), *event.completion]
            return info
        self.metrics.rejected("states_full")
        return None

    async def settle(self, start: StartingPoint) -> None:
        """Moves a session on to the state that its turn has reached, before the client is told."""
        lease, reached = start.lease, start.reached
        if lease is not None and reached is not None:
            with translated("session"):
                await asyncio.to_thread(self.sessions.commit, lease, reached, tokens=start.tokens)

    def submit(self, job: Job) -> None:
        """Gives a job to the engine. Refusal if the server is not ready or its queue is full."""
        self.check_ready()
        try:
            self.admission.admit(job)
        except Refusal:
            self.metrics.rejected("queue_full")
            raise
        self.jobs.add(job)
        self.thread.submit(job)

    def cancel(self, job: Job) -> None:
        """Takes a job out of the engine; nothing if it has ended."""
        if job in self.jobs:
            self.jobs.discard(job)
            self.admission.drop(job)
            self.thread.cancel(job)

    def deliver(self, delivery: Delivery) -> None:
        """Hands the events of a step to their jobs."""
        now = asyncio.get_running_loop().time()
        for job, part in delivery.started:
            if job in self.jobs:
                self.admission.start(job, part.tokens)
                job.started_at = job.started_at or now
        for job, choice, event in delivery.events:
            job.put(choice, event)
        self.admission.read(delivery.prefill, delivery.seconds)
        self.metrics.step(delivery)

    async def constraint(self, spec: GrammarSpec) -> GrammarConstraint:
        """A grammar that the answer has to follow. Refusal for one that cannot be built."""
        try:
            return await asyncio.to_thread(self.grammars.constraint, spec)
        except ValueError as error:
            raise bad_field("response_format", str(error)) from None

    def leave(self, start: StartingPoint) -> None:
        """Gives back the turn of a session that comes to nothing."""
        if start.lease is not None:
            start.lease.release()

    def finish(self, start: StartingPoint, reply: Reply, outcome: str) -> None:
        """Notes the end of a reply, whatever it was."""
        self.leave(start)
        self.metrics.reply(reply, outcome)

    def new_job(self, owner: str, parts: Sequence[Part], timeout: float | None) -> Job:
        """A job of these parts that ends in time."""
        now = asyncio.get_running_loop().time()
        seconds = min(self.limits.request_seconds, timeout or self.limits.request_seconds)
        return Job(owner, parts, created=now, deadline=now + seconds)


@contextmanager
def translated(field: str) -> Iterator[None]:
    """Refusals in place of the errors of the store and the sessions, inside a `with` block."""
    try:
        yield
    except SessionBusy:
        raise
    except (StateGone, SessionGone) as error:
        raise Refusal(404, str(error), f"{field}_not_found", field) from None
    except NotExportable as error:
        raise Refusal(403, str(error), "not_exportable", field) from None
    except SessionConflict as error:
        raise Refusal(412, str(error), "session_conflict", field) from None
    except NoSuchMark as error:
        raise Refusal(409, str(error), "no_such_mark", field) from None
    except StateMismatch as error:
        raise Refusal(412, str(error), "state_mismatch", field) from None
    except StoreFull as error:
        raise busy(str(error), "states_full", 10) from None
    except ValueError as error:
        raise bad_field(field, str(error)) from None
