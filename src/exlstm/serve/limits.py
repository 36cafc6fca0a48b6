"""Limits of a server: every number in a request has a bound, and every wait an end."""

from dataclasses import asdict, dataclass
from typing import Any

from exlstm.nn.fields import check_fields

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server. Sizes are in bytes, tokens or pieces, times in seconds.

    queue, queue_per_key: requests that wait, in all and of one key. queue_tokens: tokens of their prompts.
    sequences: prompts times choices of a request. default_tokens, default_chat_tokens: of an answer where a request
    names none. scored_tokens: of a request with echo and logprobs. inspected_tokens: whose gates are shown at a time.
    stall_seconds: without progress of a slow reader. keep_alive_comment: silence of a stream before a comment is sent;
    0 never sends one.
    """

    queue: int = 256
    queue_per_key: int = 64
    queue_tokens: int = MIB
    prompt_tokens: int = MIB
    sequences: int = 128
    choices: int = 16
    max_tokens: int = 32_768
    default_tokens: int = 16
    default_chat_tokens: int = 1_024
    stop_strings: int = 16
    stop_bytes: int = 256
    top_logprobs: int = 20
    logit_bias: int = 1_024
    scored_tokens: int = 262_144
    inspected_tokens: int = 4_096
    messages: int = 4_096
    body_bytes: int = 8 * MIB
    json_depth: int = 64
    headers: int = 64
    header_bytes: int = 16_384
    connections: int = 1_024
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    stall_seconds: float = 60.0
    keep_alive_seconds: int = 120
    keep_alive_comment: float = 20.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in asdict(self).items():
            if value < 0 or (value == 0 and name not in {"keep_alive_comment", "drain_seconds"}):
                raise ValueError(f"the limit {name} is {value}; it must be above 0.")

    def public(self) -> dict[str, Any]:
        """What a client may want to know."""
        return asdict(self)
