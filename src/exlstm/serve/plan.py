"""Plans of requests: fields of a body -> settings of the engine, within the limits of the server."""

import secrets
from collections.abc import Sequence
from typing import Any

from exlstm.infer.sampling import SamplingConfig
from exlstm.serve.errors import bad_field
from exlstm.serve.limits import Limits
from exlstm.serve.schemas import REFUSED, SamplingFields


def check_fields_of(body: SamplingFields) -> None:
    """Refusal of a field that would change the answer and is not supported."""
    for name, value in (body.model_extra or {}).items():
        if name in REFUSED and value:
            raise bad_field(name, f"{name} is not supported; {REFUSED[name]}.")


def check_samples(prompts: int, n: int, best_of: int, limits: Limits) -> None:
    """Refusal of too many choices, before anything is allocated for them."""
    if max(n, best_of) > limits.choices:
        raise bad_field("n" if n >= best_of else "best_of", f"{max(n, best_of)} choices; ask for {limits.choices}.")
    if best_of < n:
        raise bad_field("best_of", f"best_of is {best_of} and n is {n}; the best n need at least as many.")
    if prompts * best_of > limits.sequences:
        raise bad_field("prompt", f"{prompts} prompts of {best_of} choices are above {limits.sequences} sequences.")


def sampling_of(body: SamplingFields) -> SamplingConfig:
    """How tokens are sampled. A top_p of 0 is greedy."""
    greedy = body.temperature == 0.0 or body.top_p == 0.0
    return SamplingConfig(
        temperature=0.0 if greedy else body.temperature,
        top_p=body.top_p or 1.0,
        top_k=body.top_k if body.top_k > 0 else None,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
    )


def stops_of(body: SamplingFields, limits: Limits) -> tuple[str, ...]:
    """Texts at which the answer ends. Refusal of too many and of long ones."""
    found = [stop for stop in ([body.stop] if isinstance(body.stop, str) else body.stop) if stop]
    if len(found) > limits.stop_strings:
        raise bad_field("stop", f"there are {len(found)} stop strings; send {limits.stop_strings} or fewer.")
    if any(len(stop.encode()) > limits.stop_bytes for stop in found):
        raise bad_field("stop", f"a stop string is longer than {limits.stop_bytes} bytes; shorten it.")
    return tuple(found)


def bias_of(body: SamplingFields, vocab_size: int, limits: Limits) -> dict[int, float]:
    """What is added to logits, by token. Refusal of too many tokens, and of those that there are not."""
    if len(body.logit_bias) > limits.logit_bias:
        raise bad_field("logit_bias", f"there are {len(body.logit_bias)} tokens; send {limits.logit_bias} or fewer.")
    for name in body.logit_bias:
        if not (name.isascii() and name.isdecimal() and len(name) < 12 and int(name) < vocab_size):
            raise bad_field("logit_bias", f"{name[:20]!r} is no token of the vocabulary of {vocab_size}; send ids.")
    return {int(name): value for name, value in body.logit_bias.items()}


def tokens_of(given: int | None, default: int, limits: Limits, field: str = "max_tokens") -> int:
    """Tokens of an answer. Refusal above the limit: cutting it would be silent."""
    count = default if given is None else given
    if count > limits.max_tokens:
        raise bad_field(field, f"{field} is {count:,}, and this server samples {limits.max_tokens:,} at most.")
    return count


def check_top_logprobs(count: int | None, field: str, limits: Limits) -> None:
    """Refusal of more alternatives than the limit."""
    if count is not None and count > limits.top_logprobs:
        raise bad_field(field, f"{field} is {count}; ask for {limits.top_logprobs} or fewer.")


def seeds_of(body: SamplingFields, count: int) -> tuple[int, Sequence[int]]:
    """The seed of a request, a new one if it names none, and those of its samples; the first is the seed itself."""
    seed = secrets.randbits(48) if body.seed is None else body.seed
    return seed, [seed, *((seed + index * 0x9E3779B97F4A7C15) % 2**64 for index in range(1, count))]


def engine_settings(body: SamplingFields, vocab_size: int, limits: Limits) -> dict[str, Any]:
    """Settings of `Request` that completions and chat share. Refusal of fields that are not supported."""
    check_fields_of(body)
    if body.stream_options is not None and not body.stream:
        raise bad_field("stream_options", "stream_options are for streams; send stream: true as well.")
    if body.certificate and (body.stream or body.state is not None or body.session is not None):
        raise bad_field("certificate", "a certificate is for a whole answer from its beginning; leave out the rest.")
    if body.session is not None and body.state is not None:
        raise bad_field("state", "a session goes on from its own state; send session or state.")
    if body.if_state is not None and body.session is None:
        raise bad_field("if_state", "if_state is for sessions; send session as well.")
    if wrong := [token for token in body.stop_token_ids if token >= vocab_size]:
        raise bad_field("stop_token_ids", f"token {wrong[0]} is outside the vocabulary of {vocab_size}.")
    return {
        "sampling": sampling_of(body),
        "stop": stops_of(body, limits),
        "stop_tokens": frozenset(body.stop_token_ids),
        "stop_at_boundary": not body.ignore_eos,
        "min_tokens": body.min_tokens,
        "logit_bias": bias_of(body, vocab_size, limits),
        "keep_snapshot": body.keep_state or body.session is not None,
    }
