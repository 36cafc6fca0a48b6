"""Names of tokens in logprobs, and the logprobs of OpenAI's two interfaces.

A token is a string of bytes, which need not be whole UTF-8. Its name is its text where it is, and else the bytes as
`bytes:\\xe2\\x82`, so that two tokens do not share the name U+FFFD.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from exlstm.data.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which is not JSON


class TokenEntry(NamedTuple):
    """A token with its log-probability, None where nothing came before, and the most likely tokens in its place."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class TokenNames:
    """Names of the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.spelling = cache(self._spelling)
        self.name = cache(self._name)

    def _spelling(self, token: int) -> bytes:
        return self.tokenizer.decode([token]) if token < self.tokenizer.vocab_size else b""

    def _name(self, token: int) -> str:
        spelled = self.spelling(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def distinct(self, tokens: Sequence[int], as_ids: bool) -> list[str]:
        """Names of the tokens of one place; where two share one, the later is `token_id:N`. as_ids: all are."""
        if as_ids:
            return [f"token_id:{token}" for token in tokens]
        found: dict[str, int] = {}
        for token in tokens:
            name = self.name(token)
            if found.setdefault(name, token) != token:
                found[f"token_id:{token}"] = token
        names = {token: name for name, token in found.items()}
        return [names[token] for token in tokens]


def bounded(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, LEAST)


class CompletionLogprobs:
    """`logprobs` of completions, part by part: offsets go on from part to part.

    as_ids: names are `token_id:N`. with_ids: ids and what else was likely are told in lists besides. offset: characters
    before the next token.
    """

    def __init__(self, names: TokenNames, *, as_ids: bool = False, with_ids: bool = False) -> None:
        self.names, self.as_ids, self.with_ids, self.offset = names, as_ids, with_ids, 0

    def skip(self, length: int) -> None:
        """Goes on behind so many characters that have no logprobs."""
        self.offset += length

    def part(self, entries: Sequence[TokenEntry], lengths: Sequence[int]) -> dict[str, Any]:
        """The lists for these tokens. lengths: characters of the text that each has made certain."""
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        ids: list[list[dict[str, Any]]] = []
        for entry, length in zip(entries, lengths, strict=True):
            order = list(dict.fromkeys([entry.token, *(token for token, _ in entry.top)]))
            named = self.names.distinct(order, self.as_ids)
            tokens.append(named[0])
            scores = {entry.token: entry.logprob or 0.0, **dict(entry.top)}
            ids.append(
                [
                    {"id": token, "text": name, "logprob": bounded(scores[token])}
                    for name, token in zip(named, order, strict=True)
                ]
            )
            offsets.append(self.offset)
            self.offset += length
            if entry.logprob is None:
                logprobs.append(None)
                tops.append(None)
                continue
            logprobs.append(bounded(entry.logprob))
            tops.append({name: bounded(scores[token]) for name, token in zip(named, order, strict=True)})
        found: dict[str, Any] = {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }
        if self.with_ids:
            # a list, for objects of JavaScript put keys that look like numbers first
            found |= {"token_ids": [entry.token for entry in entries], "alternatives": ids}
        return found


class ChatLogprobs:
    """`logprobs` of chat."""

    def __init__(self, names: TokenNames) -> None:
        self.names = names

    def skip(self, length: int) -> None:
        """There are no offsets."""

    def part(self, entries: Sequence[TokenEntry], lengths: Sequence[int]) -> dict[str, Any]:
        """The entries of these tokens."""
        content = [
            {**self.named(entry.token, entry.logprob or 0.0), "top_logprobs": [self.named(*each) for each in entry.top]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def named(self, token: int, logprob: float) -> dict[str, Any]:
        """A token with its bytes."""
        spelled = list(self.names.spelling(token))
        return {"token": self.names.name(token), "logprob": bounded(logprob), "bytes": spelled}
