"""Reading of prompts, some tokens of some of them per step, beside the sequences that are decoded.

A prompt that is read holds no slot, but a state of its own; at most so many are read at a time as there are slots.

M prompts read together  L tokens of a chunk  D model width  C classes (vocabulary)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exlstm.infer.active_request import PromptProgress
from exlstm.infer.logprobs import prompt_logprobs
from exlstm.infer.prefill import Waiting, calls, shares
from exlstm.infer.requests import PromptLogprob
from exlstm.mixers.state import LMState
from exlstm.models.lm import LM
from exlstm.models.states.batching import join_rows, take_rows
from exlstm.models.states.fingerprint import weights_of
from exlstm.models.states.snapshot import Snapshot

MOST_CHUNKS = 16  # chunks of a step in which nothing is decoded: requests are taken, and cancelled, between steps


@dataclass(eq=False)
class ReadingResult:
    """What a step of reading gave: prompts that are complete, logprobs of prompts, and prompts that failed.

    Complete ones have a snapshot, unless it was not needed.
    """

    complete: list[tuple[PromptProgress, Snapshot | None]] = field(default_factory=list)
    scored: list[tuple[PromptProgress, list[PromptLogprob]]] = field(default_factory=list)
    failed: list[tuple[PromptProgress, Exception]] = field(default_factory=list)


class PromptReader:
    """Prompts that wait and prompts that are read, in order of arrival. tokens: those that are still to be read."""

    def __init__(self, model: LM, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.waiting: dict[PromptProgress, None] = {}
        self.reading: dict[PromptProgress, None] = {}
        self.started: list[PromptProgress] = []
        self.tokens = 0

    def add(self, prompt: PromptProgress) -> None:
        """Puts a prompt at the end of the queue."""
        self.waiting[prompt] = None
        self.tokens += prompt.left

    def remove(self, prompt: PromptProgress) -> None:
        """Takes a prompt out."""
        for group in (self.waiting, self.reading):
            if prompt in group:
                del group[prompt]
                self.tokens -= prompt.left

    def step(self, room: int, chunk: int, *, decoding: bool) -> ReadingResult:
        """Reads a part of some prompts. room: of them that may be read at a time. chunk: tokens of a call per prompt,
        and of all of them while sequences are decoded."""
        result = ReadingResult()
        while self.waiting and len(self.reading) < room:
            prompt = next(iter(self.waiting))
            del self.waiting[prompt]
            self.reading[prompt] = None
            self.started.append(prompt)
            if not prompt.needs_reading:
                self.remove(prompt)
                result.complete.append((prompt, None))
                continue
            try:
                self.begin(prompt)
            except Exception as error:
                self.fail(prompt, error, result)
        for prompt in [each for each in self.reading if each.known is not None]:
            assert prompt.known is not None
            self.finish(prompt, prompt.known, result)
        prompts = list(self.reading)
        sizes = [min(prompt.cuts[0] - prompt.position, chunk) for prompt in prompts]
        if decoding:
            left = zip(prompts, sizes, strict=True)
            sizes = shares([Waiting(left=each.left, chunk=size, passed=each.passed) for each, size in left], chunk)
        for places in calls(sizes, MOST_CHUNKS if decoding else len(prompts))[:MOST_CHUNKS]:
            self.read([prompts[place] for place in places], [sizes[place] for place in places], result)
        for prompt, size in zip(prompts, sizes, strict=True):
            prompt.passed = 0 if size else prompt.passed + 1
        return result

    def begin(self, prompt: PromptProgress) -> None:
        """Finds where reading begins: after a snapshot, after what the cache holds, or at the start."""
        request, size, cache = prompt.request, len(prompt.tokens_T), prompt.cache
        prompt.cuts = [size]
        if request.after is not None:
            prompt.state, prompt.before_1C = request.after.state, request.after.logits_BC
            prompt.known = None if size else request.after
        elif cache is not None:
            # what is scored has to be read
            most = request.logprobs_from if prompt.is_scored else size
            found, held, known = cache.find(self.model, prompt.tokens_T[:most].tolist())
            self.tokens -= held
            prompt.position = prompt.cached = held
            if found is not None:
                prompt.state, prompt.before_1C = found.state, found.logits_BC
            prompt.known = found if held == size else None
            parts = {known} if known - held >= cache.min_tokens else set()
            parts |= {request.logprobs_from} if prompt.is_scored else set()
            prompt.cuts = sorted({cut for cut in (*parts, *request.cache_at) if held < cut < size} | {size})

    def read(self, group: Sequence[PromptProgress], sizes: Sequence[int], result: ReadingResult) -> None:
        """Reads so many tokens of each prompt in one call; where that fails, of each alone to find the culprit."""
        try:
            x_MLD, state = self.hidden(group, sizes)
        except Exception as error:
            if len(group) == 1:
                self.fail(group[0], error, result)
                return
            for prompt, size in zip(group, sizes, strict=True):
                self.read([prompt], [size], result)
            return
        for row, (prompt, size) in enumerate(zip(group, sizes, strict=True)):
            try:
                own = state if len(group) == 1 else take_rows(state, [row])
                self.advance(prompt, x_MLD[row, :size], own, result)
            except Exception as error:
                self.fail(prompt, error, result)

    def hidden(self, group: Sequence[PromptProgress], sizes: Sequence[int]) -> tuple[Tensor, LMState]:
        """Hidden states of the next tokens, x [M, L, D], and the state after them."""
        device = self.model.embed.weight.device
        tokens_ML = torch.zeros(len(group), max(sizes), dtype=torch.long)
        for row_L, prompt, size in zip(tokens_ML, group, sizes, strict=True):
            row_L[:size] = prompt.tokens_T[prompt.position : prompt.position + size]
        lengths_M = torch.tensor(sizes, device=device) if min(sizes) < max(sizes) else None
        x_MLD, state = self.model.hidden(tokens_ML.to(device), self.joined_state(group), lengths_B=lengths_M)
        return x_MLD, state

    def joined_state(self, group: Sequence[PromptProgress]) -> LMState | None:
        """The states of some prompts as one; None if none has been read yet."""
        states = [prompt.state for prompt in group]
        if len(states) == 1 or all(state is None for state in states):
            return states[0]
        blank = self.model.zero_state(1)
        return join_rows([blank if state is None else state for state in states])

    def advance(self, prompt: PromptProgress, x_LD: Tensor, state: LMState, result: ReadingResult) -> None:
        """Takes over what a call has read of a prompt; makes a snapshot where one is due."""
        if prompt.is_scored:
            self.score(prompt, x_LD, result)
        prompt.position += len(x_LD)
        self.tokens -= len(x_LD)
        prompt.state = state
        if prompt.position != prompt.cuts[0]:
            return
        prompt.cuts.pop(0)
        snapshot = self.snapshot(prompt, self.model.read_out(x_LD[-1:]))
        # prompts that are scored come once, but their beginnings again and again
        stored = prompt.cache is not None and prompt.request.after is None and (prompt.cuts or not prompt.is_scored)
        if stored:
            assert prompt.cache is not None
            prompt.cache.keep(prompt.tokens_T[: prompt.position].tolist(), snapshot)
        if not prompt.cuts:
            self.finish(prompt, snapshot, result)

    def score(self, prompt: PromptProgress, x_LD: Tensor, result: ReadingResult) -> None:
        """Logprobs of the tokens of a chunk, as far as they are wanted."""
        count, start, stop = prompt.request.prompt_logprobs, prompt.position, prompt.position + len(x_LD)
        assert count is not None
        first, found = max(prompt.scored, start), []
        if first == start:
            token = int(prompt.tokens_T[start])
            if prompt.before_1C is None:
                found.append(PromptLogprob(token, None, ()))
            else:
                before_1C = prompt.before_1C
                found += prompt_logprobs(lambda _: before_1C, x_LD[:1], [token], count, self.vocab_size)
            first += 1
        if first < stop:
            tokens = prompt.tokens_T[first:stop].tolist()
            x_LD = x_LD[first - 1 - start :]
            found += prompt_logprobs(self.model.read_out, x_LD[: len(tokens)], tokens, count, self.vocab_size)
        if prompt.scored <= stop < len(prompt.tokens_T):
            prompt.before_1C = self.model.read_out(x_LD[-1:])
        prompt.scored = max(prompt.scored, stop)
        if found:
            result.scored.append((prompt, found))

    def snapshot(self, prompt: PromptProgress, logits_1C: Tensor) -> Snapshot:
        """The snapshot after what has been read of a prompt."""
        after, state = prompt.request.after, prompt.state
        assert state is not None
        seen_1C = torch.zeros_like(logits_1C, dtype=torch.bool) if after is None else after.seen_BC.clone()
        seen_1C[0, prompt.tokens_T[: prompt.position].to(seen_1C.device)] = True
        before = 0 if after is None else after.counts[0]
        return Snapshot(
            state=state,
            logits_BC=logits_1C,
            seen_BC=seen_1C,
            counts=(before + prompt.position,),
            weights=weights_of(self.model),
        )

    def finish(self, prompt: PromptProgress, snapshot: Snapshot, result: ReadingResult) -> None:
        """A prompt is complete."""
        del self.reading[prompt]
        prompt.state = None  # from now on in the snapshot
        result.complete.append((prompt, snapshot))

    def fail(self, prompt: PromptProgress, error: Exception, result: ReadingResult) -> None:
        """A prompt cannot be read."""
        self.remove(prompt)
        result.failed.append((prompt, error))
