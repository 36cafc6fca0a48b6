"""Engine that decodes many sequences at once, for servers, batch jobs and `generate`.

    engine = Engine(model, slots=8, tokenizer=tokenizer)
    number = engine.submit(Request(prompt="Once"))
    while engine.busy:
        for event in engine.step(): ...

A step reads a chunk of waiting prompts, so that a long prompt delays others little, and adds a token to every sequence
that is being decoded. Sequences start and end between steps; the tokens of a sequence do not depend on the others
(beyond rounding). An engine is for one thread.

M prompts read together  B sequences being decoded  C classes (vocabulary)
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.active_request import ActiveRequest, logprobs_of, prepare
from exlstm.infer.prefix_cache import PrefixCache
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
    """Decoder of one model for `slots` sequences at a time; other requests wait in order of submission.

    cache: where states of prompts are looked up and stored. tokenizer: for texts and stop strings; ids that it does not
    have are never sampled. prefill_tokens: bound of the prompt tokens read in a step while sequences are decoded, and
    of those of each prompt otherwise.
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
        self._waiting: deque[ActiveRequest] = deque()
        self._reading: list[ActiveRequest] = []
        self._running: list[ActiveRequest] = []  # in the order of their rows

    @property
    def busy(self) -> bool:
        """True while requests are waiting or running."""
        return bool(self._waiting or self._reading or self._running)

    @property
    def waiting(self) -> int:
        """Number of requests that have not started."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of requests that have started: prompts being read and sequences being decoded."""
        return len(self._reading) + len(self._running)

    @property
    def bytes_per_sequence(self) -> int | None:
        """Bytes of one sequence's state at any length; None if it grows, see `LM.state_bytes`."""
        return None if grows(self.model) else self.model.state_bytes()

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of all slots: allocated at the start, or those of now if states grow.

        A CPU that replays its steps has two sides of buffers. A prompt being read has a state of its own.
        """
        return self._slots.nbytes

    def submit(self, request: Request) -> int:
        """Queues a request and returns its number, from 0 on.

        Raises ValueError for a request that cannot be done; others are not affected.
        """
        return self.accept(request, "the prompt").number

    def accept(self, request: Request, name: str) -> ActiveRequest:
        """`submit` of a prompt that error messages call `name`."""
        if self.cache is not None:
            self.cache.belong_to(self.model)
        active = prepare(self.model, self.tokenizer, request, name)
        active.number = next(self._numbers)
        self._waiting.append(active)
        return active

    def cancel(self, number: int) -> bool:
        """Ends a request without an event and frees its slot. False if it is unknown or has ended."""
        for active in self._waiting:
            if active.number == number:
                self._waiting.remove(active)
                return True
        self._reading, before = [each for each in self._reading if each.number != number], self.running
        for row, active in enumerate(self._running):
            if active.number == number:
                self._free(row)
                break
        return self.running < before

    def run(self) -> Iterator[Event]:
        """Events of all steps until no request is left."""
        while self.busy:
            yield from self.step()

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self) -> list[Event]:
        """Events of one step: a chunk of prompts is read, and every decoded sequence gets a token."""
        with evaluating(self.model):
            events = self._admit()
            ready = self._read() if self._reading else []
            logits = []
            if self._running:
                logits.append(self._slots.step([active.sampled[-1] for active in self._running]))
            for active, snapshot in ready:
                if active.request.max_tokens == 0:
                    kept = snapshot if active.request.keep_snapshot else None
                    events.append(_last(active, "length", snapshot=kept))
                    continue
                active.watch(snapshot)
                self._slots.write(len(self._running), snapshot.state)
                self._running.append(active)
                logits.append(snapshot.logits_BC)
            if logits:
                events += self._sample(logits[0] if len(logits) == 1 else torch.cat(logits))
            return events

    def _admit(self) -> list[Event]:
        """Starts waiting requests while slots are free; events of those that end at once."""
        ended = []
        while self._waiting and self.running < self.size:
            active = self._waiting.popleft()
            request, size = active.request, len(active.tokens_T)
            if request.max_tokens == 0 and not request.keep_snapshot and self.cache is None:
                ended.append(_last(active, "length"))
                continue
            active.cuts = [size]
            if request.after is not None:
                active.state = request.after.state
                active.known = None if size else request.after
            elif self.cache is not None:
                found, held, known = self.cache.find(self.model, active.tokens_T.tolist())
                active.position = active.cached = held
                active.state = None if found is None else found.state
                active.known = found if held == size else None
                parts = {known} if known - held >= self.cache.min_tokens else set()
                active.cuts = sorted({cut for cut in (*parts, *request.cache_at) if held < cut < size} | {size})
            self._reading.append(active)
        return ended

    def _read(self) -> list[tuple[ActiveRequest, Snapshot]]:
        """Reads a chunk of some prompts; returns the prompts that are complete, with their snapshots."""
        done = [(active, active.known) for active in self._reading if active.known is not None]
        self._reading = [active for active in self._reading if active.known is None]
        group = self._group()
        if not group:
            return done
        chunks = [active.tokens_T[active.position : self._end(active)] for active in group]
        x_MD, state = read_tokens(self.model, chunks, self._joined_state(group), self.prefill_tokens)
        for row, (active, chunk) in enumerate(zip(group, chunks, strict=True)):
            active.position += len(chunk)
            active.state = state if len(group) == 1 else take_rows(state, [row])
            if active.position != active.cuts[0]:
                continue
            active.cuts.pop(0)
            snapshot = self._snapshot_of_prompt(active, self.model.read_out(x_MD[row : row + 1]))
            if self.cache is not None and active.request.after is None:
                self.cache.keep(active.tokens_T[: active.position].tolist(), snapshot)
            if not active.cuts:
                done.append((active, snapshot))
                active.state = None  # from now on in a slot
        self._reading = [active for active in self._reading if active.cuts]
        return done

    def _group(self) -> list[ActiveRequest]:
        """Prompts of which a chunk is read now, in order of submission."""
        group: list[ActiveRequest] = []
        longest = 0
        for active in self._reading:
            longest = max(longest, self._end(active) - active.position)
            if group and self._running and longest * (len(group) + 1) > self.prefill_tokens:
                break
            group.append(active)
        return group

    def _joined_state(self, group: list[ActiveRequest]) -> LMState | None:
        """The states of some prompts as one; None if none has been read yet."""
        states = [active.state for active in group]
        if len(states) == 1 or all(state is None for state in states):
            return states[0]
        blank = self.model.zero_state(1)
        return join_rows([blank if state is None else state for state in states])

    def _end(self, active: ActiveRequest) -> int:
        return min(active.cuts[0], active.position + self.prefill_tokens)

    def _snapshot_of_prompt(self, active: ActiveRequest, logits_1C: Tensor) -> Snapshot:
        after, state = active.request.after, active.state
        assert state is not None
        seen_1C = torch.zeros_like(logits_1C, dtype=torch.bool) if after is None else after.seen_BC.clone()
        seen_1C[0, active.tokens_T[: active.position].to(seen_1C.device)] = True
        before = 0 if after is None else after.counts[0]
        return self._snapshot(state, logits_1C, seen_1C, before + active.position)

    def _snapshot(self, state: LMState, logits_1C: Tensor, seen_1C: Tensor, tokens: int) -> Snapshot:
        return Snapshot(
            state=state, logits_BC=logits_1C, seen_BC=seen_1C, counts=(tokens,), weights=weights_of(self.model)
        )

    def _sample(self, logits_BC: Tensor) -> list[Event]:
        """Samples the next token of every decoded sequence; frees the slots of those that end."""
        running = self._running
        tokens = sample_rows(
            logits_BC if self.vocab_size == logits_BC.shape[1] else logits_BC[:, : self.vocab_size],
            [active.request.sampling for active in running],
            [active.generator for active in running],
            [None if active.seen_C is None else active.seen_C[: self.vocab_size] for active in running],
        )
        events = [
            self._event(row, active, token, logits_BC[row : row + 1])
            for row, (active, token) in enumerate(zip(running, tokens, strict=True))
        ]
        for row in reversed(range(len(events))):
            if events[row].finish_reason is not None:
                self._free(row)
        return events

    def _event(self, row: int, active: ActiveRequest, token: int | None, logits_1C: Tensor) -> Event:
        request = active.request
        if token is None:
            return replace(_last(active, "error", text=active.rest()), error=NOT_FINITE)
        if token in active.stop_tokens:
            snapshot = self._completed(row, active, logits_1C, None)
            return replace(_last(active, "stop", text=active.rest(), snapshot=snapshot), stop=token)
        text, stop = active.take(token)
        logprob, top = None, None
        if request.logprobs is not None:
            logprob, top = logprobs_of(logits_1C[0], token, request.logprobs, self.vocab_size)
        if stop is None and len(active.sampled) < request.max_tokens:
            return Event(request=active.number, token=token, text=text, logprob=logprob, top_logprobs=top)
        if stop is None and active.text is not None:
            rest, stop = active.text.finish()
            text += rest
        snapshot = self._completed(row, active, logits_1C, token)
        last = _last(active, "length" if stop is None else "stop", text=text, snapshot=snapshot)
        return replace(last, token=token, stop=stop, logprob=logprob, top_logprobs=top)

    def _completed(self, row: int, active: ActiveRequest, logits_1C: Tensor, unread: int | None) -> Snapshot | None:
        """Snapshot after the completion, if it was asked for. unread: its last token, if the model has not read it."""
        if not active.wants_snapshot:
            return None
        assert active.seen_C is not None
        tokens = active.count + len(active.sampled) - (unread is not None)
        seen_1C = active.seen_C[None].clone()
        snapshot = self._snapshot(self._slots.read(row), logits_1C.clone(), seen_1C, tokens)
        if unread is not None:
            snapshot = read(self.model, [unread], snapshot)
        request = active.request
        if self.cache is not None and request.cache_completion and request.after is None:
            self.cache.keep([*active.tokens_T.tolist(), *active.sampled], snapshot)
        return snapshot if request.keep_snapshot else None

    def _free(self, row: int) -> None:
        """Frees a row; the last row moves to its place."""
        last = len(self._running) - 1
        if row < last:
            self._slots.move(last, row)
            self._running[row] = self._running[last]
        self._running.pop()
        self._slots.free(last)


def _last(active: ActiveRequest, reason: FinishReason, *, text: str = "", snapshot: Snapshot | None = None) -> Event:
    """The last event of a request."""
    return Event(request=active.number, finish_reason=reason, text=text, snapshot=snapshot, cached_tokens=active.cached)
