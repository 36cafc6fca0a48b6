"""Decoding of sequences: a token for each of them per step, and why they end.

A failure ends one sequence: of its random numbers none is drawn twice, and no other sees that it was there.

B sequences being decoded  M of them  C classes (vocabulary)  V of these, those of the tokenizer
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.active_request import ActiveRequest, PromptProgress, TurningPoint
from exlstm.infer.logprobs import chosen_and_top
from exlstm.infer.requests import Event, FinishReason, Request, TopLogprobs
from exlstm.infer.sampling import draws_of, sample_rows
from exlstm.infer.slots import slots_of
from exlstm.models.lm import LM
from exlstm.models.states.fingerprint import weights_of
from exlstm.models.states.snapshot import Snapshot

NOT_FINITE = "the model's logits are NaN or infinite, so no token can be chosen; check its weights."
NOTHING_ALLOWED = "no token is allowed here by the bias or the constraint of the request; change them."
FAILED = "the request could not be computed; others were not affected."


class RowDecoder:
    """Sequences in the rows of the slots, in the order of `running`."""

    def __init__(self, model: LM, tokenizer: Tokenizer | None, size: int, vocab_size: int) -> None:
        self.model, self.tokenizer, self.vocab_size = model, tokenizer, vocab_size
        with torch.inference_mode(False), torch.no_grad():
            self.slots = slots_of(model, size)
        self.running: list[ActiveRequest] = []

    def add(self, active: ActiveRequest, snapshot: Snapshot) -> None:
        """Puts a sequence, of which the prompt was read, in the next row."""
        active.watch(snapshot)
        self.slots.write(len(self.running), snapshot.state)
        active.row = len(self.running)
        self.running.append(active)

    def free(self, active: ActiveRequest) -> None:
        """Frees the row of a sequence; the last row moves to its place."""
        row, last = active.row, len(self.running) - 1
        assert row is not None
        if row < last:
            self.slots.move(last, row)
            self.running[row] = self.running[last]
            self.running[row].row = row
        self.running.pop()
        self.slots.free(last)
        active.row = None

    def step(self, fresh: Sequence[tuple[ActiveRequest, Snapshot]]) -> list[Event]:
        """A token for every sequence that is decoded, and for those that begin now, whose logits are known."""
        events: list[Event] = []
        logits = self.next_logits(events)
        for active, snapshot in fresh:
            self.add(active, snapshot)
            logits.append(snapshot.logits_BC)
        if not self.running:
            return events
        logits_BC = logits[0] if len(logits) == 1 else torch.cat(logits)
        ended: list[ActiveRequest] = []
        self.deliver_states(logits_BC, events, ended)
        tokens = self.sample(logits_BC, events, ended)
        scored = self.score(logits_BC, tokens)
        for row, active in enumerate(self.running):
            if active.done or tokens[row] is None:
                continue
            try:
                event = self.event(active, tokens[row], logits_BC[row : row + 1], scored.get(row))
            except Exception as error:
                event, active.done = failure(active, error), False
            events.append(event)
            if event.finish_reason is not None and not active.done:
                ended.append(active)
        for active in ended:
            self.free(active)
        return events

    def next_logits(self, events: list[Event]) -> list[Tensor]:
        """The logits after the last tokens, [B, C], in a list; empty if nothing is decoded.

        A sequence whose step fails ends; the states of the others are as if it had not been there.
        """
        if not self.running:
            return []
        tokens = [active.sampled[-1] for active in self.running]
        try:
            return [self.slots.step(tokens)]
        except Exception:
            found, failed = [], []
            for active, token in zip(self.running, tokens, strict=True):
                assert active.row is not None
                try:
                    token_11 = torch.tensor([[token]], device=self.model.embed.weight.device)
                    logits_11C, state = self.model(token_11, self.slots.read(active.row))
                    self.slots.write(active.row, state)
                    found.append(logits_11C[:, 0])
                except Exception as error:
                    failed.append((active, error))
            # rows move when one is freed, and their logits with them
            logits = dict(zip([a for a in self.running if a not in [f for f, _ in failed]], found, strict=True))
            for active, cause in failed:
                events.append(failure(active, cause))
                self.free(active)
            return [torch.cat([logits[active] for active in self.running])] if self.running else []

    def deliver_states(self, logits_BC: Tensor, events: list[Event], ended: list[ActiveRequest]) -> None:
        """Snapshots of sequences that ended a step ago: their last token has now been read."""
        for row, active in enumerate(self.running):
            if active.done:
                snapshot = self.snapshot(active, logits_BC[row : row + 1], len(active.sampled))
                if (kept := self.stored(active, snapshot)) is not None:
                    events.append(state_event(active, kept))
                ended.append(active)

    def sample(self, logits_BC: Tensor, events: list[Event], ended: list[ActiveRequest]) -> list[int | None]:
        """The next token of every sequence; None for those that end here with an error, or have ended."""
        known_BV = logits_BC if self.vocab_size == logits_BC.shape[1] else logits_BC[:, : self.vocab_size]
        rows = [row for row, active in enumerate(self.running) if not active.done]
        adjusted: dict[int, Tensor] = {}
        tokens: list[int | None] = [None] * len(self.running)
        for row in list(rows):
            active = self.running[row]
            try:
                changed_V = adjusted_logits(known_BV[row], active)
            except Exception as error:
                events.append(failure(active, error))
                ended.append(active)
                rows.remove(row)
                continue
            if changed_V is not None:
                adjusted[row] = changed_V
        if not rows:
            return tokens
        if adjusted:
            known_BV = torch.stack([adjusted.get(row, known_BV[row]) for row in range(len(known_BV))])
        configs = [self.running[row].request.sampling for row in rows]
        draws = draws_of(configs, [self.running[row].generator for row in rows])
        for row, token in zip(rows, self.tokens_of(known_BV, rows, draws, events, ended), strict=True):
            if token is None and self.running[row] not in ended:
                masked = row in adjusted and bool(logits_BC[row].amax().isfinite())
                events.append(last_event(self.running[row], "error", error=NOTHING_ALLOWED if masked else NOT_FINITE))
                ended.append(self.running[row])
            tokens[row] = token
        return tokens

    def tokens_of(
        self,
        logits_BC: Tensor,
        rows: Sequence[int],
        draws: Sequence[float],
        events: list[Event],
        ended: list[ActiveRequest],
    ) -> list[int | None]:
        """Sampled tokens of these rows; row by row if that fails for all."""
        try:
            chosen_MC = logits_BC if len(rows) == len(logits_BC) else logits_BC[list(rows)]
            return sample_rows(
                chosen_MC,
                [self.running[row].request.sampling for row in rows],
                draws,
                [self.seen(row) for row in rows],
            )
        except Exception as error:
            if len(rows) == 1:
                events.append(failure(self.running[rows[0]], error))
                ended.append(self.running[rows[0]])
                return [None]
            return [
                self.tokens_of(logits_BC, [row], [draw], events, ended)[0]
                for row, draw in zip(rows, draws, strict=True)
            ]

    def seen(self, row: int) -> Tensor | None:
        """Tokens that occurred in a sequence, as far as there are such tokens."""
        seen_C = self.running[row].seen_C
        return None if seen_C is None else seen_C[: self.vocab_size]

    def score(self, logits_BC: Tensor, tokens: Sequence[int | None]) -> dict[int, tuple[float, TopLogprobs]]:
        """Logprobs of all sequences that ask for them, by row."""
        asked = [
            (row, token, active.request.logprobs)
            for row, (token, active) in enumerate(zip(tokens, self.running, strict=True))
            if token is not None and active.request.logprobs is not None
        ]
        if not asked:
            return {}
        rows, chosen, counts = (list(each) for each in zip(*asked, strict=True))
        return dict(zip(rows, chosen_and_top(logits_BC[rows], chosen, counts, self.vocab_size), strict=True))

    def event(
        self, active: ActiveRequest, token: int | None, logits_1C: Tensor, scored: tuple[float, TopLogprobs] | None
    ) -> Event:
        """What a token means for its sequence."""
        assert token is not None
        request = active.request
        logprob, top = scored or (None, None)
        if token in active.stop_tokens:
            snapshot = None
            if active.wants_snapshot:
                snapshot = self.stored(active, self.snapshot(active, logits_1C, len(active.sampled)))
            end = last_event(active, "stop", text=active.rest(), snapshot=snapshot)
            return replace(end, stop=token, logprob=logprob, top_logprobs=top)
        if request.constraint is not None:
            request.constraint.accept(token)
        before = active.turning
        text, stop = active.take(token)
        ends = request.constraint is not None and request.constraint.complete
        if stop is None and not ends and len(active.sampled) < request.max_tokens:
            self.keep_turning_point(active, before, text, logits_1C)
            return Event(request=active.number, token=token, text=text, logprob=logprob, top_logprobs=top)
        if stop is None and active.text is not None:
            rest, stop = active.text.finish()
            text += rest
        reason: FinishReason = "length" if stop is None and not ends else "stop"
        event = replace(
            last_event(active, reason, text=text), token=token, stop=stop, logprob=logprob, top_logprobs=top
        )
        if active.wants_snapshot and stop is None:
            active.done = True  # its row stays until the token has been read
        elif active.wants_snapshot:
            active.tail = self.tail(active, before, text, logits_1C)
        return event

    def keep_turning_point(
        self, active: ActiveRequest, before: TurningPoint | None, text: str, logits_1C: Tensor
    ) -> None:
        """Remembers the state from before text was held back, as long as it is."""
        if not (active.request.keep_snapshot and active.request.stop_strings) or active.text is None:
            return
        if not active.text.holds:
            active.turning = None
        elif before is None:
            first = len(active.sampled) - 1
            active.turning = TurningPoint(self.snapshot(active, logits_1C, first), first, text)
        else:
            before.said += text

    def tail(self, active: ActiveRequest, before: TurningPoint | None, text: str, logits_1C: Tensor) -> PromptProgress:
        """What is to be read for the state after the text before a stop string, from where that is sure."""
        first = len(active.sampled) - 1
        turning = before or TurningPoint(self.snapshot(active, logits_1C, first), first)
        assert self.tokenizer is not None
        said = (turning.said + text).encode()
        tokens: list[int] = []
        for token in active.sampled[turning.first :]:
            if len(self.tokenizer.decode([*tokens, token])) > len(said):
                break
            tokens.append(token)
        if self.tokenizer.decode(tokens) != said:
            tokens = self.tokenizer.encode(said)
        request = Request(after=turning.snapshot, max_tokens=0, keep_snapshot=True)
        active.sampled[turning.first :] = tokens
        return PromptProgress(request, torch.tensor(tokens, dtype=torch.long), None, samples=[active])

    def snapshot(self, active: ActiveRequest, logits_1C: Tensor, sampled: int) -> Snapshot:
        """The snapshot of a row, which has read so many tokens of the completion."""
        assert active.seen_C is not None
        assert active.row is not None
        seen_1C = active.seen_C[None].clone()
        for token in active.sampled[sampled:]:
            seen_1C[0, token] = token in active.sampled[:sampled] or self.seen_before(active, token)
        return Snapshot(
            state=self.slots.read(active.row),
            logits_BC=logits_1C.clone(),
            seen_BC=seen_1C,
            counts=(active.count + sampled,),
            weights=weights_of(self.model),
        )

    def seen_before(self, active: ActiveRequest, token: int) -> bool:
        """True if a token occurred before the completion."""
        after = active.request.after
        return bool((active.prompt.tokens_T == token).any()) or (after is not None and bool(after.seen_BC[0, token]))

    def stored(self, active: ActiveRequest, snapshot: Snapshot) -> Snapshot | None:
        """Stores the snapshot after a completion where that was asked for; returns it if it was to be kept."""
        request, cache = active.request, active.prompt.cache
        if cache is not None and request.cache_completion and request.after is None:
            cache.keep([*active.prompt.tokens_T.tolist(), *active.sampled], snapshot)
        return snapshot if request.keep_snapshot else None


def adjusted_logits(logits_C: Tensor, active: ActiveRequest) -> Tensor | None:
    """Logits after bias, penalties of the completion, and what is not allowed; None if nothing changes."""
    request, sampling = active.request, active.request.sampling
    changes: dict[int, float] = dict(request.logit_bias)
    for token, times in active.times.items():
        penalty = times * sampling.frequency_penalty + sampling.presence_penalty
        changes[token] = changes.get(token, 0.0) - penalty
    allowed_C = None if request.constraint is None else request.constraint.allowed()
    stops = [] if active.may_stop else [token for token in active.stop_tokens if token < len(logits_C)]
    if not changes and allowed_C is None and not stops:
        return None
    found_C = logits_C.clone()
    if changes:
        ids = torch.tensor(list(changes), device=logits_C.device)
        found_C[ids] += torch.tensor(list(changes.values()), dtype=logits_C.dtype, device=logits_C.device)
    if allowed_C is not None:
        found_C.masked_fill_(~allowed_C.to(logits_C.device), -torch.inf)
    if stops:
        found_C[stops] = -torch.inf
    return found_C


def last_event(
    active: ActiveRequest,
    reason: FinishReason,
    *,
    text: str = "",
    snapshot: Snapshot | None = None,
    error: str | None = None,
) -> Event:
    """The event that ends a sequence."""
    return Event(
        request=active.number,
        finish_reason=reason,
        text=text,
        snapshot=snapshot,
        error=error,
        cached_tokens=active.prompt.cached,
        completion=() if snapshot is None else tuple(active.sampled),
    )


def state_event(active: ActiveRequest, snapshot: Snapshot) -> Event:
    """The event after the end of a sequence, with its snapshot."""
    return Event(request=active.number, snapshot=snapshot, completion=tuple(active.sampled))


def failure(active: ActiveRequest, cause: Exception) -> Event:
    """The event that ends a sequence for an exception; its text is for logs, not for users."""
    return replace(last_event(active, "error", error=FAILED), cause=cause)
