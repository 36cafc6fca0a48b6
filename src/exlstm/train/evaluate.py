"""How good a model is on text: loss, perplexity and bits per byte, in memory that does not depend on the length.

B batch  T time  D model width
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from exlstm.data.corpus import read_corpus
from exlstm.data.packing import IGNORE, Batch, TokenStream, pack, sequential_batches, windows_of
from exlstm.data.text import Document, read_source
from exlstm.data.tokenizer import Tokenizer
from exlstm.models.lm import LM
from exlstm.runtime.availability import bfloat16_is_emulated
from exlstm.train.config import TrainConfig
from exlstm.train.crew import Crew, default_workers, threads_shared
from exlstm.train.loss import bits_per_byte, model_cross_entropy
from exlstm.train.named import Named, named
from exlstm.train.run_folder import Which

CONTEXTS = (256, 1024, 4096, 16384)
LANE = 65_536  # a text of less than two lanes of so many tokens is read in one piece
BEFORE = 1024  # tokens that a lane reads before its part of the text, so that it does not begin with nothing


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sums over predictions; the text that `tokens` predicted tokens stand for has `bytes` bytes."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.nats, max(self.bytes, 1))

    def to_json(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found. `whole` carries the state through all of the text, in `lanes` parts (see `score_whole`);
    `coverage` is the share of the text that it reached in the time it had. `contexts` start from nothing every so many
    tokens."""

    run: str
    step: int | None  # None for a model that is of no run
    text: str
    whole: Score
    coverage: float
    contexts: dict[int, Score]
    left_out: str = ""  # files of the text that do not look like text
    lanes: int = 1

    def table(self) -> str:
        """For people."""
        step = "" if self.step is None else f" step {self.step:,},"
        lines = [f"{self.run},{step} on {self.text}"]
        lines.append(f"{'context':>16}  {'loss':>7}  {'perplexity':>10}  {'bits/byte':>9}  {'tokens':>10}")
        rows = [(f"{context:,}", score) for context, score in self.contexts.items()]
        for name, score in [*rows, ("all, state kept", self.whole)]:
            numbers = f"{score.loss:7.4f}  {score.perplexity:10.3f}  {score.bits_per_byte:9.4f}  {score.tokens:10,}"
            lines.append(f"{name:>16}  {numbers}")
        if self.left_out:
            lines.append(f"({self.left_out}; --binary takes them)")
        if self.lanes > 1:
            lines.append(f"(the last row reads {self.lanes} parts, each after the {BEFORE:,} tokens before it)")
        if self.coverage < 1:
            lines.append(f"(the time was enough for {self.coverage:.0%} of the text in the last row)")
        return "\n".join(lines)


def slow_bfloat16(device: torch.device, dtype: str) -> bool:
    """Whether products in bfloat16 are emulated, so that they take longer than those in float32."""
    return dtype == "bfloat16" and device.type == "cpu" and bfloat16_is_emulated()


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """The precision of a run: for "bfloat16" matrix products round to bfloat16, weights and gates do not."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def pick_device(name: str) -> torch.device:
    """The device that a user names; "auto" is a GPU if there is one.

    Raises ValueError for one that is not there, and for "meta", which holds no numbers.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"--device {name!r} is not on this machine; use 'cpu' or 'auto'.") from error
    return device


def score(
    crew: Crew,
    batches: Iterable[Batch],
    byte_lengths: NDArray[np.int64],
    *,
    carry: bool,
    chunk: int,
    dtype: str = "float32",
    stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Sums over batches. carry: the state goes on from each batch to the next, otherwise each starts from nothing.

    chunk: at most so many steps go through the model at once, the state does the rest; this bounds the memory.
    stop: asked before each chunk; the sums so far are returned when it says so.
    """
    device = crew.models[0].embed.weight.device
    nats, tokens, size = 0.0, 0, 0
    states: dict[int, Any] = {}

    def work(model: LM, part: slice, number: int, piece: Batch) -> float:
        inputs_BT, targets_BT, reset_BT, lengths_B = (x[part].to(device) for x in piece)
        ragged = bool((lengths_B < inputs_BT.shape[1]).any())
        with torch.inference_mode(), autocast(device, dtype):
            hidden_BTD, states[number] = crew.hidden[number](
                inputs_BT, states.get(number), reset_BT=reset_BT, lengths_B=lengths_B if ragged else None
            )
            return model_cross_entropy(model, hidden_BTD, targets_BT).item()

    with crew.evaluating():
        for fresh, piece in _pieces(batches, chunk):
            if stop():
                break
            if fresh and not carry:
                states.clear()
            nats += sum(crew.run(partial(work, piece=piece), len(piece.inputs_BT)))
            counted = piece.targets_BT[piece.targets_BT != IGNORE].numpy()
            tokens += len(counted)
            size += int(byte_lengths[counted].sum())
    return Score(nats=nats, tokens=tokens, bytes=size)


def _pieces(batches: Iterable[Batch], chunk: int) -> Iterator[tuple[bool, Batch]]:
    """Every batch in pieces of at most `chunk` steps, with whether the piece is the first of its batch."""
    for batch in batches:
        for start in range(0, batch.inputs_BT.shape[1], chunk):
            part = slice(start, start + chunk)
            inputs_BT = batch.inputs_BT[:, part]
            lengths_B = (batch.lengths_B - start).clamp(0, inputs_BT.shape[1])
            yield start == 0, Batch(inputs_BT, batch.targets_BT[:, part], batch.reset_BT[:, part], lengths_B)


def score_whole(
    crew: Crew,
    stream: TokenStream,
    byte_lengths: NDArray[np.int64],
    *,
    batch: int,
    length: int,
    minutes: float,
    dtype: str = "float32",
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Score, float]:
    """The whole text, its state carried on, and the share of it that the time was enough for.

    A short text is one lane, from its first token to its last. A longer one is cut into lanes (see `lanes_for`) that
    advance together, so that a share of it is an even sample. Each but the first reads the last tokens before its part
    of the text first, which are not scored there: what lies further back than `BEFORE` is unknown at these few places,
    and at no others. batch, length: at most so many lanes; steps are of batch * length tokens.
    """
    count = lanes_for(stream, batch)
    length = length * batch // count
    deadline = time.monotonic() + 60 * minutes
    first = True

    def over() -> bool:
        nonlocal first
        # at least one batch: a number from little text is better than none
        enough, first = not first and (stop() or time.monotonic() > deadline), False
        return enough

    text = sequential_batches(stream, batch=count, length=length, context=BEFORE if count > 1 else 0)
    total = score(crew, text, byte_lengths, carry=True, chunk=length + 1, dtype=dtype, stop=over)
    return total, total.tokens / (len(stream) - 1)


def lanes_for(stream: TokenStream, batch: int) -> int:
    """How many lanes a text is read in: at most `batch`, of at least `LANE` tokens each, and at least one."""
    return max(1, min(batch, (len(stream) - 1) // LANE))


def score_contexts(
    crew: Crew,
    stream: TokenStream,
    byte_lengths: NDArray[np.int64],
    contexts: Sequence[int],
    *,
    tokens: int,
    batch: int,
    chunk: int,
    dtype: str = "float32",
) -> dict[int, Score]:
    """For each context length: windows of so many tokens, each from a fresh state, over the same `tokens` tokens."""
    return {
        context: score(
            crew,
            windows_of(stream, length=context, batch=batch, limit=tokens),
            byte_lengths,
            carry=False,
            chunk=chunk,
            dtype=dtype,
        )
        for context in contexts
    }


def score_beginning(
    model: LM, tokenizer: Tokenizer, docs: Sequence[Document], *, tokens: int, minutes: float, chunk: int = 256
) -> Score:
    """The first `tokens` tokens of a text, the state carried on, or as many of them as the time is enough for.

    At least one chunk. Raises ValueError for a tokenizer with more tokens than the model knows.
    """
    check_vocabulary(model, tokenizer)
    stream = beginning(docs, tokenizer, tokens)
    crew = Crew(model, 1)
    return score_whole(crew, stream, tokenizer.byte_lengths, batch=1, length=chunk, minutes=minutes)[0]


def beginning(docs: Sequence[Document], tokenizer: Tokenizer, tokens: int) -> TokenStream:
    """The first `tokens` targets of a text; no more of it is encoded than is needed."""
    taken: list[Document] = []
    size = 0
    for document in docs:
        taken.append(document)
        size += len(document.data)
        if size > 16 * tokens:  # few tokens are longer
            break
    stream = pack(taken, tokenizer)
    return TokenStream(stream.tokens[: tokens + 1], stream.bytes, stream.boundary)


def evaluate(
    name: str,
    *,
    data: str | None = None,
    binary: bool = False,
    tokenizer: str | None = None,
    part: Literal["val", "test"] = "val",
    context: Sequence[int] | None = None,
    tokens: int = 131_072,
    minutes: float = 5.0,
    checkpoint: Which | int = "best",
    device: str = "auto",
    change: Callable[[LM], LM] | None = None,
) -> Evaluation:
    """Score the model of a run, or one on disk in any layout.

    data: any text (file, folder, glob, .jsonl), all of it; None is the run's own validation (or `part` "test") text.
    binary: take files of `data` that do not look like text, too.
    tokenizer: a tokenizer.json or "bytes"; None is the model's own.
    change: what is done to the model first, such as quantising it.
    context: lengths to compare on the first `tokens` tokens; None is those of 256, 1024, 4096 and 16384 that fit.
    minutes: time limit of the pass over the whole text. Memory is that of one training batch.
    Raises ValueError for a missing model, checkpoint or text, and for a context that is longer than the text.
    """
    found = named(name, checkpoint)
    config = TrainConfig() if found.run is None else found.run.train_config()
    words = found.tokenizer(tokenizer)
    model = found.load(device=pick_device(device))
    check_vocabulary(model, words)
    if change is not None:
        model = change(model)
    docs, text, left_out = text_of(found, config, data, part, binary=binary)
    stream = pack(docs, words)
    context = [length for length in CONTEXTS if length < len(stream)] if context is None else context
    lengths = words.byte_lengths
    workers = default_workers(model.embed.weight.device, config.batch)
    with threads_shared(workers):
        crew = Crew(model, workers)
        contexts = score_contexts(
            crew, stream, lengths, context, tokens=tokens, batch=config.batch, chunk=config.length, dtype=config.dtype
        )
        whole, coverage = score_whole(
            crew, stream, lengths, batch=config.batch, length=config.length, minutes=minutes, dtype=config.dtype
        )
    text = f"{text} ({stream.bytes:,} bytes)"
    return Evaluation(
        run=name,
        step=found.step,
        text=text,
        whole=whole,
        coverage=coverage,
        contexts=contexts,
        left_out=left_out,
        lanes=lanes_for(stream, config.batch),
    )


def text_of(
    found: Named, config: TrainConfig, data: str | None, part: Literal["val", "test"], *, binary: bool
) -> tuple[Sequence[Document], str, str]:
    """What a model is scored on, what it is called, and what was left out of it."""
    if data is not None:
        text = read_source(data, binary=binary)
        return text.documents, data, text.note()
    if found.run is None:
        raise ValueError(f"{found.weights} is of no run that has a text of its own; name one with --data.")
    corpus = read_corpus(config.data, binary=config.binary)
    changed = corpus.fingerprint() != found.run.config()["data"]["sha256"]
    docs: Sequence[Document] = getattr(corpus.split, part)
    return docs, f"the {part} part of the run's own data" + (", which has changed since" if changed else ""), ""


def check_vocabulary(model: LM, tokenizer: Tokenizer) -> None:
    """ValueError for a tokenizer with ids that the model does not know."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {model.config.vocab_size}; "
            "use the tokenizer that the model was trained with."
        )
