"""`exlstm generate`: continue a text, many texts, or a conversation; the state can be saved in a file."""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from exlstm.cli.parse import check_at_least, checkpoint_of
from exlstm.cli.terminal import TerminalSession
from exlstm.models.weight_formats import WeightFormat

if TYPE_CHECKING:
    from exlstm.models.states.snapshot import Snapshot

ModelPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Options of `exlstm generate`."""

    model: ModelPath  # folder of a run, or folder or file of a model in any layout
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
    weights: WeightFormat = "as-saved"  # in another precision; int8 and int4 decode faster on a CPU
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
    """`exlstm generate`: one prompt, several samples of it, many prompts, or a conversation."""
    from exlstm.cli.chat import Chat
    from exlstm.data.model_tokenizer import tokenizer_of
    from exlstm.infer.requests import Request
    from exlstm.infer.sampling import SamplingConfig
    from exlstm.models.locate import locate
    from exlstm.models.states.file import check_place, load_state
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
    template = Request(
        max_tokens=options.max_tokens,
        sampling=sampling,
        seed=options.seed,
        stop=options.stop,
        logprobs=options.logprobs,
    )
    session = TerminalSession(model=model, tokenizer=tokenizer, template=template, quiet=options.quiet)
    if options.prompts is not None:
        generate_lines(session, lines)
        return
    start = None if options.state is None else load_state(options.state, model)
    if options.chat:
        Chat(session=session, turn=options.turn, save_to=options.save_state, now=start).run()
        return
    session.write(text)
    start = session.read(text, start)
    if options.samples > 1:
        generate_samples(session, start, text, options.samples)
        return
    end = session.continue_from(start, options.seed)
    if options.save_state is not None:
        session.save(end, options.save_state)


def generate_samples(session: TerminalSession, start: "Snapshot", text: str, samples: int) -> None:
    """Prints several continuations of one prompt, which is read once."""
    from exlstm.infer.generate import generate as run

    seeds = range(session.template.seed, session.template.seed + samples)
    began, total = time.perf_counter(), 0
    session.write("\n")
    for first in range(0, samples, GROUP):
        group = seeds[first : first + GROUP]
        found = run(session.model, [session.request(start, seed) for seed in group], tokenizer=session.tokenizer)
        for seed, completion in zip(group, found, strict=True):
            if completion.error is not None:
                raise ValueError(completion.error)
            print(f"--- seed {seed} ({completion.finish_reason})\n{text}{completion.text}", flush=True)
            total += len(completion.tokens)
    seconds = time.perf_counter() - began
    session.note(f"{samples:,} samples, {total:,} tokens generated at {total / max(seconds, 1e-9):,.1f} tokens/s")


def generate_lines(session: TerminalSession, lines: list[str]) -> None:
    """Prints a JSON object with the completion of every line, in their order."""
    from exlstm.infer.generate import generate as run

    template = session.template
    began, total = time.perf_counter(), 0
    for start in range(0, len(lines), GROUP):
        group = lines[start : start + GROUP]
        requests = [
            replace(template, prompt=line, seed=template.seed + start + index) for index, line in enumerate(group)
        ]
        for line, completion in zip(group, run(session.model, requests, tokenizer=session.tokenizer), strict=True):
            print(json.dumps({
                "prompt": line,
                "completion": completion.text,
                "tokens": len(completion.tokens),
                "finish_reason": completion.finish_reason,
                **({} if completion.error is None else {"error": completion.error}),
                **({} if completion.logprobs is None else {"logprobs": completion.logprobs}),
                **({} if not template.logprobs else {"top_logprobs": completion.top_logprobs}),
            }, ensure_ascii=False), flush=True)  # fmt: skip
            total += len(completion.tokens)
    seconds = time.perf_counter() - began
    session.note(f"{len(lines):,} prompts, {total:,} tokens generated at {total / max(seconds, 1e-9):,.1f} tokens/s")


GROUP = 64  # prompts or samples that are completed before the next ones start


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
