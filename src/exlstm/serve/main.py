"""From options to a server that runs: the model loaded, everything warm, and what a user wants to know printed."""

import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from exlstm import __version__
from exlstm.data.model_tokenizer import tokenizer_digest, tokenizer_of
from exlstm.data.tokenizer import Tokenizer
from exlstm.infer.engine import Engine
from exlstm.infer.prefix_cache import PrefixCache
from exlstm.models.lm import LM
from exlstm.models.locate import ModelOnDisk, locate
from exlstm.models.states.batching import grows
from exlstm.models.states.file import load_state
from exlstm.models.states.fingerprint import weights_of
from exlstm.runtime.machine import pick_device
from exlstm.serve.app import OPEN_PATHS, app_of
from exlstm.serve.guard import LOOPBACK, Guard, log_line
from exlstm.serve.keys import Keys, keys_in
from exlstm.serve.limits import MIB, Limits
from exlstm.serve.metrics import Metrics
from exlstm.serve.pages import static_files
from exlstm.serve.replay import certified, check_owner_of, differences, repeated
from exlstm.serve.server import Serving, bound
from exlstm.serve.service import Service
from exlstm.serve.sessions import Sessions
from exlstm.serve.state_store import StateStore
from exlstm.serve.templates import ChatTemplate

MOST_SLOTS = 64
SWITCH_SECONDS = 0.0005  # for which a thread may keep the interpreter from the engine's

Options = Any  # `exlstm.cli.serve.Serve`, whose floor is above this one


def run(options: Options) -> int:
    """Serves a model until it is told to stop; returns the exit code."""
    keys = Keys({} if options.api_key_file is None else keys_in(options.api_key_file))
    # bound before the model is loaded: an address in use is told at once
    with bound(options.host, options.port) as sock:
        began = time.perf_counter()
        service = loaded(options, keys)
        app = guarded(service, options, keys)
        address = f"http://{options.host}:{sock.getsockname()[1]}"

        def ready() -> None:
            say(f"ready after {time.perf_counter() - began:.1f} s")
            say(banner(service, address, keys))

        sys.setswitchinterval(SWITCH_SECONDS)
        gc.collect()
        gc.freeze()  # collections then do not walk the model
        return Serving(service=service, app=app, sock=sock, ready=ready).run()


def loaded(options: Options, keys: Keys) -> Service:
    """The service of the model that the options name, warm."""
    source = locate(options.model, options.checkpoint)
    tokenizer, device = tokenizer_of(source, options.tokenizer), pick_device(options.device)
    say(f"loading {source.weights}")
    model = source.load(options.weights, device)
    service = service_of(model, tokenizer, source, options, keys.owners)
    say("warming up: recording a step for every number of sequences")
    service.engine.warm_up()
    return service


def replay(answer: Path, options: Options) -> int:
    """Repeats a certified answer, and prints whether it is the same; the exit code is 1 if not."""
    told = certified(answer)
    source = locate(options.model, options.checkpoint)
    model = source.load(told["certificate"]["weights"], pick_device(options.device))
    service = service_of(model, tokenizer_of(source, options.tokenizer), source, options, [""])
    check_owner_of(told, service)
    found = differences(told, asyncio.run(repeated(service, told)))
    print("\n".join(found) or "the same answer, to the last character")
    return 1 if found else 0


def service_of(
    model: LM, tokenizer: Tokenizer, source: ModelOnDisk, options: Options, owners: Sequence[str]
) -> Service:
    """The service of a model with its engine, states and caches."""
    limits = limits_of(options)
    slots = options.slots or slots_in(model, options.state_memory * MIB)
    engine = Engine(model, slots=slots, tokenizer=tokenizer, prefill_tokens=options.prefill_tokens)
    folder = None if options.state_folder is None else Path(options.state_folder)
    digest = tokenizer_digest(tokenizer)
    store = StateStore(
        model,
        memory_bytes=options.state_memory * MIB,
        disk_bytes=options.state_disk * MIB,
        folder=None if folder is None else folder / "states",
        max_states=options.max_states,
        idle_seconds=options.state_hours * 3600,
        tokenizer_digest=digest,
    )
    preloaded = [load_named_state(text, store, model, digest) for text in options.state]
    restored = store.load_folder()
    sessions = Sessions(store, folder=None if folder is None else folder / "sessions")
    sessions.load_folder()
    if folder is not None:
        say(f"{restored:,} states are left in {folder}")
    names = options.served_name or (name_of(source),)
    fingerprint = weights_of(model).fingerprint() or ""
    each = options.cache_memory * MIB // len(owners)
    return Service(
        model=model,
        tokenizer=tokenizer,
        engine=engine,
        limits=limits,
        names=names,
        store=store,
        sessions=sessions,
        preloaded_states=preloaded,
        metrics=Metrics(__version__, fingerprint),
        template=ChatTemplate.find(source, options.chat_template),
        caches={owner: PrefixCache(each) for owner in owners},
        about={"slots": slots, "weights": options.weights, "version": __version__},
    )


def load_named_state(text: str, store: StateStore, model: LM, digest: str) -> str:
    """Loads the state of NAME=FILE, or of NAME!=FILE, whose content may not be downloaded; returns the name."""
    name, _, file = text.partition("=")
    if not name or not file:
        raise ValueError(f"--state {text!r} is not NAME=FILE; write it so.")
    exportable = not name.endswith("!")
    name = name.removesuffix("!")
    store.preload(name, load_state(file, model, tokenizer_digest=digest), exportable=exportable)
    return name


def limits_of(options: Options) -> Limits:
    """The limits that options name."""
    return Limits(
        queue=options.queue,
        queue_per_key=max(1, options.queue // 4) if options.api_key_file else options.queue,
        queue_tokens=options.queue_tokens,
        prompt_tokens=options.max_prompt_tokens,
        max_tokens=options.max_tokens,
        default_chat_tokens=options.default_max_tokens,
        request_seconds=options.request_timeout,
        drain_seconds=options.drain_timeout,
        keep_alive_comment=options.keep_alive_comment,
    )


def slots_in(model: LM, budget: int) -> int:
    """As many sequences as fit into memory; a CPU has two sides of buffers."""
    return MOST_SLOTS if grows(model) else max(1, min(MOST_SLOTS, budget // (2 * model.state_bytes())))


def name_of(source: ModelOnDisk) -> str:
    """The name of a model: that of its folder."""
    path = source.run or source.weights
    return path.resolve().name if path.is_dir() else path.stem


def guarded(service: Service, options: Options, keys: Keys) -> Guard:
    """The app behind its guard."""
    app: ASGIApp = app_of(service, playground=options.playground)
    if options.cors_origin:
        app = CORSMiddleware(app, allow_origins=options.cors_origin, allow_methods=["*"], allow_headers=["*"])
    open_paths = [*OPEN_PATHS, *(["/metrics"] if options.metrics_public else [])]
    open_paths += list(static_files()) if options.playground else []
    local = options.host in ("127.0.0.1", "localhost", "::1")
    return Guard(
        app=app,
        keys=keys,
        limits=service.limits,
        open_paths=open_paths,
        hosts=LOOPBACK if local else None,
        status=service.metrics.answered,
        log=log_line if options.log_requests else None,
    )


def banner(service: Service, address: str, keys: Keys) -> str:
    """What a user wants to know: address, limits, and a line to try."""
    limits, engine = service.limits, service.engine
    size = engine.bytes_per_sequence
    state = "a state that grows" if size is None else f"a state of {size / 1024:,.0f} KiB"
    key = " -H 'authorization: Bearer KEY'" if keys else ""
    body = f'{{"model": "{service.names[0]}", "prompt": "Once", "max_tokens": 32}}'
    return (
        f"{service.names[0]} at {address}, playground at {address}/\n"
        f"{engine.size} sequences at a time with {state} each; {limits.queue} requests may wait, with "
        f"{limits.queue_tokens:,} tokens; prompts of up to {limits.prompt_tokens:,} tokens\n"
        f"curl {address}/v1/completions{key} -H 'content-type: application/json' -d '{body}'"
    )


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
