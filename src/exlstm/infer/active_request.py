"""Requests inside the engine: prompts being read, and their samples being decoded.

T tokens of the prompt  C classes (vocabulary)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.constraint import Constraint
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.requests import Request
from exlstm.infer.stopping import TextStream
from exlstm.mixers.state import LMState
from exlstm.models.lm import LM
from exlstm.models.states.snapshot import Snapshot, check_owner, check_prompt


@dataclass(eq=False)
class ActiveRequest:
    """A sequence with the engine's progress in it.

    number: of the request. prompt: what is read before it, shared with other samples. row: in the slots, once it is
    decoded. seen_C: tokens that occurred, if penalty or snapshot need them. sampled: the completion so far. times: how
    often each token was sampled, if penalties need it. turning: the snapshot from where text began to be held back,
    and what has been said since. done: its end was told, and its last token is still to be read. tail: what is read
    after its end, for the state before a stop string.
    """

    request: Request
    number: int
    prompt: "PromptProgress"
    stop_tokens: frozenset[int]
    generator: Generator
    text: TextStream | None
    row: int | None = None
    seen_C: Tensor | None = None
    sampled: list[int] = field(default_factory=list)
    times: Counter[int] = field(default_factory=Counter)
    turning: "TurningPoint | None" = None
    done: bool = False
    tail: "PromptProgress | None" = None

    @property
    def count(self) -> int:
        """Number of tokens before the completion, those of the snapshot it goes on from included."""
        return len(self.prompt.tokens_T) + (0 if self.request.after is None else self.request.after.counts[0])

    @property
    def wants_snapshot(self) -> bool:
        """True if a snapshot of the completion is needed."""
        return self.request.keep_snapshot or self.request.cache_completion

    @property
    def may_stop(self) -> bool:
        """True if the next token may be the last by itself."""
        return len(self.sampled) >= self.request.min_tokens

    def watch(self, snapshot: Snapshot) -> None:
        """Starts `seen_C` from a snapshot, if penalty or snapshot need it."""
        if self.wants_snapshot or self.request.sampling.repetition_penalty != 1.0:
            self.seen_C = snapshot.seen_BC[0].clone()

    def take(self, token: int) -> tuple[str, str | None]:
        """Adds a token to the completion; the text that is final with it, and the stop string that it completes."""
        self.sampled.append(token)
        if self.seen_C is not None:
            self.seen_C[token] = True
        sampling = self.request.sampling
        if sampling.frequency_penalty or sampling.presence_penalty:
            self.times[token] += 1
        stops = len(self.sampled) >= self.request.min_tokens
        return ("", None) if self.text is None else self.text.feed(token, stops=stops)

    def rest(self) -> str:
        """Text that was held back as a possible beginning of a stop string."""
        return "" if self.text is None else self.text.finish()[0]


@dataclass(eq=False)
class TurningPoint:
    """The state from which a stop string may begin. snapshot: before the tokens from `first` of the completion on.

    said: the text since, without what is held back.
    """

    snapshot: Snapshot
    first: int
    said: str = ""


@dataclass(eq=False)
class PromptProgress:
    """A prompt with its progress.

    tokens_T: empty only after a snapshot. samples: the sequences that go on from it. position: tokens read so far, to
    `state`. cuts: positions at which a snapshot is made, the prompt's end last. known: the snapshot of a prompt that
    needs no reading. cached: tokens found in the cache. scored: the first token whose logprob is still to come.
    before_1C: logits for the next token, while tokens are scored. passed: steps in which others were read.
    """

    request: Request
    tokens_T: Tensor
    cache: PrefixCache | None
    samples: list[ActiveRequest] = field(default_factory=list)
    position: int = 0
    state: LMState | None = None
    cuts: list[int] = field(default_factory=list)
    known: Snapshot | None = None
    cached: int = 0
    scored: int = 0
    before_1C: Tensor | None = None
    passed: int = 0

    @property
    def is_scored(self) -> bool:
        """True if logprobs of its tokens are wanted."""
        return self.request.prompt_logprobs is not None

    @property
    def needs_reading(self) -> bool:
        """False if nothing of what reading gives was asked for."""
        request = self.request
        return request.max_tokens > 0 or request.keep_snapshot or self.is_scored or self.cache is not None

    @property
    def left(self) -> int:
        """Tokens that are still to be read."""
        return len(self.tokens_T) - self.position


def prepare(
    model: LM, tokenizer: Tokenizer | None, request: Request, cache: PrefixCache | None, name: str
) -> PromptProgress:
    """Checked prompt, without samples. ValueError, in one sentence about `name`, for a request that cannot be done."""
    check_numbers(request, name)
    after = request.after
    if after is not None:
        check_owner(model, after)
        if len(after) != 1:
            raise ValueError(f"{name} goes on from a snapshot of {len(after)} rows; take one of them with rows().")
    if tokenizer is None and (isinstance(request.prompt, str) or request.stop_strings):
        what = "is a text" if isinstance(request.prompt, str) else "has stop strings"
        raise ValueError(f"{name} {what}, and there is no tokenizer; pass one, or use ids.")
    if "" in request.stop_strings:
        raise ValueError(f"{name} has an empty stop string; leave it out.")
    tokens_T = prompt_tokens(model, tokenizer, request, name)
    check_positions(model, request, len(tokens_T), name)
    if wrong := [length for length in request.cache_at if not 1 <= length <= len(tokens_T)]:
        raise ValueError(f"{name} has {len(tokens_T)} tokens; its beginning of {wrong[0]} cannot be cached.")
    if not 0 <= request.logprobs_from <= len(tokens_T):
        raise ValueError(f"{name} has {len(tokens_T)} tokens and no token {request.logprobs_from} to begin scoring at.")
    vocab = model.config.vocab_size if tokenizer is None else tokenizer.vocab_size
    if wrong := [token for token in request.logit_bias if not 0 <= token < vocab]:
        raise ValueError(f"{name} has a bias for token {wrong[0]}, which is outside the vocabulary of {vocab}.")
    return PromptProgress(request, tokens_T, cache, scored=request.logprobs_from)


def samples_of(
    prompt: PromptProgress, tokenizer: Tokenizer | None, numbers: Sequence[int], seeds: Sequence[int], name: str
) -> list[ActiveRequest]:
    """The sequences of a prompt, one for each seed. ValueError for a seed that is none."""
    request = prompt.request
    boundary = {tokenizer.boundary} if tokenizer is not None and request.stop_at_boundary else set()
    stop_tokens = frozenset(request.stop_tokens) | boundary
    found = []
    for number, seed in zip(numbers, seeds, strict=True):
        try:
            generator = Generator().manual_seed(seed)
        except (RuntimeError, TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} has the seed {seed!r}; a seed is a whole number of 64 bits.") from None
        text = None if tokenizer is None else TextStream(tokenizer, request.stop_strings)
        own = request if len(seeds) == 1 else replace(request, constraint=copy_of(request.constraint))
        found.append(ActiveRequest(own, number, prompt, stop_tokens, generator, text))
    return found


def copy_of(constraint: Constraint | None) -> Constraint | None:
    """A constraint for another sample."""
    return None if constraint is None else constraint.copy()


def check_numbers(request: Request, name: str) -> None:
    """ValueError for negative numbers of tokens and logprobs."""
    if request.max_tokens < 0:
        raise ValueError(f"max_tokens must be 0 or more, not {request.max_tokens}.")
    if request.min_tokens < 0:
        raise ValueError(f"min_tokens must be 0 or more, not {request.min_tokens}.")
    for count in (request.logprobs, request.prompt_logprobs):
        if count is not None and count < 0:
            raise ValueError(f"{name} asks for the logprobs of {count} tokens; ask for 0 or more, or None.")


def check_positions(model: LM, request: Request, size: int, name: str) -> None:
    """ValueError for more tokens than the model has positions, in a prompt of `size` tokens and its completion."""
    count = model.config.positions
    total = size + request.max_tokens + (0 if request.after is None else request.after.counts[0])
    if count is not None and total > count:
        raise ValueError(
            f"{name} and max_tokens need {total:,} positions, and the model has {count:,}; shorten one of them."
        )


def prompt_tokens(model: LM, tokenizer: Tokenizer | None, request: Request, name: str) -> Tensor:
    """Ids of a prompt, [T]; a text gets the boundary in front, unless it goes on from a snapshot."""
    prompt, after = request.prompt, request.after
    if isinstance(prompt, str):
        assert tokenizer is not None
        prompt = [*([tokenizer.boundary] if after is None else []), *tokenizer.encode(prompt.encode())]
    if after is not None and len(prompt) == 0:
        return torch.zeros(0, dtype=torch.long)
    return check_prompt(model, prompt, name)
