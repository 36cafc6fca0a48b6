"""POST /v1/responses: answers whose id is a state, so that the next request reads only what is new.

`previous_response_id` goes on from the state after that answer, `store: false` keeps none. A stream is a list of named
events instead of frames.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from exlstm.serve.chat import chat_ids, chat_tokens, spec_of, template_of
from exlstm.serve.choices import ChoiceOptions, ChoiceProgress
from exlstm.serve.completions import keeper, parts_of, reply_of
from exlstm.serve.errors import bad_field
from exlstm.serve.formats import Delta, Heading, encode
from exlstm.serve.plan import engine_settings, seeds_of
from exlstm.serve.replies import Reply
from exlstm.serve.schemas import ChatBody, Message, ResponseFormat, StrictFields
from exlstm.serve.service import Service
from exlstm.serve.state_records import new_id

PREFIX = "resp_"  # of a response, and `st_` of its state


class InputMessage(Message):
    """A message among the input."""

    type: Literal["message"] = "message"


class TextForm(StrictFields):
    """The form of the text."""

    format: dict[str, Any] | None = None


class ResponsesBody(StrictFields):
    """POST /v1/responses."""

    model: str = ""
    input: str | list[InputMessage] = ""
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(pattern=r"^resp_[0-9a-f]{32}$")] | None = None
    store: bool = True
    stream: bool = False
    max_output_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    text: TextForm | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


REFUSED = {
    "tools": "send them to /v1/chat/completions",
    "conversation": "send previous_response_id",
    "background": "send stream",
    "include": "nothing more is known",
    "truncation": "nothing is cut",
}


async def respond(service: Service, owner: str, body: ResponsesBody) -> Reply:
    """The reply to a request for a response. Refusal, before anything is computed, for one that cannot be done."""
    for name, value in (body.model_extra or {}).items():
        if name in REFUSED and value not in ("disabled", "auto", "none", [], False):
            raise bad_field(name, f"{name} is not supported; {REFUSED[name]}.")
    service.check_ready()
    model, template, chat = service.check_model(body.model), template_of(service), chat_body(body)
    settings = engine_settings(chat, service.vocab_size, service.limits)
    settings["max_tokens"] = chat_tokens(chat, service)
    settings["stop"] = (*settings["stop"], *template.stop)
    if (spec := spec_of(chat)) is not None:
        settings["constraint"] = await service.constraint(spec)
    start = await service.start_of(owner, chat)
    start.next_id = new_id()
    ids = await chat_ids(service, template, chat, start)
    seed, seeds = seeds_of(chat, 1)
    parts = parts_of(service, owner, start, [ids], seeds, settings)
    keep = keeper(service, owner, start, ids) if body.store else None
    progress = [ChoiceProgress(0, ChoiceOptions(tokenizer=service.tokenizer, keep=keep))]
    heading = service.heading("resp", model)
    name = PREFIX + start.next_id.removeprefix("st_")
    form = ResponsesFormat(replace(heading, id=name), body)
    return reply_of(service, owner, chat, start, parts, progress, form, seed)


def chat_body(body: ResponsesBody) -> ChatBody:
    """The same request as one for a chat."""
    given = body.input
    messages: list[Message] = [Message(role="user", content=given)] if isinstance(given, str) else list(given)
    if body.instructions:
        messages = [Message(role="system", content=body.instructions), *messages]
    if not messages:
        raise bad_field("input", "there is no input; send a text or messages.")
    previous = body.previous_response_id
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "keep_state": body.store,
        "response_format": form_of(body.text),
        "state": None if previous is None else "st_" + previous.removeprefix(PREFIX),
    }
    return ChatBody(**{name: value for name, value in fields.items() if value is not None})


def form_of(text: TextForm | None) -> ResponseFormat | None:
    """The form of the text as chat has it: here the schema stands beside its type."""
    if text is None or text.format is None:
        return None
    kind = text.format.get("type")
    if kind == "json_schema":
        fields: dict[str, Any] = {
            "type": kind,
            "json_schema": {key: text.format[key] for key in text.format if key != "type"},
        }
    else:
        fields = {"type": kind}
    try:
        return ResponseFormat.model_validate(fields)
    except ValueError:
        raise bad_field("text.format", f"the format {str(kind)[:40]!r} is none; send text or json_schema.") from None


class ResponsesFormat:
    """Answers of /v1/responses."""

    end = b""

    def __init__(self, heading: Heading, body: ResponsesBody) -> None:
        self.heading, self.body = heading, body
        self.number = 0
        self.text = ""
        self.item = heading.id.replace(PREFIX, "msg_")

    def frame(self, delta: Delta, usage: dict[str, Any] | None = None) -> bytes:
        """The events of a delta; before the first and after the last those that surround the text."""
        found = self.beginning() if delta.first else b""
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        self.text += delta.text
        if delta.text:
            found += self.event("response.output_text.delta", {**place, "delta": delta.text, "logprobs": []})
        if delta.finish_reason is None:
            return found
        part = text_part(self.text)
        found += self.event("response.output_text.done", {**place, "text": self.text, "logprobs": []})
        found += self.event("response.content_part.done", {**place, "part": part})
        found += self.event("response.output_item.done", {"output_index": 0, "item": self.message(delta)})
        self.last = delta
        return found

    def usage_frame(self, usage: dict[str, Any]) -> bytes:
        """The last event, with the whole response."""
        kind = "response.completed" if self.last.finish_reason == "stop" else "response.incomplete"
        return self.event(kind, {"response": self.response(self.last, self.text, usage)})

    def error_frame(self, body: bytes) -> bytes:
        """The event of an error."""
        error = json.loads(body)["error"]
        return self.event("error", {"message": error["message"], "code": error["code"], "param": error["param"]})

    def answer(self, choices: Sequence[Delta], usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        """The whole response."""
        (delta,) = choices
        self.text = delta.text
        return encode(self.response(delta, delta.text, usage) | extra)

    def beginning(self) -> bytes:
        """The events before the first text."""
        opened = self.response(None, "", None)
        item = {"type": "message", "id": self.item, "status": "in_progress", "role": "assistant", "content": []}
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        return b"".join(
            [
                self.event("response.created", {"response": opened}),
                self.event("response.in_progress", {"response": opened}),
                self.event("response.output_item.added", {"output_index": 0, "item": item}),
                self.event("response.content_part.added", {**place, "part": text_part("")}),
            ]
        )

    def event(self, kind: str, fields: dict[str, Any]) -> bytes:
        """A named event with its number."""
        data = encode({"type": kind, "sequence_number": self.number, **fields})
        self.number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def message(self, delta: Delta) -> dict[str, Any]:
        """The message of the answer."""
        status = "completed" if delta.finish_reason == "stop" else "incomplete"
        content = [text_part(self.text)]
        return {"type": "message", "id": self.item, "status": status, "role": "assistant", "content": content}

    def response(self, delta: Delta | None, text: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        """The response object. delta: the end of the answer; None before it."""
        body = self.body
        status = "in_progress" if delta is None else "completed" if delta.finish_reason == "stop" else "incomplete"
        state = None if delta is None else delta.extra.get("state")
        counts = (
            None
            if usage is None
            else {
                "input_tokens": usage["prompt_tokens"],
                "output_tokens": usage["completion_tokens"],
                "total_tokens": usage["total_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens_details": {"reasoning_tokens": 0},
            }
        )
        return {
            "id": self.heading.id,
            "object": "response",
            "created_at": self.heading.created,
            "status": status,
            "model": self.heading.model,
            "output": [] if delta is None else [self.message(delta)],
            "usage": counts,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "previous_response_id": body.previous_response_id,
            "store": body.store,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "metadata": body.metadata,
            "max_output_tokens": body.max_output_tokens,
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "state": state,
        }


def text_part(text: str) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
