"""Choices of an answer, put together from the engine's events: for frames of a stream as for the whole.

Of every sequence the text, its logprobs, and why it ended. With echo the prompt comes first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from exlstm.data.decoder import Decoder
from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.requests import Event
from exlstm.serve.formats import Delta
from exlstm.serve.token_names import TokenEntry


class LogprobForm(Protocol):
    """Logprobs in one of the wire's forms."""

    def part(self, entries: Sequence[TokenEntry], lengths: Sequence[int]) -> dict[str, Any]:
        """The form of these tokens. lengths: characters of the text that each has made certain."""

    def skip(self, length: int) -> None:
        """Goes on behind so many characters that have no logprobs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceOptions:
    """What is wanted of a choice. logprobs: their form, or None. echo: ids of the prompt, if it is wanted.

    echo_from: where its logprobs begin. token_ids: whether ids are told.
    keep: called with the event of the snapshot and why the answer ended; returns what is said of the state.
    """

    tokenizer: Tokenizer
    logprobs: LogprobForm | None = None
    echo: Sequence[int] | None = None
    echo_from: int = 0
    token_ids: bool = False
    keep: Callable[[Event, str], dict[str, Any]] | None = None


@dataclass(eq=False)
class ChoiceProgress:
    """A choice so far.

    tokens: sampled, the stop token included. total: sum of their logprobs. held: logprobs of the prompt, until all of
    them are there. parts, entries, lengths, ids, extra: what has not been sent yet.
    """

    index: int
    options: ChoiceOptions
    tokens: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    total: float = 0.0
    cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    began: bool = False
    ended: bool = False
    echoed: bool = False
    held: list[TokenEntry] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def take(self, events: Sequence[Event]) -> None:
        """Adds events of the choice to what has not been sent yet."""
        for event in events:
            self.take_echo(event)
            token = event.stop if event.token is None and isinstance(event.stop, int) else event.token
            if token is not None:
                self.tokens.append(token)
                self.ids.append(token)
                if event.logprob is not None:
                    self.total += event.logprob
                    self.entries.append(TokenEntry(token, event.logprob, event.top_logprobs or ()))
                    self.lengths.append(len(event.text))
            if event.text:
                self.parts.append(event.text)
            if event.finish_reason is not None:
                self.finish_reason, self.stop_reason = event.finish_reason, event.stop
                self.cached_tokens, self.error = event.cached_tokens, event.error
            if event.snapshot is not None and self.options.keep is not None:
                reason = self.finish_reason or "length"
                self.extra["state"] = self.options.keep(event, reason)
        # the end waits for the state that belongs to it
        waits = self.options.keep is not None and "state" not in self.extra and self.error is None
        self.ended = self.finish_reason is not None and not waits

    def delta(self) -> Delta | None:
        """What has not been sent yet, as sent; None if that is nothing."""
        if not (self.parts or self.ids or self.entries or self.ended):
            return None
        delta = Delta(index=self.index, text="".join(self.parts), first=not self.began, extra=self.extra)
        if self.options.logprobs is not None and self.entries:
            delta.logprobs = self.options.logprobs.part(self.entries, self.lengths)
        if self.options.token_ids:
            delta.extra["token_ids"] = self.ids
        if self.ended:
            delta.finish_reason, delta.stop_reason = self.finish_reason, self.stop_reason
        # a token whose text is held back sends nothing but its logprobs
        if not (delta.text or delta.logprobs or delta.extra or delta.first or self.ended):
            return None
        self.began = True
        self.parts, self.entries, self.lengths, self.ids, self.extra = [], [], [], [], {}
        return delta

    def take_echo(self, event: Event) -> None:
        """Puts the prompt in front: scored, once all of it is, or as it is."""
        prompt, start = self.options.echo, self.options.echo_from
        if prompt is None or self.echoed:
            return
        self.held += [TokenEntry(each.token, each.logprob, each.top) for each in event.prompt_logprobs]
        if event.prompt_logprobs and len(self.held) < len(prompt) - start:
            return
        self.echoed = True
        if not self.held:
            self.parts.append(spelled(self.options.tokenizer, prompt))
            return
        decoder = Decoder(self.options.tokenizer)
        texts = [decoder.feed(token) for token in prompt]
        texts[-1] += decoder.finish()
        self.parts += texts
        self.entries += self.held
        self.lengths += map(len, texts[start:])
        if self.options.logprobs is not None:
            self.options.logprobs.skip(sum(map(len, texts[:start])))


def spelled(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Text of tokens; bytes that are no UTF-8 are U+FFFD."""
    return tokenizer.decode(tokens).decode("utf-8", "replace")
