"""Requests of generation, and the events and completions they give."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from exlstm.infer.constraint import Constraint
from exlstm.infer.sampling import SamplingConfig
from exlstm.models.states.snapshot import Snapshot

if TYPE_CHECKING:
    from exlstm.infer.prefix_cache import PrefixCache

DEFAULT_SAMPLING = SamplingConfig()
FinishReason = Literal["stop", "length", "error"]
TopLogprobs = tuple[tuple[int, float], ...]  # the most likely tokens, the most likely first


class PromptLogprob(NamedTuple):
    """A token of a prompt: its log-probability, None where nothing came before it, and the most likely tokens."""

    token: int
    logprob: float | None
    top: TopLogprobs


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A sequence to continue, with its settings.

    prompt: ids, or a text, which needs a tokenizer and gets its boundary in front unless it goes on from `after`.
    after: a snapshot of one row to go on from; the prompt may then be empty.
    max_tokens: most tokens to sample; 0 samples none.
    seed: a prompt with its seed gets the same tokens in any batch.
    stop_tokens: ids that end the sequence and are not part of the completion. The tokenizer's boundary is one too,
        unless stop_at_boundary is False.
    stop: texts that end the sequence, for which a tokenizer is needed. The text ends before the first of them.
    min_tokens: until so many are sampled, stop tokens are not, and texts in `stop` do not count.
    logit_bias: added to the logits of these ids.
    constraint: tokens that may be sampled, such as those of a grammar; where it is complete, the sequence ends.
    logprobs: n for log-probabilities of the sampled and of the n most likely tokens; None for none. They are of the
        model's own distribution, before bias, penalties, temperature, filters and constraint.
    prompt_logprobs: the same of the tokens of the prompt, from that at `logprobs_from` on.
    keep_snapshot: the last event has the snapshot after prompt and completion; after a text in `stop`, that of the text
        before it. The last event may come after the one with finish_reason, in whose step it is not known yet.
    cache: where states of prompts are looked up and stored; None for the engine's.
    cache_at: lengths of beginnings of the prompt whose states a `PrefixCache` stores, besides those it stores by
        itself. cache_completion: also the state after prompt and completion.
    """

    prompt: str | Sequence[int] | Tensor = ()
    after: Snapshot | None = None
    max_tokens: int = 256
    sampling: SamplingConfig = DEFAULT_SAMPLING
    seed: int = 0
    stop_tokens: Collection[int] = ()
    stop: str | Sequence[str] = ()
    stop_at_boundary: bool = True
    min_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    constraint: Constraint | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprobs_from: int = 0
    keep_snapshot: bool = False
    cache: "PrefixCache | None" = None
    cache_at: Collection[int] = ()
    cache_completion: bool = False

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """The result of a step for one sequence: a token, its end, or both; or logprobs of its prompt.

    request: its number. token: None where the sequence ended without one. text: the part of the text that later tokens
    cannot change; empty without a tokenizer. logprob, top_logprobs: natural logarithms, see
    `Request`; at a stop token, of that. prompt_logprobs: of the next tokens of the prompt.
    finish_reason: None before the end; "stop" for the stop token or string in `stop` or a constraint that is complete,
    "length" for max_tokens, "error" for the error in `error`, whose exception is `cause`. With it comes cached_tokens,
    the tokens of the prompt found in the cache. The last event has the snapshot, if it was asked for, and with it
    `completion`, the tokens of the completion that it has read.
    """

    request: int
    token: int | None = None
    text: str = ""
    logprob: float | None = None
    top_logprobs: TopLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop: int | str | None = None
    error: str | None = None
    cause: BaseException | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[PromptLogprob, ...] = ()
    snapshot: Snapshot | None = None
    completion: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """The events of one sequence put together. text: None without a tokenizer. prompt_tokens: of this request alone."""

    tokens: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason
    stop: int | str | None
    error: str | None
    prompt_tokens: int
    cached_tokens: int
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[TopLogprobs, ...] | None
    prompt_logprobs: tuple[PromptLogprob, ...]
    snapshot: Snapshot | None


def completion_of(events: Sequence[Event], *, prompt_tokens: int, has_text: bool, logprobs: bool) -> Completion:
    """The completion of these events of one sequence."""
    sampled = [event for event in events if event.token is not None]
    (last,) = [event for event in events if event.finish_reason is not None]
    assert last.finish_reason is not None
    return Completion(
        tokens=tuple(event.token for event in sampled if event.token is not None),
        text="".join(event.text for event in events) if has_text else None,
        finish_reason=last.finish_reason,
        stop=last.stop,
        error=last.error,
        prompt_tokens=prompt_tokens,
        cached_tokens=last.cached_tokens,
        logprobs=tuple(event.logprob or 0.0 for event in sampled) if logprobs else None,
        top_logprobs=tuple(event.top_logprobs or () for event in sampled) if logprobs else None,
        prompt_logprobs=tuple(entry for event in events for entry in event.prompt_logprobs),
        snapshot=events[-1].snapshot,
    )
