"""Decoding for many sequences at once: what a server, a batch job and `generate` sit on.

    engine = Engine(model, slots=8, tokenizer=tokenizer)
    number = engine.submit(Request(prompt="Once"))
    while engine.busy:
        for event in engine.step(): ...

A step reads some of the prompts that wait, so that a long one does not hold up the others for long, and adds a token to
every sequence that is being decoded. Sequences come and go between steps; which others there are, and when, changes no
sequence's tokens (beyond rounding). An engine is for one thread.

M prompts read together  B sequences being decoded  C classes (vocabulary)
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.progress import Progress, logprobs_of, prepare
from exlstm.infer.requests import Event, FinishReason, Request
from exlstm.infer.sampling import sample_rows
from exlstm.infer.slots import slots_of
from exlstm.mixers.state import LMState
from exlstm.models.lm import LM
from exlstm.models.states.batching import grows, join_rows, take_rows
from exlstm.models.states.fingerprint import weights_of
from exlstm.models.states.snapshot import Snapshot, evaluating, read, read_tokens

NOT_FINITE = "the model's logits are NaN or infinite, so no token can be chosen; check its weights."


class Engine:
    """Sequences of one model, `slots` of them decoded at a time; more wait for their turn, first come, first served.

    cache: where states of prompts are looked up and kept. tokenizer: for texts and stop strings; ids that it does not
    have are never sampled. prefill_tokens: at most so many tokens of prompts are read in a step while others are
    decoded, and so many of each prompt otherwise.
    Raises ValueError for a tokenizer with more ids than the model, and for another model's cache.
    """

    def __init__(
        self, model: LM, *, slots: int = 16, cache: PrefixCache | None = None, tokenizer: Tokenizer | None = None,
        prefill_tokens: int = 256,
    ) -> None:  # fmt: skip
        if slots < 1 or prefill_tokens < 1:
            raise ValueError(f"slots is {slots} and prefill_tokens {prefill_tokens}; both must be at least 1.")
        vocab = model.config.vocab_size
        if tokenizer is not None and tokenizer.vocab_size > vocab:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {vocab}; "
                "use the tokenizer that the model was trained with."
            )
        if cache is not None:
            cache.belong_to(model)
        self.model, self.cache, self.tokenizer, self.prefill_tokens = model, cache, tokenizer, prefill_tokens
        self.size, self.vocab_size = slots, vocab if tokenizer is None else tokenizer.vocab_size
        with torch.inference_mode(False), torch.no_grad():
            self._slots = slots_of(model, slots)
        self._numbers = count()
        self._waiting: deque[Progress] = deque()
        self._reading: list[Progress] = []
        self._running: list[Progress] = []  # in the order of their rows

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._reading or self._running)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have: prompts being read and sequences being decoded."""
        return len(self._reading) + len(self._running)

    @property
    def bytes_per_sequence(self) -> int | None:
        """Bytes of one sequence's state, however long it gets; None if it grows: see `LM.state_bytes` for a length."""
        return None if grows(self.model) else self.model.state_bytes()

    @property
    def state_bytes(self) -> int:
        """Bytes of the memory for all slots: set aside from the start, or what is there now if states grow.

        On a CPU that plays its steps it is two sets. A prompt that is being read has one more state, until it is in.
        """
        return self._slots.nbytes

    def submit(self, request: Request) -> int:
        """Takes a request and returns its number, from 0 on.

        Raises ValueError for a request that cannot be done, and leaves all others alone.
        """
        return self.accept(request, "the prompt").number

    def accept(self, request: Request, name: str) -> Progress:
        """`submit`, of a prompt that errors call `name`."""
        if self.cache is not None:
            self.cache.belong_to(self.model)
        progress = prepare(self.model, self.tokenizer, request, name)
        progress.number = next(self._numbers)
        self._waiting.append(progress)
        return progress

    def cancel(self, number: int) -> bool:
        """Ends a request without another event; its slot is free. False if it is not there (any more)."""
        for progress in self._waiting:
            if progress.number == number:
                self._waiting.remove(progress)
                return True
        self._reading, before = [each for each in self._reading if each.number != number], self.running
        for row, progress in enumerate(self._running):
            if progress.number == number:
                self._free(row)
                break
        return self.running < before

    def run(self) -> Iterator[Event]:
        """Steps until there is nothing left to do."""
        while self.busy:
            yield from self.step()

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self) -> list[Event]:
        """Some more of the prompts read, and one more token for every sequence being decoded."""
        with evaluating(self.model):
            events = self._admit()
            ready = self._read() if self._reading else []
            logits = []
            if self._running:
                logits.append(self._slots.step([progress.sampled[-1] for progress in self._running]))
            for progress, snapshot in ready:
                if progress.request.max_tokens == 0:
                    kept = snapshot if progress.request.keep_snapshot else None
                    events.append(_last(progress, "length", snapshot=kept))
                    continue
                progress.watch(snapshot)
                self._slots.write(len(self._running), snapshot.state)
                self._running.append(progress)
                logits.append(snapshot.logits_BC)
            if logits:
                events += self._sample(logits[0] if len(logits) == 1 else torch.cat(logits))
            return events

    def _admit(self) -> list[Event]:
        """Those that wait begin to be read, as far as there are slots."""
        ended = []
        while self._waiting and self.running < self.size:
            progress = self._waiting.popleft()
            request, size = progress.request, len(progress.tokens_T)
            if request.max_tokens == 0 and not request.keep_snapshot and self.cache is None:
                ended.append(_last(progress, "length"))
                continue
            progress.cuts = [size]
            if request.after is not None:
                progress.state = request.after.state
                progress.known = None if size else request.after
            elif self.cache is not None:
                found, held, known = self.cache.find(self.model, progress.tokens_T.tolist())
                progress.position = progress.cached = held
                progress.state = None if found is None else found.state
                progress.known = found if held == size else None
                parts = {known} if known - held >= self.cache.min_tokens else set()
                progress.cuts = sorted({cut for cut in (*parts, *request.cache_at) if held < cut < size} | {size})
            self._reading.append(progress)
        return ended

    def _read(self) -> list[tuple[Progress, Snapshot]]:
        """One chunk of some prompts; those that have ended, with what was read."""
        done = [(progress, progress.known) for progress in self._reading if progress.known is not None]
        self._reading = [progress for progress in self._reading if progress.known is None]
        group = self._group()
        if not group:
            return done
        pieces = [progress.tokens_T[progress.position : self._end(progress)] for progress in group]
        x_MD, state = read_tokens(self.model, pieces, self._joined(group), self.prefill_tokens)
        for row, (progress, piece) in enumerate(zip(group, pieces, strict=True)):
            progress.position += len(piece)
            progress.state = state if len(group) == 1 else take_rows(state, [row])
            if progress.position != progress.cuts[0]:
                continue
            progress.cuts.pop(0)
            snapshot = self._snapshot_of_prompt(progress, self.model.read_out(x_MD[row : row + 1]))
            if self.cache is not None and progress.request.after is None:
                self.cache.keep(progress.tokens_T[: progress.position].tolist(), snapshot)
            if not progress.cuts:
                done.append((progress, snapshot))
                progress.state = None  # it goes on in a slot
        self._reading = [progress for progress in self._reading if progress.cuts]
        return done

    def _group(self) -> list[Progress]:
        """The prompts of which a chunk is read now, in the order in which they came."""
        group: list[Progress] = []
        longest = 0
        for progress in self._reading:
            longest = max(longest, self._end(progress) - progress.position)
            if group and self._running and longest * (len(group) + 1) > self.prefill_tokens:
                break
            group.append(progress)
        return group

    def _joined(self, group: list[Progress]) -> LMState | None:
        """The states of some prompts as one; None if nothing of any of them was read."""
        states = [progress.state for progress in group]
        if len(states) == 1 or all(state is None for state in states):
            return states[0]
        blank = self.model.zero_state(1)
        return join_rows([blank if state is None else state for state in states])

    def _end(self, progress: Progress) -> int:
        return min(progress.cuts[0], progress.position + self.prefill_tokens)

    def _snapshot_of_prompt(self, progress: Progress, logits_1C: Tensor) -> Snapshot:
        after, state = progress.request.after, progress.state
        assert state is not None
        seen_1C = torch.zeros_like(logits_1C, dtype=torch.bool) if after is None else after.seen_BC.clone()
        seen_1C[0, progress.tokens_T[: progress.position].to(seen_1C.device)] = True
        before = 0 if after is None else after.counts[0]
        return self._snapshot(state, logits_1C, seen_1C, before + progress.position)

    def _snapshot(self, state: LMState, logits_1C: Tensor, seen_1C: Tensor, tokens: int) -> Snapshot:
        return Snapshot(
            state=state, logits_BC=logits_1C, seen_BC=seen_1C, counts=(tokens,), weights=weights_of(self.model)
        )

    def _sample(self, logits_BC: Tensor) -> list[Event]:
        """The next token of every sequence being decoded; those that end make room."""
        running = self._running
        tokens = sample_rows(
            logits_BC if self.vocab_size == logits_BC.shape[1] else logits_BC[:, : self.vocab_size],
            [progress.request.sampling for progress in running],
            [progress.generator for progress in running],
            [None if progress.seen_C is None else progress.seen_C[: self.vocab_size] for progress in running],
        )
        events = [
            self._event(row, progress, token, logits_BC[row : row + 1])
            for row, (progress, token) in enumerate(zip(running, tokens, strict=True))
        ]
        for row in reversed(range(len(events))):
            if events[row].finish_reason is not None:
                self._free(row)
        return events

    def _event(self, row: int, progress: Progress, token: int | None, logits_1C: Tensor) -> Event:
        request = progress.request
        if token is None:
            return replace(_last(progress, "error", text=progress.rest()), error=NOT_FINITE)
        if token in progress.stop_tokens:
            snapshot = self._completed(row, progress, logits_1C, None)
            return replace(_last(progress, "stop", text=progress.rest(), snapshot=snapshot), stop=token)
        text, met = progress.take(token)
        logprob, top = None, None
        if request.logprobs is not None:
            logprob, top = logprobs_of(logits_1C[0], token, request.logprobs, self.vocab_size)
        if met is None and len(progress.sampled) < request.max_tokens:
            return Event(request=progress.number, token=token, text=text, logprob=logprob, top_logprobs=top)
        if met is None and progress.text is not None:
            rest, met = progress.text.finish()
            text += rest
        snapshot = self._completed(row, progress, logits_1C, token)
        last = _last(progress, "length" if met is None else "stop", text=text, snapshot=snapshot)
        return replace(last, token=token, stop=met, logprob=logprob, top_logprobs=top)

    def _completed(self, row: int, progress: Progress, logits_1C: Tensor, unread: int | None) -> Snapshot | None:
        """The snapshot after all tokens of the completion, the last of which may not have been read yet."""
        if not progress.wants_snapshot:
            return None
        assert progress.seen_C is not None
        tokens = progress.count + len(progress.sampled) - (unread is not None)
        seen_1C = progress.seen_C[None].clone()
        snapshot = self._snapshot(self._slots.read(row), logits_1C.clone(), seen_1C, tokens)
        if unread is not None:
            snapshot = read(self.model, [unread], snapshot)
        request = progress.request
        if self.cache is not None and request.cache_completion and request.after is None:
            self.cache.keep([*progress.tokens_T.tolist(), *progress.sampled], snapshot)
        return snapshot if request.keep_snapshot else None

    def _free(self, row: int) -> None:
        """The last row takes the place of this one."""
        last = len(self._running) - 1
        if row < last:
            self._slots.move(last, row)
            self._running[row] = self._running[last]
        self._running.pop()
        self._slots.free(last)


def _last(progress: Progress, reason: FinishReason, *, text: str = "", snapshot: Snapshot | None = None) -> Event:
    """The last event of a request."""
    return Event(
        request=progress.number, finish_reason=reason, text=text, snapshot=snapshot, cached_tokens=progress.cached
    )
