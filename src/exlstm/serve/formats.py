"""The wire's two forms of an answer: completions and chat, whole and as frames of a stream.

Bytes of a frame that do not change are made once; per frame the text alone is escaped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

encode = msgspec.json.encode
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"


@dataclass(kw_only=True)
class Delta:
    """What an answer gets at a time. text: new text. logprobs: of the wire's form, or None. extra: further fields of
    the choice, such as its state. first: whether nothing came before."""

    index: int
    text: str = ""
    logprobs: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Fields that all frames of an answer share."""

    id: str
    created: int
    model: str
    fingerprint: str


class Format(Protocol):
    """Form of an answer on the wire."""

    heading: Heading
    end: bytes

    def frame(self, delta: Delta, usage: dict[str, Any] | None = None) -> bytes:
        """A frame of a stream."""

    def usage_frame(self, usage: dict[str, Any]) -> bytes:
        """The frame with the usage alone, before the end."""

    def error_frame(self, body: bytes) -> bytes:
        """A frame with an error, after which the stream ends."""

    def answer(self, choices: Sequence[Delta], usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        """The whole answer."""


def opening(heading: Heading, kind: str) -> bytes:
    """The beginning of all frames, up to the choices."""
    fields = {"id": heading.id, "object": kind, "created": heading.created, "model": heading.model}
    fields["system_fingerprint"] = heading.fingerprint
    return b"data: " + json.dumps(fields)[:-1].encode() + b',"choices":['


def ending(delta: Delta) -> bytes:
    """The end of a choice in a frame, from its logprobs on."""
    if delta.logprobs is None and delta.finish_reason is None and not delta.extra:
        return b',"logprobs":null,"finish_reason":null}'
    logprobs, reason = encode(delta.logprobs), encode(delta.finish_reason)
    found = b',"logprobs":' + logprobs + b',"finish_reason":' + reason
    if delta.finish_reason is not None:
        found += b',"stop_reason":' + encode(delta.stop_reason)
    return found + b"".join(b"," + encode(key) + b":" + encode(x) for key, x in delta.extra.items()) + b"}"


def closing(usage: dict[str, Any] | None) -> bytes:
    """The end of a frame."""
    return b"]}\n\n" if usage is None else b'],"usage":' + encode(usage) + b"}\n\n"


class CompletionFormat:
    """Answers of /v1/completions."""

    end = DONE

    def __init__(self, heading: Heading) -> None:
        self.heading, self.opening = heading, opening(heading, "text_completion")

    def frame(self, delta: Delta, usage: dict[str, Any] | None = None) -> bytes:
        """See `Format`."""
        start = b'{"index":%d,"text":' % delta.index
        return b"".join([self.opening, start, encode(delta.text), ending(delta), closing(usage)])

    def usage_frame(self, usage: dict[str, Any]) -> bytes:
        """See `Format`."""
        return self.opening + closing(usage)

    def error_frame(self, body: bytes) -> bytes:
        """See `Format`."""
        return b"data: " + body + b"\n\n"

    def answer(self, choices: Sequence[Delta], usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        """See `Format`."""
        found = [
            {
                "index": delta.index,
                "text": delta.text,
                "logprobs": delta.logprobs,
                "finish_reason": delta.finish_reason,
                "stop_reason": delta.stop_reason,
                **delta.extra,
            }
            for delta in choices
        ]
        return encode(whole(self.heading, "text_completion", found, usage, extra))


class ChatFormat:
    """Answers of /v1/chat/completions."""

    end = DONE

    def __init__(self, heading: Heading) -> None:
        self.heading, self.opening = heading, opening(heading, "chat.completion.chunk")

    def frame(self, delta: Delta, usage: dict[str, Any] | None = None) -> bytes:
        """See `Format`. The role comes with the first text and not before it: that would falsify times."""
        start = b'{"index":%d,"delta":{' % delta.index
        if delta.first:
            start += b'"role":"assistant",'
        if delta.tool_calls is not None:
            start += b'"tool_calls":' + encode(delta.tool_calls) + b"}"
        elif delta.text or delta.first or delta.finish_reason is None:
            start += b'"content":' + encode(delta.text) + b"}"
        else:
            start += b"}"
        return b"".join([self.opening, start, ending(delta), closing(usage)])

    def usage_frame(self, usage: dict[str, Any]) -> bytes:
        """See `Format`."""
        return self.opening + closing(usage)

    def error_frame(self, body: bytes) -> bytes:
        """See `Format`."""
        return b"data: " + body + b"\n\n"

    def answer(self, choices: Sequence[Delta], usage: dict[str, Any], extra: dict[str, Any]) -> bytes:
        """See `Format`."""
        found = []
        for delta in choices:
            message: dict[str, Any] = {"role": "assistant", "content": delta.text, "refusal": None}
            if delta.tool_calls is not None:
                message |= {"content": None, "tool_calls": delta.tool_calls}
            found.append(
                {
                    "index": delta.index,
                    "message": message,
                    "logprobs": delta.logprobs,
                    "finish_reason": delta.finish_reason,
                    "stop_reason": delta.stop_reason,
                    **delta.extra,
                }
            )
        return encode(whole(self.heading, "chat.completion", found, usage, extra))


def whole(
    heading: Heading, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    """An answer that is no stream."""
    return {
        "id": heading.id,
        "object": kind,
        "created": heading.created,
        "model": heading.model,
        "choices": choices,
        "usage": usage,
        "system_fingerprint": heading.fingerprint,
        **extra,
    }
