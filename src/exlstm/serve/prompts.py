"""Prompts of requests as tokens, checked against the limits before anything is computed."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.serve.errors import bad_field
from exlstm.serve.schemas import Message

P = ParamSpec("P")
R = TypeVar("R")
IN_PLACE = 4_096  # characters up to which text is encoded on the loop's thread


class Prompts:
    """Encoder of prompts for one model. most: tokens of a prompt."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, most: int) -> None:
        self.tokenizer, self.vocab_size, self.most = tokenizer, vocab_size, most
        self.longest = max(1, int(tokenizer.byte_lengths.max()))

    async def ids(self, prompt: str | Sequence[int], field: str, *, boundary: bool) -> Tensor:
        """Ids of a prompt, [T]; a text gets the boundary in front if asked. Refusal for one that is too long."""
        if not isinstance(prompt, str):
            if len(prompt) > self.most:
                raise self.too_long(len(prompt), field)
            if wrong := [token for token in prompt if token >= self.vocab_size]:
                raise bad_field(field, f"token {wrong[0]} is outside the vocabulary of {self.vocab_size}.")
            return await elsewhere(len(prompt) > IN_PLACE, tensor_of, prompt)
        # so many tokens it has at least
        if len(prompt) > self.longest * self.most:
            raise self.too_long(len(prompt) // self.longest, field)
        found = await elsewhere(len(prompt) > IN_PLACE, self.encoded, prompt, boundary=boundary)
        if len(found) > self.most:
            raise self.too_long(len(found), field)
        return found

    def encoded(self, text: str, *, boundary: bool) -> Tensor:
        """Ids of a text."""
        return tensor_of([*([self.tokenizer.boundary] if boundary else []), *self.tokenizer.encode(text.encode())])

    def too_long(self, size: int, field: str) -> Exception:
        """Refusal that names both numbers."""
        return bad_field(
            field,
            f"the prompt has {size:,} tokens or more, and this server takes {self.most:,}; shorten it.",
            "context_length_exceeded",
        )


def tensor_of(ids: Sequence[int]) -> Tensor:
    """Ids as a tensor, [T]."""
    return torch.tensor(ids, dtype=torch.long)


async def elsewhere(long: bool, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of `fn`, computed in a worker thread where it takes long."""
    return await asyncio.to_thread(fn, *args, **kwargs) if long else fn(*args, **kwargs)


def flattened(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates take them: parts of text joined. Refusal for parts of other types."""
    found = []
    for number, message in enumerate(messages):
        content = message.content
        if isinstance(content, list):
            for index, part in enumerate(content):
                if part.type not in ("text", "input_text", "output_text", "refusal") or part.text is None:
                    where = f"messages.{number}.content.{index}"
                    raise bad_field(where, f"a part of type {part.type!r} cannot be read; send text.")
            content = "".join(part.text or "" for part in content)
        if content is None and not message.tool_calls:
            raise bad_field(f"messages.{number}.content", "the message has no content; send text.")
        fields = message.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        role = "system" if message.role == "developer" else message.role
        found.append({"role": role, "content": content or "", **fields})
    return found
