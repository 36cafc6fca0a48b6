"""/v1/states and /v1/sessions: states of talks as values that are kept, read, forked, downloaded and uploaded."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import torch
from fastapi import FastAPI, Request, Response
from pydantic import Field
from torch import Tensor

from exlstm.infer.requests import Request as EngineRequest
from exlstm.serve.chat import rendered, template_of
from exlstm.serve.errors import Refusal, bad_field, busy, engine_failed
from exlstm.serve.guard import body_of, too_large
from exlstm.serve.jobs import Part
from exlstm.serve.prompts import flattened
from exlstm.serve.schemas import StateBody, StateId, StrictFields
from exlstm.serve.service import Service, StartingPoint, translated
from exlstm.serve.session_records import RewindPlan, Session
from exlstm.serve.sessions import SessionBusy
from exlstm.serve.state_store import StateInfo

ReadBody = Callable[[Service, Request, Any], Awaitable[Any]]


class SessionBody(StrictFields):
    """POST /v1/sessions."""

    name: Annotated[str, Field(max_length=200)] | None = None
    state: StateId | None = None
    transcript: bool = Field(False, description="Keep the tokens, 4 bytes each, to rewind to any of them.")
    mark_every: Annotated[int, Field(ge=16, le=1_000_000)] | None = None


class RewindBody(StrictFields):
    """POST /v1/sessions/{id}/rewind: one of the three."""

    to: StateId | None = None
    turns: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    tokens: Annotated[int, Field(ge=1, le=2**53)] | None = None


class ForkBody(StrictFields):
    """POST /v1/sessions/{id}/fork."""

    at: StateId | None = None
    name: Annotated[str, Field(max_length=200)] | None = None


def add_states(app: FastAPI, service: Service, read_body: ReadBody) -> None:
    """The routes of states."""
    store = service.store

    @app.post("/v1/states", openapi_extra=takes(StateBody))
    async def create(request: Request) -> Response:
        """Reads text into a state, without an answer."""
        body = await read_body(service, request, StateBody)
        return json_response(described(await read_state(service, request.state.owner, body)), 201)

    @app.get("/v1/states")
    async def every(request: Request) -> Response:
        """All states of this key."""
        return json_response({"object": "list", "data": [described(each) for each in store.list(request.state.owner)]})

    @app.get("/v1/states/{state}")
    async def one(request: Request, state: str) -> Response:
        """What is known of a state."""
        with translated("state"):
            return json_response(described(store.info(request.state.owner, state)))

    @app.delete("/v1/states/{state}")
    async def delete(request: Request, state: str) -> Response:
        """Deletes a state; those that went on from it stay."""
        with translated("state"):
            await asyncio.to_thread(store.delete, request.state.owner, state)
        return json_response({"id": state, "object": "state", "deleted": True})

    @app.get("/v1/states/{state}/content")
    async def download(request: Request, state: str, dtype: str = "float32") -> Response:
        """The numbers of a state as a file; in bfloat16 half as large, and rounded."""
        if dtype not in ("float32", "bfloat16"):
            raise bad_field("dtype", f"dtype is {dtype[:20]!r}; it can be float32 or bfloat16.")
        rounded = torch.bfloat16 if dtype == "bfloat16" else None
        with translated("state"):
            data = await asyncio.to_thread(store.content, request.state.owner, state, rounded)
        tag = await asyncio.to_thread(lambda: f'"{hashlib.sha256(data).hexdigest()}"')
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag})
        headers = {"etag": tag, "content-disposition": f'attachment; filename="{state}.safetensors"'}
        return ranged(data, request.headers.get("range"), headers)

    @app.post("/v1/states/content")
    async def upload(request: Request) -> Response:
        """Takes a state that this server or one with equal weights has made."""
        owner, most = request.state.owner, service.state_file_bytes
        given = request.headers.get("content-length")
        if given is None or not given.isdecimal():
            raise Refusal(411, "the length of the state must be known; send content-length.")
        if int(given) > most:
            raise too_large(most)
        with translated("state"), store.reserve(owner, int(given)):
            data = await body_of(request.receive, request.headers, most, service.limits.body_seconds)
            info = await asyncio.to_thread(store.add_content, owner, data)
        return json_response(described(info), 201)


def add_sessions(app: FastAPI, service: Service, read_body: ReadBody) -> None:
    """The routes of sessions: names that point at a state, and move on with every turn."""
    sessions = service.sessions

    @app.post("/v1/sessions", openapi_extra=takes(SessionBody))
    async def create_session(request: Request) -> Response:
        """Opens a session, at a state or at the beginning."""
        body = await read_body(service, request, SessionBody)
        with translated("state"):
            found = await asyncio.to_thread(
                sessions.create, request.state.owner, body.name, body.state, body.transcript, body.mark_every
            )
        return json_response(shown(service, found), 201)

    @app.get("/v1/sessions")
    async def every_session(request: Request) -> Response:
        """All sessions of this key."""
        found = [shown(service, each) for each in sessions.list(request.state.owner)]
        return json_response({"object": "list", "data": found})

    @app.get("/v1/sessions/{session}")
    async def one_session(request: Request, session: str) -> Response:
        """What is known of a session."""
        with translated("session"):
            return json_response(shown(service, sessions.get(request.state.owner, session)))

    @app.delete("/v1/sessions/{session}")
    async def delete_session(request: Request, session: str) -> Response:
        """Deletes a session; its states stay until they expire."""
        with idle("session"):
            await asyncio.to_thread(sessions.delete, request.state.owner, session)
        return json_response({"id": session, "object": "session", "deleted": True})

    @app.post("/v1/sessions/{session}/fork", openapi_extra=takes(ForkBody))
    async def fork(request: Request, session: str) -> Response:
        """A new session that has been where this one was."""
        body = await read_body(service, request, ForkBody)
        with translated("session"):
            found = await asyncio.to_thread(sessions.fork, request.state.owner, session, body.at, body.name)
        return json_response(shown(service, found), 201)

    @app.post("/v1/sessions/{session}/rewind", openapi_extra=takes(RewindBody))
    async def rewind(request: Request, session: str) -> Response:
        """Goes back to a state, by some turns, or to a number of tokens."""
        owner, body = request.state.owner, await read_body(service, request, RewindBody)
        with idle("session"):
            plan = await asyncio.to_thread(
                sessions.rewind, owner, session, state=body.to, turns=body.turns, tokens=body.tokens
            )
            if plan.reread:
                await read_again(service, owner, session, plan)
            return json_response(shown(service, sessions.get(owner, session)))

    @app.get("/v1/sessions/{session}/tree")
    async def tree(request: Request, session: str) -> Response:
        """Its states with their parents."""
        with translated("session"):
            found = sessions.tree(request.state.owner, session)
        nodes = [described(each) for each in found.nodes]
        return json_response({"nodes": nodes, "edges": found.edges, "head": found.head, "marks": found.marks})


@contextmanager
def idle(field: str) -> Iterator[None]:
    """`translated`, for what needs a session without a turn in flight."""
    try:
        with translated(field):
            yield
    except SessionBusy as error:
        raise Refusal(409, str(error), "session_busy", field) from None


async def read_again(service: Service, owner: str, session: str, plan: RewindPlan) -> None:
    """Follows a plan of rewinding that has tokens to read again, as a turn of the session."""
    state = None if plan.mark is None else plan.mark.state
    with service.sessions.begin_turn(owner, session, plan.head) as lease:
        snapshot = None if state is None else await service.snapshot_of(owner, state)
        start = StartingPoint(snapshot=snapshot, state=state)
        info = await read_into_state(service, owner, start, torch.tensor(plan.reread, dtype=torch.long))
        await asyncio.to_thread(service.sessions.commit, lease, info, rewound=plan)


def shown(service: Service, session: Session) -> dict[str, Any]:
    """A session as answers give it."""
    marks = [{"state": mark.state, "tokens": mark.tokens, "pinned": mark.pinned} for mark in session.marks]
    return {
        "object": "session",
        "id": session.id,
        "name": session.name,
        "created": session.created,
        "head": session.head,
        "tokens": session.tokens,
        "marks": marks,
        "transcript": session.transcript is not None,
        "busy": service.sessions.is_busy(session.id),
    }


async def read_state(service: Service, owner: str, body: StateBody) -> StateInfo:
    """The state after a prompt or messages."""
    service.check_ready()
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_field("prompt", "send prompt or messages, and one of them.")
    start = StartingPoint()
    if body.from_ is not None:
        start = StartingPoint(snapshot=await service.snapshot_of(owner, body.from_), state=body.from_)
    goes_on = start.snapshot is not None
    if body.messages is not None:
        settings = {"add_generation_prompt": False}
        ids = await rendered(service, template_of(service), flattened(body.messages), settings, go_on=goes_on)
    else:
        assert body.prompt is not None
        ids = await service.prompts.ids(body.prompt, "prompt", boundary=body.add_special_tokens and not goes_on)
    if len(ids) == 0:
        raise bad_field("prompt", "there is nothing to read; send at least one token.")
    info = await read_into_state(service, owner, start, ids)
    with translated("state"):
        if body.pinned and not service.store.pin(owner, info.id):
            service.store.delete(owner, info.id)
            raise busy("there is no room for another pinned state; unpin or delete others.", "states_full", 60)
        return service.store.info(owner, info.id)


async def read_into_state(service: Service, owner: str, start: StartingPoint, ids: Tensor) -> StateInfo:
    """The state after some tokens, kept."""
    request = EngineRequest(
        prompt=ids, after=start.snapshot, max_tokens=0, keep_snapshot=True, cache=service.caches[owner]
    )
    job = service.new_job(owner, [Part(request=request, tokens=len(ids), seeds=[0], first=0)], None)
    service.submit(job)
    try:
        async with asyncio.timeout_at(job.deadline):
            while not any(event.finish_reason for _, event in job.pending) and job.error is None:
                await job.wake.wait()
    except TimeoutError:
        raise Refusal(504, "the time for this request is up; send a part of the text.", "timeout") from None
    finally:
        service.cancel(job)
    if job.error is not None:
        raise job.error
    event = job.pending[-1][1]
    if event.snapshot is None:
        raise engine_failed(event.error or "the prompt was not read.")
    with translated("state"):
        return service.store.put(owner, event.snapshot, parent=start.state)


def described(info: StateInfo) -> dict[str, Any]:
    """A state as answers give it; its owner knows who they are."""
    return {"object": "state", **{key: value for key, value in asdict(info).items() if key != "owner"}}


def ranged(data: bytes, wanted: str | None, headers: dict[str, str]) -> Response:
    """A file, or the part of it that a Range names."""
    headers = {"accept-ranges": "bytes", **headers}
    media = "application/octet-stream"
    if wanted is None or not wanted.startswith("bytes=") or "," in wanted:
        return Response(data, headers=headers, media_type=media)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start = int(first) if first.isdecimal() else max(0, len(data) - int(last)) if last.isdecimal() else -1
    stop = min(len(data), int(last) + 1) if first and last.isdecimal() else len(data)
    if not 0 <= start < stop:
        raise Refusal(416, f"the range is outside of {len(data):,} bytes; ask for a part of them.")
    headers["content-range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Response(data[start:stop], 206, headers=headers, media_type=media)


def takes(kind: type[StrictFields]) -> dict[str, Any]:
    """The OpenAPI entry of a body."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def json_response(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
