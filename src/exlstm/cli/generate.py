"""`exlstm generate`: continue a text, many texts, or a conversation; the state can be kept in a file."""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from exlstm.cli.parse import Weights, check_at_least, checkpoint_of

if TYPE_CHECKING:
    from exlstm.data.tokenizer import Tokenizer
    from exlstm.infer.requests import Request
    from exlstm.infer.sampling import SamplingConfig
    from exlstm.models.lm import LM
    from exlstm.models.snapshot import Snapshot

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Options of `exlstm generate`."""

    model: Model  # folder of a run, or folder or file of a model in any layout
    prompt: str = ""  # text to continue; left out: the model begins a document
    file: str | None = None  # the prompt is the content of this file; - is standard input
    prompts: str | None = None  # every line of this file (- is standard input) is a prompt; prints JSON lines
    chat: bool = False  # a conversation: type a line, get a reply; /help lists what else you can type
    turn: str = "User: {}\nAssistant:"  # what a line of yours becomes in a conversation
    max_tokens: int = 256  # most tokens to generate; the model may end the document before
    temperature: float = 0.8  # 0 always takes the most likely token, 1 samples the model's own distribution
    top_k: int | None = None  # sample from the k most likely tokens only
    top_p: float = 0.95  # sample from the most likely tokens that hold this much probability only
    min_p: float = 0.0  # drop tokens less likely than this fraction of the most likely one
    repetition_penalty: float = 1.0  # above 1, tokens that have occurred become less likely
    stop: tuple[str, ...] = ()  # texts that end the generation and are not shown
    samples: int = 1  # continuations of the same prompt, with the seeds SEED, SEED + 1, ...
    seed: int = 0  # the same seed gives the same text
    logprobs: int | None = None  # with --prompts: log-probabilities of the tokens and of so many alternatives
    state: str | None = None  # go on from the state in this file
    save_state: str | None = None  # keep the state after the last token in this file
    tokenizer: str | None = None  # "bytes" or a tokenizer.json; left out: the one beside the model
    checkpoint: str = "best"  # of a run: best, last, or the number of a step
    weights: Weights = "as-saved"  # in another precision; int8 and int4 decode faster on a CPU
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    quiet: bool = False  # no line about speed and state on standard error

    def __post_init__(self) -> None:
        given = [name for name in ("prompt", "file", "prompts", "chat") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} do not go together; use one of them.")
        check_at_least(self, samples=1, max_tokens=0, logprobs=0)
        if not -(2**63) <= self.seed <= 2**64 - self.samples:
            raise ValueError(f"--seed is {self.seed}; a seed is a whole number of 64 bits.")
        if self.prompts is not None and (self.state or self.save_state or self.samples > 1):
            raise ValueError("--state, --save-state and --samples are for one prompt; leave them out with --prompts.")
        if self.save_state is not None and self.samples > 1:
            raise ValueError(
                f"--save-state keeps one state and --samples {self.samples} have several; use one of them."
            )
        if "{}" not in self.turn:
            raise ValueError(f"--turn {self.turn!r} has no {{}}, where your line goes.")
        if self.logprobs is not None and self.prompts is None:
            raise ValueError("--logprobs is for --prompts, which prints them.")


def generate(options: Generate) -> None:
    """Loads the model and does one of the three."""
    from exlstm.cli.chat import Chat
    from exlstm.data.model_tokenizer import tokenizer_of
    from exlstm.infer.sampling import SamplingConfig
    from exlstm.models.locate import locate
    from exlstm.models.state_file import check_place
    from exlstm.runtime.machine import pick_device

    sampling = SamplingConfig(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
    )
    if options.save_state is not None:
        check_place(options.save_state)
    source = locate(options.model, checkpoint_of(options.checkpoint))
    tokenizer, device = tokenizer_of(source, options.tokenizer), pick_device(options.device)
    text = options.prompt if options.file is None else read_text(options.file)
    lines = [] if options.prompts is None else read_text(options.prompts).splitlines()
    model = source.load(options.weights, device)
    voice = Voice(model, tokenizer, sampling, options)
    if options.prompts is not None:
        many(voice, lines)
        return
    start = voice.open_state()
    if options.chat:
        Chat(voice, start).run()
        return
    voice.say(text)
    start = voice.read(text, start)
    if options.samples == 1:
        voice.keep(voice.speak(start, options.seed))
        return
    several(voice, start, text)


@dataclass
class Voice:
    """A model that speaks on a terminal: pieces of text as they come, then a line about them."""

    model: "LM"
    tokenizer: "Tokenizer"
    sampling: "SamplingConfig"
    options: Generate
    read_seconds: float = field(default=0.0, init=False)
    read_tokens: int = field(default=0, init=False)

    def open_state(self) -> "Snapshot | None":
        """The one of --state."""
        from exlstm.models.state_file import load_state

        return None if self.options.state is None else load_state(self.options.state, self.model)

    def keep(self, snapshot: "Snapshot", file: str | None = None) -> None:
        """To the file, or the one of --save-state, if there is one."""
        from exlstm.models.state_file import save_state

        if target := file or self.options.save_state:
            save_state(snapshot, target)
            self.note(f"state of {snapshot.counts[0]:,} tokens in {target} ({Path(target).stat().st_size:,} bytes)")

    def read(self, text: str, after: "Snapshot | None") -> "Snapshot":
        """The state after a text; a text at the very beginning begins a document."""
        tokens = self.tokenizer.encode(text.encode(errors="surrogateescape"))
        if after is None:
            tokens = [self.tokenizer.boundary, *tokens]
        began = time.perf_counter()
        snapshot = after if after is not None and not tokens else self.model.read(tokens, after)
        self.read_seconds, self.read_tokens = time.perf_counter() - began, len(tokens)
        return snapshot

    def request(self, after: "Snapshot", seed: int, stop: tuple[str, ...] = ()) -> "Request":
        """What is asked of the engine."""
        from exlstm.infer.requests import Request

        options = self.options
        return Request(
            after=after, max_tokens=options.max_tokens, sampling=self.sampling, seed=seed,
            stop=(*options.stop, *stop), keep_snapshot=True,
        )  # fmt: skip

    def speak(self, start: "Snapshot", seed: int, stop: tuple[str, ...] = ()) -> "Snapshot":
        """Says a continuation, piece by piece, and returns the state after it. Ctrl-C ends the continuation only."""
        from exlstm.infer.generate import stream

        times: list[float] = []
        spoken, end = "", None
        try:
            for event in stream(self.model, [self.request(start, seed, stop)], tokenizer=self.tokenizer):
                times += [] if event.token is None else [time.perf_counter()]
                spoken += event.text
                self.say(event.text)
                end = event
        except KeyboardInterrupt:
            self.say(" [stopped]")
        self.say("\n")
        if end is not None and end.error is not None:
            raise ValueError(end.error)
        self.about(times)
        if end is not None and end.snapshot is not None and not isinstance(end.stop, str):
            return end.snapshot
        # stopped before its end, or it went on to a stop string: the state is that after what was said
        said = self.tokenizer.encode(spoken.encode(errors="replace"))
        return self.model.read(said, start) if said else start

    def say(self, text: str) -> None:
        """At once."""
        print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """Beside the text, unless --quiet."""
        if not self.options.quiet:
            print(f"[{text}]", file=sys.stderr, flush=True)

    def about(self, times: list[float]) -> None:
        """How fast it went, and what a sequence costs in memory. times: when each token came."""
        reading = f"{self.read_tokens:,} tokens read in {self.read_seconds:.2f} s"
        # the first comes of the prompt, and for the second the step is recorded, which is done once
        later = times[1:]
        speed = f" at {(len(later) - 1) / (later[-1] - later[0]):,.1f} tokens/s" if len(later) > 1 else ""
        state = self.model.state_bytes(self.read_tokens + len(times))
        self.note(f"{reading}, {len(times):,} generated{speed}, state {state:,} bytes")


def several(voice: Voice, start: "Snapshot", text: str) -> None:
    """Continuations of one prompt, which is read once."""
    from exlstm.infer.generate import generate as run

    samples = voice.options.samples
    seeds = range(voice.options.seed, voice.options.seed + samples)
    began, total = time.perf_counter(), 0
    voice.say("\n")
    for first in range(0, samples, GROUP):
        group = seeds[first : first + GROUP]
        found = run(voice.model, [voice.request(start, seed) for seed in group], tokenizer=voice.tokenizer)
        for seed, completion in zip(group, found, strict=True):
            if completion.error is not None:
                raise ValueError(completion.error)
            print(f"--- seed {seed} ({completion.finish_reason})\n{text}{completion.text}", flush=True)
            total += len(completion.tokens)
    seconds = time.perf_counter() - began
    voice.note(f"{samples:,} samples, {total:,} tokens generated at {total / max(seconds, 1e-9):,.1f} tokens/s")


def many(voice: Voice, lines: list[str]) -> None:
    """Continues every line; prints a JSON object for each, in order, as soon as it and those before it are done."""
    from exlstm.infer.generate import generate as run
    from exlstm.infer.requests import Request

    options = voice.options
    began, total = time.perf_counter(), 0
    for start in range(0, len(lines), GROUP):
        group = lines[start : start + GROUP]
        requests = [
            Request(
                prompt=line, max_tokens=options.max_tokens, sampling=voice.sampling, seed=options.seed + start + index,
                stop=options.stop, logprobs=options.logprobs,
            )
            for index, line in enumerate(group)
        ]  # fmt: skip
        for line, completion in zip(group, run(voice.model, requests, tokenizer=voice.tokenizer), strict=True):
            print(json.dumps({
                "prompt": line,
                "completion": completion.text,
                "tokens": len(completion.tokens),
                "finish_reason": completion.finish_reason,
                **({} if completion.error is None else {"error": completion.error}),
                **({} if completion.logprobs is None else {"logprobs": completion.logprobs}),
                **({} if not options.logprobs else {"top_logprobs": completion.top_logprobs}),
            }, ensure_ascii=False), flush=True)  # fmt: skip
            total += len(completion.tokens)
    seconds = time.perf_counter() - began
    voice.note(f"{len(lines):,} prompts, {total:,} tokens generated at {total / max(seconds, 1e-9):,.1f} tokens/s")


GROUP = 64  # prompts or samples that are answered before the next ones are begun


def read_text(file: str) -> str:
    """The content of a file, or of standard input for "-"."""
    if file == "-":
        return sys.stdin.buffer.read().decode(errors="surrogateescape")
    try:
        return Path(file).read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}); name a file of text, or - for standard input."
        ) from error
