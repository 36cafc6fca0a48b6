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
from exlstm.serve.formats import COMMENT, DONE, Delta, Format, error_frame
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
    sent, such as tool calls. sending: since when a body is being sent. alarm, alarm_at: wakes the reply, and when.
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
    sending: float | None = None
    task: "asyncio.Task[Any] | None" = None
    background: Any = None
    alarm: asyncio.TimerHandle = field(init=False)
    alarm_at: float = 0.0
    stall: asyncio.TimerHandle = field(init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()
        watch = asyncio.ensure_future(self.watch(receive))
        self.alarm, self.alarm_at = loop.call_at(self.job.deadline, self.job.wake.set), self.job.deadline
        self.stall = loop.call_later(self.limits.stall_seconds, self.check_stall)
        try:
            await (self.send_stream(send) if self.stream else self.send_whole(send))
        except ClientGone:
            self.outcome = "disconnect"
        except asyncio.CancelledError:
            if self.outcome != "slow":
                raise
        finally:
            for each in (watch, self.alarm, self.stall):
                each.cancel()
            self.cancel(self.job)
            self.finish(self, self.outcome)

    async def watch(self, receive: Receive) -> None:
        """Notes that the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.job.gone = True
        self.job.wake.set()

    def check_stall(self) -> None:
        """Ends the reply to a reader that has taken nothing for too long."""
        loop, limit = asyncio.get_running_loop(), self.limits.stall_seconds
        if self.sending is not None and loop.time() - self.sending >= limit and self.task is not None:
            self.outcome = "slow"
            self.task.cancel()
            return
        self.stall = loop.call_later(limit / 2, self.check_stall)

    async def send_whole(self, send: Send) -> None:
        """The whole answer in one body, or an error in its place."""
        try:
            while not all(each.ended for each in self.progress):
                self.take(await self.next_events())
            await self.settle()
        except Refusal as refusal:
            await refuse(send, refusal)
            return
        body = self.format.answer(self.chosen(), self.usage(), self.extra)
        self.outcome = "done"
        headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.put(send, body, more=False)

    async def send_stream(self, send: Send) -> None:
        """Frames as they come. Nothing is sent before the first of them, so that an error has its status."""
        began = False
        silence = self.limits.keep_alive_comment or None
        try:
            while not all(each.ended for each in self.progress):
                events = await self.next_events(silence)
                changed = self.take(events)
                if all(each.ended for each in self.progress):
                    await self.settle()
                body = self.rendered(changed) if events is not None else COMMENT
                if not body:
                    continue
                if not began:
                    began = True
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                await self.put(send, body)
        except Refusal as refusal:
            if not began:
                await refuse(send, refusal)
                return
            self.outcome = refusal.code or "error"
            kind = "timeout_error" if refusal.status == 504 else "server_error"
            body = error_frame(error_json(refusal.message, kind, refusal.code)) + DONE
            await self.put(send, body, more=False)
            return
        last = (self.format.usage_frame(self.usage()) if self.usage_at_end else b"") + DONE
        self.outcome = "done"
        await self.put(send, last, more=False)

    async def next_events(self, silence: float | None = None) -> list[tuple[int, Event]] | None:
        """Events, once there are any; None after so many seconds of silence.

        ClientGone when it goes; Refusal when time is up, the engine failed, or the server has cancelled the job.
        """
        job, loop = self.job, asyncio.get_running_loop()
        quiet_until = job.deadline if silence is None else min(job.deadline, loop.time() + silence)
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
            now = loop.time()
            if now >= job.deadline:
                self.outcome = "deadline"
                raise Refusal(504, "the time for this request is up; ask for fewer tokens or later.", "timeout")
            if now >= quiet_until:
                return None
            # an alarm that rings too early costs less than one that is set for every token
            if not now < self.alarm_at <= quiet_until:
                self.alarm.cancel()
                self.alarm, self.alarm_at = loop.call_at(quiet_until, job.wake.set), quiet_until
            job.wake.clear()
            await job.wake.wait()

    def take(self, events: Sequence[tuple[int, Event]] | None) -> list[ChoiceProgress]:
        """The choices that these events were added to. Refusal if one of them is an error."""
        by_choice: dict[int, list[Event]] = {}
        for choice, event in events or ():
            by_choice.setdefault(choice, []).append(event)
        found = [self.progress[choice] for choice in by_choice]
        for progress in found:
            progress.take(by_choice[progress.index])
            if progress.error is not None:
                raise engine_failed(progress.error)
        if self.first_token_at is None and any(each.tokens for each in found):
            self.first_token_at = asyncio.get_running_loop().time()
        return found

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

    async def put(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Sends a part of the body. It waits while the reader is slow."""
        self.sending = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self.sending = None


async def refuse(send: Send, refusal: Refusal) -> None:
    """Sends an error."""
    body = refusal.body()
    headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
    with suppress(OSError):
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
