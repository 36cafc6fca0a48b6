"""Replies: a job's answer sent to its client, whole or as a stream, until it ends, the client goes, or time is up.

Written to ASGI itself: a frame costs a few microseconds, and a client that goes is noticed at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exlstm.infer.requests import Event
from exlstm.serve.choices import ChoiceProgress
from exlstm.serve.errors import Refusal, engine_failed, error_json
from exlstm.serve.formats import COMMENT, Delta, Format
from exlstm.serve.jobs import Job
from exlstm.serve.limits import Limits

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
JSON_HEADERS = [(b"content-type", b"application/json")]


class ClientGone(Exception):
    """The client has closed its connection."""


@dataclass(kw_only=True, eq=False)
class Reply(Response):
    """The answer to a job as an ASGI application; a Response, or else the router would make one of it.

    best: number of choices to return of those that were sampled; None for all. usage: whether a stream tells it at its
    end, and in every frame. finish: called once with the outcome and the completion's tokens, whatever happened.
    settle: awaited when all choices have ended, before the client is told. change: what a delta becomes before it is
    sent, such as tool calls. sending, bodies, quiet: whether a body is being sent, how many were, and seconds without.
    """

    job: Job
    progress: Sequence[ChoiceProgress]
    format: Format
    limits: Limits
    stream: bool
    cancel: Callable[[Job], None]
    finish: Callable[["Reply", str], None]
    settle: Callable[[], Awaitable[None]]
    best: int | None = None
    usage_at_end: bool = False
    usage_always: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Delta, ChoiceProgress], Delta | None] | None = None
    outcome: str = "error"
    first_token_at: float | None = None
    frames: int = 0
    sending: bool = False
    bodies: int = 0
    bodies_before: int = -1
    quiet: float = 0.0
    wants_comment: bool = False
    task: "asyncio.Task[Any] | None" = None
    background: Any = None
    period: float = 0.0
    send_body: Send = field(init=False)
    timer: asyncio.TimerHandle = field(init=False)

    def __post_init__(self) -> None:
        self.open_choices = len(self.progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop, job = asyncio.get_running_loop(), self.job
        self.task = asyncio.current_task()
        # around the router's own layers, which look at the beginning of an answer alone
        self.send_body = scope.get("state", {}).get("send", send)
        watch = asyncio.ensure_future(self.watch(receive))
        alarm = loop.call_at(job.deadline, self.expire)
        silence = self.limits.keep_alive_comment if self.stream else 0.0
        self.period = min(self.limits.stall_seconds, silence or self.limits.stall_seconds) / 2
        self.timer = loop.call_later(self.period, self.look)
        try:
            await (self.send_stream(send) if self.stream else self.send_whole(send))
        except ClientGone:
            self.outcome = "disconnect"
        except asyncio.CancelledError:
            if self.outcome != "slow":
                raise
        finally:
            for each in (watch, alarm, self.timer):
                each.cancel()
            self.cancel(job)
            self.finish(self, self.outcome)

    async def watch(self, receive: Receive) -> None:
        """Notes that the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.job.gone = True
        self.job.wake.set()

    def expire(self) -> None:
        """Notes that the time is up."""
        self.job.late = True
        self.job.wake.set()

    def look(self) -> None:
        """Looks, now and then, whether a body has been sent since; no clock is asked for every token.

        Ends the reply to a reader that takes nothing, and has a comment sent into a silence.
        """
        self.quiet = self.quiet + self.period if self.bodies == self.bodies_before else 0.0
        self.bodies_before = self.bodies
        if self.sending and self.quiet >= self.limits.stall_seconds and self.task is not None:
            self.outcome = "slow"
            self.task.cancel()
            return
        if self.stream and not self.sending and 0 < self.limits.keep_alive_comment <= self.quiet:
            self.wants_comment = True
            self.job.wake.set()
        self.timer = asyncio.get_running_loop().call_later(self.period, self.look)

    async def send_whole(self, send: Send) -> None:
        """The whole answer in one body, or an error in its place."""
        try:
            while not self.has_ended():
                self.take(await self.next_events())
            await self.settle()
        except Refusal as refusal:
            await refuse(send, refusal)
            return
        body = self.format.answer(self.chosen(), self.usage(), self.extra)
        self.outcome = "done"
        headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.put(body, more=False)

    async def send_stream(self, send: Send) -> None:
        """Frames as they come. Nothing is sent before the first of them, so that an error has its status."""
        began = False
        try:
            while not self.has_ended():
                events = await self.next_events()
                changed = self.take(events)
                if self.has_ended():
                    await self.settle()
                body = self.rendered(changed) if events else COMMENT
                if not body:
                    continue
                if not began:
                    began = True
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                await self.put(body)
        except Refusal as refusal:
            if not began:
                await refuse(send, refusal)
                return
            self.outcome = refusal.code or "error"
            kind = "timeout_error" if refusal.status == 504 else "server_error"
            body = self.format.error_frame(error_json(refusal.message, kind, refusal.code)) + self.format.end
            await self.put(body, more=False)
            return
        last = (self.format.usage_frame(self.usage()) if self.usage_at_end else b"") + self.format.end
        self.outcome = "done"
        await self.put(last, more=False)

    async def next_events(self) -> list[tuple[int, Event]]:
        """Events, once there are any; none of them for a comment into the silence.

        ClientGone when it goes; Refusal when time is up, the engine failed, or the server has cancelled the job.
        """
        job = self.job
        while True:
            if job.gone:
                raise ClientGone
            if job.cause is not None:
                self.outcome = job.cause
                raise Refusal(503, "the server is shutting down; send the request again.", job.cause)
            if job.error is not None:
                raise job.error
            if job.pending:
                return job.take()
            if job.late:
                self.outcome = "deadline"
                raise Refusal(504, "the time for this request is up; ask for fewer tokens or later.", "timeout")
            if self.wants_comment:
                self.wants_comment = False
                return []
            await job.wake.wait()

    def take(self, events: Sequence[tuple[int, Event]]) -> list[ChoiceProgress]:
        """The choices that these events were added to. Refusal if one of them is an error."""
        by_choice: dict[int, list[Event]] = {}
        for choice, event in events:
            by_choice.setdefault(choice, []).append(event)
        found = []
        for choice, group in by_choice.items():
            progress = self.progress[choice]
            before = progress.ended
            progress.take(group)
            if progress.error is not None:
                raise engine_failed(progress.error)
            found.append(progress)
            self.open_choices -= progress.ended and not before
        if self.first_token_at is None and any(each.tokens for each in found):
            self.first_token_at = asyncio.get_running_loop().time()
        return found

    def has_ended(self) -> bool:
        """Whether all choices have ended."""
        return self.open_choices == 0

    def rendered(self, progress: Sequence[ChoiceProgress]) -> bytes:
        """Frames of what these choices have to send, as one body."""
        deltas = [delta for each in progress if (delta := each.delta()) is not None]
        if self.change is not None:
            changed = [self.change(delta, self.progress[delta.index]) for delta in deltas]
            deltas = [delta for delta in changed if delta is not None]
        self.frames += len(deltas)
        usage = self.usage() if self.usage_always and deltas else None
        return b"".join(self.format.frame(delta, usage) for delta in deltas)

    def chosen(self) -> list[Delta]:
        """The choices of a whole answer: all of them, or the best of each prompt by mean logprob."""
        found = []
        for part in self.job.parts:
            group = list(self.progress[part.first : part.first + len(part.seeds)])
            if self.best is not None:
                # equal ones stay in order
                group.sort(key=lambda each: -each.total / max(1, len(each.tokens)))
                group = group[: self.best]
            found += group
        deltas = []
        for index, progress in enumerate(found):
            delta = progress.delta()
            if delta is not None and self.change is not None:
                delta = self.change(delta, progress)
            assert delta is not None, "a choice that has ended has something to send"
            deltas.append(replace(delta, index=index))
        return deltas

    def usage(self) -> dict[str, Any]:
        """Tokens read and sampled so far."""
        prompt, completion = self.job.prompt_tokens, sum(len(each.tokens) for each in self.progress)
        cached = sum(self.progress[part.first].cached_tokens for part in self.job.parts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def put(self, body: bytes, *, more: bool = True) -> None:
        """Sends a part of the body. It waits while the reader is slow."""
        self.sending = True
        await self.send_body({"type": "http.response.body", "body": body, "more_body": more})
        self.sending = False
        self.bodies += 1


async def refuse(send: Send, refusal: Refusal) -> None:
    """Sends an error."""
    body = refusal.body()
    headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    with suppress(OSError):
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
