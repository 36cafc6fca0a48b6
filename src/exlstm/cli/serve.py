"""`exlstm serve`: a model behind OpenAI's interface."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from exlstm.cli.parse import checkpoint_of
from exlstm.models.weight_formats import WeightFormat

AnswerPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ANSWER")]
ModelPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Options of `exlstm serve`."""

    model: ModelPath  # folder of a run, or folder or file of a model in any layout
    host: str = "127.0.0.1"  # address to listen at; another than this machine's own needs keys, or --no-auth
    port: int = 8000  # 0 takes a free one
    served_name: tuple[str, ...] = ()  # names of the model in requests; left out: that of its folder
    api_key_file: str | None = None  # a line name:key for each user; only its owner may read it
    no_auth: bool = False  # serve another host than this machine's without a key
    weights: WeightFormat = "as-saved"  # in another precision; int8 and int4 decode faster on a CPU
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    checkpoint: str = "best"  # of a run: best, last, or the number of a step
    tokenizer: str | None = None  # "bytes" or a tokenizer.json; left out: the one beside the model
    chat_template: str | None = None  # file of a template, or "turns"; left out: the model's own, if it has one
    state: tuple[str, ...] = ()  # NAME=FILE: a state to go on from as the model MODEL:NAME; NAME!=FILE keeps it here
    slots: int | None = None  # sequences decoded at a time; left out: what --state-memory allows, 64 at most
    state_memory: int = 1_024  # MiB for states that are kept, and as many for slots
    state_disk: int = 10_240  # MiB for states on disk
    state_folder: str | None = None  # where states outlive the server; left out: they do not
    max_states: int = 10_000  # states that are kept
    state_hours: float = 24.0  # after which a state ends that was not used
    cache_memory: int = 256  # MiB for beginnings of prompts, shared among the keys
    prefill_tokens: int = 256  # tokens of prompts that are read between two tokens of the others
    queue: int = 256  # requests that wait; more are told to come again
    queue_tokens: int = 1_048_576  # tokens of their prompts
    max_prompt_tokens: int = 1_048_576
    max_tokens: int = 32_768  # of an answer, at most
    default_max_tokens: int = 1_024  # of a chat's answer that names none
    request_timeout: float = 600.0  # seconds until a request is given up
    drain_timeout: float = 30.0  # seconds in which running requests complete after SIGTERM
    keep_alive_comment: float = 20.0  # seconds of silence of a stream before a comment; 0 sends none
    cors_origin: tuple[str, ...] = ()  # pages of these origins may send requests
    playground: bool = True  # the page at /
    metrics_public: bool = False  # /metrics without a key
    log_requests: bool = False  # a line of JSON on standard error for each request, without its content

    def __post_init__(self) -> None:
        checkpoint_of(self.checkpoint)
        if not 0 <= self.port < 65_536:
            raise ValueError(f"--port is {self.port}; a port is a number from 0 to 65535.")
        if self.host not in ("127.0.0.1", "localhost", "::1") and self.api_key_file is None and not self.no_auth:
            raise ValueError(
                f"--host {self.host} is open to others, and there is no key; add --api-key-file FILE, or --no-auth."
            )


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Options of `exlstm replay`."""

    answer: AnswerPath  # file with an answer that was asked for with certificate: true
    model: str  # folder of a run, or folder or file of a model in any layout
    checkpoint: str = "best"  # of a run: best, last, or the number of a step
    tokenizer: str | None = None  # "bytes" or a tokenizer.json; left out: the one beside the model
    chat_template: str | None = None  # as the server had it
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...


def serve(options: Serve) -> int:
    """`exlstm serve`."""
    with serving_installed():
        from exlstm.serve.main import run
    return run(options)


def replay(options: Replay) -> int:
    """`exlstm replay`."""
    with serving_installed():
        from exlstm.serve.main import replay as run_replay
    server = Serve(
        model=options.model,
        checkpoint=options.checkpoint,
        tokenizer=options.tokenizer,
        chat_template=options.chat_template,
        device=options.device,
    )
    return run_replay(Path(options.answer), server)


@contextmanager
def serving_installed() -> Iterator[None]:
    """ValueError that says what to install, if an import inside the `with` block fails for it."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"exlstm serve needs {error.name}, which is not installed; run: pip install 'exlstm[serve]'"
        ) from None
