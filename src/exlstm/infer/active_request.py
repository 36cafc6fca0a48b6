"""Requests inside the engine: checked, being read, being decoded.

T tokens of the prompt  C classes (vocabulary)
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.requests import Request, TopLogprobs
from exlstm.infer.stopping import TextStream
from exlstm.mixers.state import LMState
from exlstm.models.lm import LM
from exlstm.models.states.snapshot import Snapshot, check_owner, check_prompt


@dataclass(eq=False)
class ActiveRequest:
    """A request with the engine's progress in it.

    number: of the request. tokens_T: of its prompt, empty only after a snapshot. position: tokens read so far, to
    `state`. cuts: positions at which a snapshot is made, the prompt's end last. known: the snapshot of a prompt that
    needs no reading. cached: tokens found in the cache. seen_C: tokens that occurred, if penalty or snapshot need them.
    sampled: the completion so far.
    """

    request: Request
    tokens_T: Tensor
    stop_tokens: frozenset[int]
    generator: Generator
    text: TextStream | None
    number: int = -1
    position: int = 0
    state: LMState | None = None
    cuts: list[int] = field(default_factory=list)
    known: Snapshot | None = None
    cached: int = 0
    seen_C: Tensor | None = None
    sampled: list[int] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.tokens_T)

    @property
    def count(self) -> int:
        """Number of tokens before the completion, those of the snapshot it goes on from included."""
        return len(self.tokens_T) + (0 if self.request.after is None else self.request.after.counts[0])

    @property
    def wants_snapshot(self) -> bool:
        """True if a snapshot of the completion is needed."""
        return self.request.keep_snapshot or self.request.cache_completion

    def watch(self, snapshot: Snapshot) -> None:
        """Starts `seen_C` from a snapshot, if penalty or snapshot need it."""
        if self.wants_snapshot or self.request.sampling.repetition_penalty != 1.0:
            self.seen_C = snapshot.seen_BC[0].clone()

    def take(self, token: int) -> tuple[str, str | None]:
        """Adds a token to the completion; the text that is final with it, and the stop string that it completes."""
        self.sampled.append(token)
        if self.seen_C is not None:
            self.seen_C[token] = True
        return ("", None) if self.text is None else self.text.feed(token)

    def rest(self) -> str:
        """Text that was held back as a possible beginning of a stop string."""
        return "" if self.text is None else self.text.finish()[0]


def prepare(model: LM, tokenizer: Tokenizer | None, request: Request, name: str) -> ActiveRequest:
    """Checked request. ValueError, in one sentence about `name`, for a request that cannot be done."""
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
    boundary = {tokenizer.boundary} if tokenizer is not None and request.stop_at_boundary else set()
    try:
        generator = Generator().manual_seed(request.seed)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} has the seed {request.seed!r}; a seed is a whole number of 64 bits.") from None
    text = None if tokenizer is None else TextStream(tokenizer, request.stop_strings)
    check_positions(model, request, len(tokens_T), name)
    if wrong := [length for length in request.cache_at if not 1 <= length <= len(tokens_T)]:
        raise ValueError(f"{name} has {len(tokens_T)} tokens; its beginning of {wrong[0]} cannot be cached.")
    return ActiveRequest(request, tokens_T, frozenset(request.stop_tokens) | boundary, generator, text)


def check_numbers(request: Request, name: str) -> None:
    """ValueError for a negative max_tokens or logprobs."""
    if request.max_tokens < 0:
        raise ValueError(f"max_tokens must be 0 or more, not {request.max_tokens}.")
    if request.logprobs is not None and request.logprobs < 0:
        raise ValueError(f"{name} asks for the logprobs of {request.logprobs} tokens; ask for 0 or more, or None.")


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


def logprobs_of(logits_C: Tensor, token: int, n: int, vocab_size: int) -> tuple[float, TopLogprobs]:
    """Log-probability of the token, and the n most likely tokens below `vocab_size` with theirs."""
    logprobs_C = logits_C.double().log_softmax(dim=-1)
    if n == 0:
        return float(logprobs_C[token]), ()
    values, ids = logprobs_C[:vocab_size].topk(min(n, vocab_size))
    return float(logprobs_C[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))
