"""Generation: prompts in, completions out, all at once or as they come.

    for completion in generate(model, ["Once", "Twice"], tokenizer=tokenizer, max_tokens=50): print(completion.text)

Prompts are read in chunks, then an `Engine` adds a token at a time. Memory depends on how many sequences are decoded
at a time, not on their lengths (as far as the model's state does not grow). Prompts of different lengths share a batch,
and each gets the tokens that it would get alone.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.engine import Engine
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.infer.requests import Completion, Event, Request, completion_of
from exlstm.infer.sampling import SamplingConfig
from exlstm.models.lm import LM
from exlstm.models.states.snapshot import Snapshot

Prompt = str | Sequence[int] | Tensor | Snapshot | Request


def generate(
    model: LM,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 256,
    sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    seeds: Sequence[int] | None = None,
    stop_tokens: Collection[int] = (),
    stop: str | Sequence[str] = (),
    logprobs: int | None = None,
    keep_snapshots: bool = False,
    tokenizer: Tokenizer | None = None,
    cache: PrefixCache | None = None,
    slots: int = 16,
) -> list[Completion]:
    """Completions of the prompts, in their order.

    prompts: each a text (needs the tokenizer), ids, the snapshot of one row to go on from, or a `Request` with its own
        settings: the arguments from max_tokens to keep_snapshots are for the others.
    sampling: one for all, or one per prompt; None samples from the model's own distribution.
    seeds: one per prompt; None: 0, 1, 2, ... A prompt with its seed gets the same tokens in any batch.
    slots: sequences decoded at a time. The other settings are those of a `Request`.
    A sequence whose logits are NaN ends with the finish_reason "error". Raises ValueError, before anything is computed,
    for a prompt that cannot be read and settings that cannot be.
    """
    template = Request(
        max_tokens=max_tokens, stop_tokens=stop_tokens, stop=stop, logprobs=logprobs, keep_snapshot=keep_snapshots
    )
    requests = requests_of(prompts, template, sampling, seeds)
    engine, lengths = _submitted(model, requests, tokenizer, cache, slots)
    events: list[list[Event]] = [[] for _ in requests]
    for event in engine.run():
        events[event.request].append(event)
    return [
        completion_of(
            found, prompt_tokens=length, has_text=tokenizer is not None, logprobs=request.logprobs is not None
        )
        for request, found, length in zip(requests, events, lengths, strict=True)
    ]


def stream(
    model: LM,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 256,
    sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    seeds: Sequence[int] | None = None,
    stop_tokens: Collection[int] = (),
    stop: str | Sequence[str] = (),
    logprobs: int | None = None,
    keep_snapshots: bool = False,
    tokenizer: Tokenizer | None = None,
    cache: PrefixCache | None = None,
    slots: int = 16,
) -> Iterator[Event]:
    """Events of `generate` as they happen; their `request` is the number of the prompt."""
    template = Request(
        max_tokens=max_tokens, stop_tokens=stop_tokens, stop=stop, logprobs=logprobs, keep_snapshot=keep_snapshots
    )
    requests = requests_of(prompts, template, sampling, seeds)
    return _submitted(model, requests, tokenizer, cache, slots)[0].run()


def requests_of(
    prompts: Sequence[Prompt],
    template: Request,
    sampling: SamplingConfig | Sequence[SamplingConfig] | None,
    seeds: Sequence[int] | None,
) -> list[Request]:
    """The template with each prompt, its sampling and its seed. ValueError for settings that are not one per prompt."""
    if isinstance(prompts, (str, Snapshot, Request)) or any(isinstance(prompt, int) for prompt in prompts):
        raise ValueError("prompts must be a list with one entry per prompt; put a single prompt into a list.")
    configs = sampling if isinstance(sampling, Sequence) else [sampling or SamplingConfig()] * len(prompts)
    seeds = range(len(prompts)) if seeds is None else seeds
    for what, given in (("seeds", seeds), ("sampling settings", configs)):
        if len(given) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts but {len(given)} {what}; give one of them per prompt.")
    requests = []
    for prompt, config, seed in zip(prompts, configs, seeds, strict=True):
        if isinstance(prompt, Request):
            requests.append(prompt)
        elif isinstance(prompt, Snapshot):
            requests.append(replace(template, after=prompt, sampling=config, seed=seed))
        else:
            requests.append(replace(template, prompt=prompt, sampling=config, seed=seed))
    return requests


def _submitted(
    model: LM, requests: Sequence[Request], tokenizer: Tokenizer | None, cache: PrefixCache | None, slots: int
) -> tuple[Engine, list[int]]:
    """An engine with these requests, and the number of tokens of each prompt."""
    if slots < 1:
        raise ValueError(f"slots is {slots}; at least 1 sequence must be decoded at a time.")
    engine = Engine(model, slots=min(slots, max(1, len(requests))), cache=cache, tokenizer=tokenizer)
    prompts = [engine.accept(request, [request.seed], f"prompt {number}") for number, request in enumerate(requests)]
    return engine, [len(prompt.tokens_T) for prompt in prompts]
