"""Engine that decodes many sequences at once, for servers, batch jobs and `generate`.

    engine = Engine(model, slots=8, tokenizer=tokenizer)
    number = engine.submit(Request(prompt="Once"))
    while engine.busy:
        for event in engine.step(): ...

A step reads a chunk of waiting prompts, so that a long prompt delays others little, and adds a token to every sequence
that is being decoded. Sequences start and end between steps; the tokens of a sequence do not depend on the others
(beyond rounding). A request that fails ends with an error, and no other notices. An engine is for one thread.
"""

from collections.abc import Iterator, Sequence
from itertools import count

import torch

from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.active_request import ActiveRequest, PromptProgress, prepare, samples_of
from exlstm.infer.decoding import RowDecoder, failure, last_event, state_event
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.reading import PromptReader
from exlstm.infer.requests import Event, Request
from exlstm.models.lm import LM
from exlstm.models.states.batching import grows
from exlstm.models.states.snapshot import Snapshot, evaluating


class Engine:
    """Decoder of one model for `slots` sequences at a time, beside as many prompts that are read; others wait.

    cache: where states of prompts are looked up and stored. tokenizer: for texts and stop strings; ids that it does not
    have are never sampled. prefill_tokens: bound of the prompt tokens read in a step while sequences are decoded, and
    of those of each prompt otherwise; it may be changed between steps.
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
        self._numbers = count()
        self._active: dict[int, ActiveRequest] = {}
        self._reader = PromptReader(model, self.vocab_size)
        self._ready: dict[ActiveRequest, Snapshot] = {}  # read, and waiting for a slot
        self._rows = RowDecoder(model, tokenizer, slots, self.vocab_size)

    @property
    def busy(self) -> bool:
        """True while requests are waiting or running."""
        return bool(self._reader.waiting or self._reader.reading or self._ready or self._rows.running)

    @property
    def waiting(self) -> int:
        """Number of prompts that have not started."""
        return len(self._reader.waiting)

    @property
    def waiting_tokens(self) -> int:
        """Number of prompt tokens that are still to be read."""
        return self._reader.tokens

    @property
    def running(self) -> int:
        """Number of requests that have started: prompts being read, and sequences that wait for a slot or have one."""
        return len(self._reader.reading) + len(self._ready) + len(self._rows.running)

    @property
    def decoding(self) -> int:
        """Number of sequences that have a slot."""
        return len(self._rows.running)

    @property
    def bytes_per_sequence(self) -> int | None:
        """Bytes of one sequence's state at any length; None if it grows, see `LM.state_bytes`."""
        return None if grows(self.model) else self.model.state_bytes()

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of all slots: allocated at the start, or those of now if states grow.

        A CPU that replays its steps has two sides of buffers. A prompt being read has a state of its own.
        """
        return self._rows.slots.nbytes

    def submit(self, request: Request) -> int:
        """Queues a request and returns its number, from 0 on.

        Raises ValueError for a request that cannot be done; others are not affected.
        """
        return self.submit_samples(request, [request.seed])[0]

    def submit_samples(self, request: Request, seeds: Sequence[int]) -> list[int]:
        """Queues several samples of one request, of which the prompt is read once; returns a number for each seed.

        A sample gets the tokens that the request with this seed would get. Logprobs of the prompt go to the first.
        Raises ValueError as `submit` does.
        """
        return [active.number for active in self.accept(request, seeds, "the prompt").samples]

    def accept(self, request: Request, seeds: Sequence[int], name: str) -> PromptProgress:
        """`submit_samples` of a prompt that error messages call `name`."""
        if not seeds:
            raise ValueError("there are no seeds; give one for each sample.")
        cache = self.cache if request.cache is None else request.cache
        if cache is not None:
            cache.belong_to(self.model)
        prompt = prepare(self.model, self.tokenizer, request, cache, name)
        prompt.samples = samples_of(prompt, self.tokenizer, [next(self._numbers) for _ in seeds], seeds, name)
        self._active |= {active.number: active for active in prompt.samples}
        self._reader.add(prompt)
        return prompt

    def cancel(self, number: int) -> bool:
        """Ends a request without an event and frees its slot. False if it is unknown or has ended."""
        active = self._active.pop(number, None)
        if active is None:
            return False
        if active.row is not None:
            self._rows.free(active)
        elif active in self._ready:
            del self._ready[active]
        else:
            prompt = active.prompt if active.tail is None else active.tail
            prompt.samples.remove(active)
            if not prompt.samples:
                self._reader.remove(prompt)
        return True

    def take_started(self) -> list[int]:
        """Numbers of the requests whose reading began since the last call."""
        started, self._reader.started = self._reader.started, []
        return [active.number for prompt in started for active in prompt.samples if active.tail is None]

    def run(self) -> Iterator[Event]:
        """Events of all steps until no request is left."""
        while self.busy:
            yield from self.step()

    @torch.inference_mode(False)
    @torch.no_grad()
    def warm_up(self) -> None:
        """Captures the steps of every number of sequences, and reads a prompt, so that no request waits for it.

        Raises ValueError while there are requests.
        """
        if self.busy:
            raise ValueError("there are requests in the engine; warm it up before the first one.")
        size = 1
        while size < 2 * self.size:
            prompt = [0] * (self.prefill_tokens if size == 1 else 1)
            self.submit_samples(Request(prompt=prompt, max_tokens=2), range(min(size, self.size)))
            list(self.run())
            size *= 2
        self._reader.started.clear()

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self) -> list[Event]:
        """Events of one step: a chunk of prompts is read, and every decoded sequence gets a token.

        Raises nothing because of a request: one that fails ends with an event.
        """
        with evaluating(self.model):
            events = self._read()
            free = self.size - len(self._rows.running)
            fresh = [(active, self._ready.pop(active)) for active in list(self._ready)[:free]]
            events += self._rows.step(fresh)
            for event in events:
                self._note_end(event)
            return events

    def _read(self) -> list[Event]:
        """Reads a chunk of prompts; sequences whose prompt is complete become ready."""
        events: list[Event] = []
        room = max(0, self.size - len(self._ready))
        result = self._reader.step(room, self.prefill_tokens, decoding=bool(self._rows.running or self._ready))
        for prompt, entries in result.scored:
            events.append(Event(request=prompt.samples[0].number, prompt_logprobs=tuple(entries)))
        for prompt, snapshot in result.complete:
            for active in prompt.samples:
                if snapshot is None or active.request.max_tokens == 0:
                    kept = snapshot if active.request.keep_snapshot else None
                    events.append(last_event(active, "length", snapshot=kept))
                elif active.tail is not None:
                    if (kept := self._rows.stored(active, snapshot)) is not None:
                        events.append(state_event(active, kept))
                else:
                    self._ready[active] = snapshot
        for prompt, error in result.failed:
            events += [failure(active, error) for active in prompt.samples]
        return events

    def _note_end(self, event: Event) -> None:
        """Forgets a request after its last event; one that has a tail is read on."""
        active = self._active.get(event.request)
        if active is None or (event.finish_reason is None and event.snapshot is None):
            return
        if event.finish_reason is not None and active.tail is not None:
            self._reader.add(active.tail)
        # what is read on for a cache alone has no event any more
        if event.snapshot is not None or not (active.request.keep_snapshot and (active.done or active.tail)):
            del self._active[event.request]
