"""POST /v1/completions: prompts as text or ids, one or many, scored or continued."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from exlstm.infer.requests import Event, Request
from exlstm.serve.choices import ChoiceOptions, ChoiceProgress
from exlstm.serve.errors import bad_field
from exlstm.serve.formats import CompletionFormat
from exlstm.serve.jobs import Part
from exlstm.serve.plan import check_samples, check_top_logprobs, engine_settings, seeds_of, tokens_of
from exlstm.serve.replies import Reply
from exlstm.serve.schemas import CompletionBody, SamplingFields, grammar_spec
from exlstm.serve.service import Service, StartingPoint
from exlstm.serve.token_names import CompletionLogprobs


async def complete(service: Service, owner: str, body: CompletionBody) -> Reply:
    """The reply to a request for completions. Refusal, before anything is computed, for one that cannot be done."""
    service.check_ready()
    model, limits = service.check_model(body.model), service.limits
    settings = engine_settings(body, service.vocab_size, limits)
    prompts, best_of = prompts_of(body), body.best_of or body.n
    check_samples(len(prompts), body.n, best_of, limits)
    check_top_logprobs(body.logprobs, "logprobs", limits)
    if body.suffix:
        raise bad_field("suffix", "text cannot be put in between here; send the prompt alone.")
    if body.stream and best_of > body.n:
        raise bad_field("best_of", "the best choices are known at the end only; leave out stream or best_of.")
    if body.session is not None and len(prompts) * best_of > 1:
        raise bad_field("session", "a turn of a session has one prompt and one choice; send those.")
    start = await service.start_of(owner, body)
    try:
        ids = [await ids_of(service, body, start, prompt) for prompt in prompts]
        settings["max_tokens"] = tokens_of(body.max_tokens, limits.default_tokens, limits)
        settings["logprobs"] = 0 if body.logprobs is None and best_of > body.n else body.logprobs
        settings |= scoring(body, ids, limits.scored_tokens)
        if body.grammar is not None:
            settings["constraint"] = await service.constraint(grammar_spec(body.grammar))
        seed, seeds = seeds_of(body, best_of)
        parts = parts_of(service, owner, start, ids, seeds, settings)
        form = CompletionFormat(service.heading("cmpl", model))
        progress = [
            ChoiceProgress(index, options(service, owner, body, start, ids[index // best_of]))
            for index in range(len(ids) * best_of)
        ]
        return reply_of(
            service, owner, body, start, parts, progress, form, seed, best=body.n if best_of > body.n else None
        )
    except BaseException:
        service.leave(start)
        raise


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """The prompts of a request, each a text or ids."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    several: list[Any] = [prompt] if not prompt or isinstance(prompt[0], int) else list(prompt)
    return several


async def ids_of(service: Service, body: CompletionBody, start: StartingPoint, prompt: str | list[int]) -> Tensor:
    """Ids of a prompt, [T]; a text begins a document unless it goes on from a state."""
    boundary = body.add_special_tokens and start.snapshot is None
    found = await service.prompts.ids(prompt, "prompt", boundary=boundary)
    if len(found) == 0 and start.snapshot is None:
        raise bad_field("prompt", "the prompt has no tokens; send at least one, or leave it out to begin a document.")
    return found


def scoring(body: CompletionBody, ids: Sequence[Tensor], most: int) -> dict[str, Any]:
    """Settings for the logprobs of prompts, which echo asks for."""
    if not body.echo or body.logprobs is None:
        return {}
    if body.logprobs_from > min(map(len, ids)):
        raise bad_field("logprobs_from", f"logprobs_from is {body.logprobs_from}, behind the end of a prompt.")
    total = sum(len(each) - body.logprobs_from for each in ids)
    if total > most:
        raise bad_field("prompt", f"{total:,} tokens are to be scored, and a request may have {most:,}; send fewer.")
    return {"prompt_logprobs": body.logprobs, "logprobs_from": body.logprobs_from}


def options(service: Service, owner: str, body: CompletionBody, start: StartingPoint, ids: Tensor) -> ChoiceOptions:
    """What is wanted of each choice of a prompt."""
    logprobs = None
    if body.logprobs is not None:
        logprobs = CompletionLogprobs(
            service.token_names, as_ids=body.return_tokens_as_token_ids, with_ids=body.return_token_ids
        )
    keeps = body.keep_state or start.lease is not None
    return ChoiceOptions(
        tokenizer=service.tokenizer,
        logprobs=logprobs,
        echo=ids.tolist() if body.echo else None,
        echo_from=body.logprobs_from,
        token_ids=body.return_token_ids,
        keep=keeper(service, owner, start, ids) if keeps else None,
    )


def parts_of(
    service: Service,
    owner: str,
    start: StartingPoint,
    ids: Sequence[Tensor],
    seeds: Sequence[int],
    settings: dict[str, Any],
) -> list[Part]:
    """The prompts as parts of a job."""
    cache = service.caches[owner]
    return [
        Part(
            request=Request(prompt=each, after=start.snapshot, seed=seeds[0], cache=cache, **settings),
            tokens=len(each),
            seeds=seeds,
            first=index * len(seeds),
        )
        for index, each in enumerate(ids)
    ]


def keeper(service: Service, owner: str, start: StartingPoint, ids: Tensor) -> Callable[[Event, str], dict[str, Any]]:
    """What keeps the states of the choices of a prompt, and says so in the answer."""

    def keep(event: Event, reason: str) -> dict[str, Any]:
        info = service.keep(owner, event, start, ids, reason)
        if info is None:
            return {"id": None, "error": "there is no room for the state; delete others, or unpin them."}
        told = ("id", "parent", "tokens", "bytes", "expires")
        return {name: getattr(info, name) for name in told}

    return keep


def reply_of(
    service: Service,
    owner: str,
    body: SamplingFields,
    start: StartingPoint,
    parts: Sequence[Part],
    progress: Sequence[ChoiceProgress],
    form: Any,
    seed: int,
    *,
    best: int | None = None,
    change: Any = None,
) -> Reply:
    """The reply of a job that the engine has been given."""
    job = service.new_job(owner, parts, body.timeout)
    streaming = body.stream_options
    service.submit(job)
    extra: dict[str, Any] = {"seed": seed}
    if body.certificate:
        extra["certificate"] = service.certificate(body, seed)
    return Reply(
        job=job,
        progress=progress,
        format=form,
        limits=service.limits,
        stream=body.stream,
        cancel=service.cancel,
        finish=partial(service.finish, start),
        settle=partial(service.settle, start),
        best=best,
        extra=extra,
        change=change,
        usage_at_end=form.end == b"" or (streaming is not None and streaming.include_usage),
        usage_always=streaming is not None and streaming.continuous_usage_stats,
    )
