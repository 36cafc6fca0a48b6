"""Loss, perplexity and bits per byte of a model on text, in memory that does not depend on the length.

B batch  T time  D model width
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from exlstm.data.corpus import read_corpus
from exlstm.data.model_tokenizer import tokenizer_of
from exlstm.data.packing import IGNORE, Batch, TokenStream, pack, sequential_batches, windows_of
from exlstm.data.text import Document, read_source
from exlstm.data.tokenizer import Tokenizer
from exlstm.models.lm import LM
from exlstm.models.locate import ModelOnDisk, Which, locate
from exlstm.runtime.allocator import keep_freed_memory
from exlstm.runtime.machine import autocast, pick_device
from exlstm.train.config import TrainConfig
from exlstm.train.loss import bits_per_byte, model_cross_entropy
from exlstm.train.replicas import ThreadedReplicas, default_workers, threads_shared
from exlstm.train.run_folder import RunFolder

CONTEXTS = (256, 1024, 4096, 16384)
LANE = 65_536  # tokens; a text of less than two lanes is read as one
BEFORE = 1024  # tokens before its part of the text that a lane reads unscored, for a state to begin with


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """Total loss of predicted tokens. bytes: of the text that these tokens stand for."""

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
    """Scores of a model.

    whole: of all of the text, with the state carried on, in `lanes` parts (see `score_whole`). coverage: the share of
    the text that was read in the time limit. contexts: scores by length, each window from a fresh state. window: the
    number of positions of the model, if it has a table of them; the whole text is then read in windows of that length.
    """

    run: str
    step: int | None  # None for a model outside of runs
    text: str
    whole: TextScore
    coverage: float
    contexts: dict[int, TextScore]
    left_out: str = ""  # files that do not look like text
    lanes: int = 1
    window: int | None = None

    def table(self) -> str:
        """The scores as plain text."""
        step = "" if self.step is None else f" step {self.step:,},"
        lines = [f"{self.run},{step} on {self.text}"]
        lines.append(f"{'context':>16}  {'loss':>7}  {'perplexity':>10}  {'bits/byte':>9}  {'tokens':>10}")
        rows = [(f"{context:,}", score) for context, score in self.contexts.items()]
        for name, score in [*rows, ("all, state kept" if self.window is None else "all, in windows", self.whole)]:
            numbers = f"{score.loss:7.4f}  {score.perplexity:10.3f}  {score.bits_per_byte:9.4f}  {score.tokens:10,}"
            lines.append(f"{name:>16}  {numbers}")
        if self.left_out:
            lines.append(f"({self.left_out}; --binary takes them)")
        if self.window is not None:
            lines.append(f"(a window has {self.window:,} tokens, as many as the model has positions)")
        elif self.lanes > 1:
            lines.append(f"(the last row reads {self.lanes} parts, each after the {BEFORE:,} tokens before it)")
        if self.coverage < 1:
            lines.append(f"(the time was enough for {self.coverage:.0%} of the text in the last row)")
        return "\n".join(lines)


def score(
    replicas: ThreadedReplicas,
    batches: Iterable[Batch],
    byte_lengths: NDArray[np.int64],
    *,
    carry: bool,
    chunk: int,
    dtype: str = "float32",
    stop: Callable[[], bool] = lambda: False,
) -> TextScore:
    """The total loss of batches. carry: each batch continues from the state of the one before.

    chunk: steps per forward pass; longer batches are read in parts, which bounds the memory.
    stop: called before each chunk; True ends with the sums so far.
    """
    device = replicas.models[0].embed.weight.device
    nats, tokens, size = 0.0, 0, 0
    states: dict[int, Any] = {}

    def work(model: LM, part: slice, number: int, batch_part: Batch) -> float:
        inputs_BT, targets_BT, reset_BT, lengths_B = (x[part].to(device) for x in batch_part)
        ragged = bool((lengths_B < inputs_BT.shape[1]).any())
        with torch.inference_mode(), autocast(device, dtype):
            hidden_BTD, states[number] = replicas.hidden[number](
                inputs_BT, states.get(number), reset_BT=reset_BT, lengths_B=lengths_B if ragged else None
            )
            return model_cross_entropy(model, hidden_BTD, targets_BT).item()

    with replicas.evaluating():
        for fresh, batch_part in _chunks(batches, chunk):
            if stop():
                break
            if fresh and not carry:
                states.clear()
            nats += sum(replicas.run(partial(work, batch_part=batch_part), len(batch_part.inputs_BT)))
            counted = batch_part.targets_BT[batch_part.targets_BT != IGNORE].numpy()
            tokens += len(counted)
            size += int(byte_lengths[counted].sum())
    return TextScore(nats=nats, tokens=tokens, bytes=size)


def _chunks(batches: Iterable[Batch], chunk: int) -> Iterator[tuple[bool, Batch]]:
    """Every batch in parts of at most `chunk` steps; True for the first batch_part of a batch."""
    for batch in batches:
        for start in range(0, batch.inputs_BT.shape[1], chunk):
            part = slice(start, start + chunk)
            inputs_BT = batch.inputs_BT[:, part]
            lengths_B = (batch.lengths_B - start).clamp(0, inputs_BT.shape[1])
            yield start == 0, Batch(inputs_BT, batch.targets_BT[:, part], batch.reset_BT[:, part], lengths_B)


def score_whole(
    replicas: ThreadedReplicas,
    stream: TokenStream,
    byte_lengths: NDArray[np.int64],
    *,
    batch: int,
    length: int,
    minutes: float,
    dtype: str = "float32",
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TextScore, float]:
    """The score of the whole text with its state carried on, and the share of it that was read in the time limit.

    A short text is one lane, from its first token to its last. A longer one is cut into lanes (see `lanes_for`) that
    advance together, so that a share of it is an even sample. Each lane but the first begins with the `BEFORE` tokens
    before its part, unscored; further back the state knows nothing there. A model with a table of positions reads
    windows of that length, each from a fresh state.
    batch: at most so many lanes. length: a forward pass reads batch * length tokens.
    """
    count, window = lanes_for(stream, batch), replicas.models[0].config.positions
    deadline = time.monotonic() + 60 * minutes
    first = True

    def over() -> bool:
        nonlocal first
        # at least one batch: a score of little text is better than none
        enough, first = not first and (stop() or time.monotonic() > deadline), False
        return enough

    if window is None:
        length = length * batch // count
        text = sequential_batches(stream, batch=count, length=length, context=BEFORE if count > 1 else 0)
    else:
        text = windows_of(stream, length=min(window, len(stream) - 1), batch=batch)
    run = partial(score, replicas, text, byte_lengths, dtype=dtype, stop=over)
    total = run(carry=window is None, chunk=length + 1)
    return total, total.tokens / (len(stream) - 1)


def lanes_for(stream: TokenStream, batch: int) -> int:
    """Number of lanes for a text: at most `batch`, of at least `LANE` tokens each, and at least one."""
    return max(1, min(batch, (len(stream) - 1) // LANE))


def score_contexts(
    replicas: ThreadedReplicas,
    stream: TokenStream,
    byte_lengths: NDArray[np.int64],
    contexts: Sequence[int],
    *,
    tokens: int,
    batch: int,
    chunk: int,
    dtype: str = "float32",
) -> dict[int, TextScore]:
    """Scores by context length: windows of that length, each from a fresh state, over the same `tokens` tokens."""
    return {
        context: score(
            replicas,
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
) -> TextScore:
    """The score of the first `tokens` tokens of a text, state carried on, or of those read in the time limit.

    At least one chunk is read. Raises ValueError for a tokenizer with more tokens than the model.
    """
    check_vocabulary(model, tokenizer)
    stream = beginning(docs, tokenizer, tokens)
    replicas = ThreadedReplicas(model, 1)
    return score_whole(replicas, stream, tokenizer.byte_lengths, batch=1, length=chunk, minutes=minutes)[0]


def beginning(docs: Sequence[Document], tokenizer: Tokenizer, tokens: int) -> TokenStream:
    """The first `tokens` targets of a text, without encoding the rest."""
    taken: list[Document] = []
    size = 0
    for document in docs:
        taken.append(document)
        size += len(document.data)
        if size > 16 * tokens:  # few tokens are longer
            break
    stream = pack(taken, tokenizer)
    return TokenStream(stream.tokens[: tokens + 1], stream.bytes, stream.boundary)


@keep_freed_memory()
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
    """Scores the model of a run, or one on disk in any layout.

    data: any text (file, folder, glob, .jsonl), all of it; None is the run's own validation (or `part` "test") text.
    binary: take files of `data` that do not look like text, too.
    tokenizer: a tokenizer.json or "bytes"; None is the model's own.
    change: applied to the model first, such as `quantize`.
    context: lengths to compare on the first `tokens` tokens; None is those of 256, 1024, 4096 and 16384 that fit.
    minutes: time limit of the pass over the whole text. Memory is that of one training batch.
    Raises ValueError for a missing model, checkpoint or text, and for a context that is longer than the text.
    """
    found = locate(name, checkpoint)
    config = TrainConfig() if found.run is None else RunFolder(found.run).train_config()
    words = tokenizer_of(found, tokenizer)
    model = found.load(device=pick_device(device))
    check_vocabulary(model, words)
    if change is not None:
        model = change(model)
    docs, text, left_out = text_of(found, config, data, part, binary=binary)
    stream = pack(docs, words)
    longest = min(len(stream) - 1, model.config.positions or len(stream))
    context = [length for length in CONTEXTS if length <= longest] if context is None else context
    lengths = words.byte_lengths
    workers = default_workers(model.embed.weight.device, config.batch)
    with threads_shared(workers):
        replicas = ThreadedReplicas(model, workers)
        batch, chunk, dtype = config.batch, config.length, config.dtype
        contexts = score_contexts(
            replicas, stream, lengths, context, tokens=tokens, batch=batch, chunk=chunk, dtype=dtype
        )
        whole, coverage = score_whole(
            replicas, stream, lengths, batch=batch, length=chunk, minutes=minutes, dtype=dtype
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
        window=model.config.positions,
    )


def text_of(
    found: ModelOnDisk, config: TrainConfig, data: str | None, part: Literal["val", "test"], *, binary: bool
) -> tuple[Sequence[Document], str, str]:
    """Documents to score, what the text is called, and which files of it were left out."""
    if data is not None:
        text = read_source(data, binary=binary)
        return text.documents, data, text.note()
    if found.run is None:
        raise ValueError(f"{found.weights} is of no run that has a text of its own; name one with --data.")
    corpus = read_corpus(config.data, binary=config.binary)
    changed = corpus.fingerprint() != RunFolder(found.run).config()["data"]["sha256"]
    docs: Sequence[Document] = getattr(corpus.split, part)
    return docs, f"the {part} part of the run's own data" + (", which has changed since" if changed else ""), ""


def check_vocabulary(model: LM, tokenizer: Tokenizer) -> None:
    """ValueError for a tokenizer with more tokens than the model."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {model.config.vocab_size}; "
            "use the tokenizer that the model was trained with."
        )
