"""Replay of an answer that has a certificate: the same request to the same weights, and whether the same came out."""

import asyncio
import json
from pathlib import Path
from typing import Any

from starlette.types import Message

from exlstm.serve.body import checked
from exlstm.serve.chat import chat
from exlstm.serve.completions import complete
from exlstm.serve.schemas import ChatBody, CompletionBody
from exlstm.serve.service import Service

ROUNDING = 1e-3  # of a logprob: a sequence in a batch rounds otherwise than alone


def certified(file: Path) -> dict[str, Any]:
    """The answer in a file. ValueError for one without a certificate."""
    try:
        found = json.loads(file.read_bytes())
        wanted = {"fingerprint", "tokenizer", "weights", "request"}
        if wanted <= found["certificate"].keys() and isinstance(found["choices"], list):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{file} is no answer with a certificate; ask for one with certificate: true, and save it whole.")


def check_owner_of(answer: dict[str, Any], service: Service) -> None:
    """ValueError unless the answer is of these weights and this tokenizer."""
    told = answer["certificate"]
    for name, ours in (("fingerprint", service.fingerprint), ("tokenizer", service.store.tokenizer_digest)):
        if told[name] != ours:
            raise ValueError(f"the answer has the {name} {str(told[name])[:16]}, and this model {str(ours)[:16]}.")


def differences(answer: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Where two answers to one request differ, a line each. Logprobs may differ by rounding."""
    found = []
    for before, after in zip(answer["choices"], again["choices"], strict=False):
        place = f"choice {before.get('index')}"
        found += [
            f"{place}: {name} was {before.get(name)!r}, and is {after.get(name)!r}"
            for name in ("text", "message", "finish_reason", "stop_reason")
            if before.get(name) != after.get(name)
        ]
        if not all(map(near, scores_of(before), scores_of(after))):
            found.append(f"{place}: the logprobs are others")
    if len(answer["choices"]) != len(again["choices"]):
        found.append(f"there were {len(answer['choices'])} choices, and are {len(again['choices'])}")
    return found


def scores_of(choice: dict[str, Any]) -> list[Any]:
    """The logprobs of the tokens of a choice."""
    told = choice.get("logprobs") or {}
    if "content" in told:
        return [entry["logprob"] for entry in told["content"]]
    return list(told.get("token_logprobs", ()))


def near(a: float | None, b: float | None) -> bool:
    """Whether two logprobs are equal but for rounding."""
    return a == b or (a is not None and b is not None and abs(a - b) < ROUNDING)


async def repeated(service: Service, answer: dict[str, Any]) -> dict[str, Any]:
    """What the request of a certificate gives now. The service is stopped then."""
    request = answer["certificate"]["request"]
    service.start(lambda error: None)
    try:
        if "messages" in request:
            reply = await chat(service, "", checked(ChatBody, request))
        else:
            reply = await complete(service, "", checked(CompletionBody, request))
        parts: list[bytes] = []

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError("nothing is received")

        async def send(message: Message) -> None:
            parts.append(message.get("body", b""))

        await reply({"type": "http"}, receive, send)
        found: dict[str, Any] = json.loads(b"".join(parts))
        return found
    finally:
        await service.stop()
