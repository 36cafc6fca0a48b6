"""Language modelling of a text, scored in bits per byte, which do not depend on the tokenizer.

A score is 1 - bits per byte / 8: 0 is guessing bytes, 1 is no errors. A model reads on over the ends of documents,
which it sees as a token, so a long context is several documents.

B batch  T time  C tokens of the vocabulary
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from exlstm.data.packing import IGNORE, Batch, TokenStream, windows_of
from exlstm.data.tasks.contract import SplitName
from exlstm.models.lm import LM, LMConfig
from exlstm.study.problems.contract import ROWS, Lesson
from exlstm.study.problems.models import Model
from exlstm.study.texts import StudyText, study_text
from exlstm.train.loss import bits_per_byte, model_cross_entropy

_CHUNK = 1024  # steps of a forward pass in scoring; the state is carried from one to the next
_CLOSE = 0.98  # part of the bits per byte of the tokens' frequencies; above it a model has learned nothing else


class TextProblem:
    """One text in windows of one length."""

    def __init__(self, lessons: tuple[Lesson, ...]) -> None:
        self.lessons = lessons
        (self.lesson,) = lessons

    @property
    def text(self) -> StudyText:
        """The text, which is read once per process."""
        return study_text(self.lesson.task)

    def build(self, architecture: LMConfig) -> LM:
        """A language model with the text's vocabulary."""
        return LM(replace(architecture, vocab_size=self.text.tokenizer.vocab_size))

    def loss(self, model: Model, step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
        """Cross entropy per token of windows from a fresh state; the seed is that of their order."""
        assert isinstance(model, LM)
        batch = self.text.train.batch_at(step, batch=rows, length=self.lesson.train[1], seed=seed, carry=False)
        x_BTD, _ = model.hidden(batch.inputs_BT.to(device))
        total = model_cross_entropy(model, x_BTD, batch.targets_BT.to(device))
        return total / batch.targets_BT.numel(), batch.targets_BT.numel()

    def score(self, model: Model, lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """Bits per byte of windows of one length, by domain, by position, and by how often a token was seen.

        rows: times the length of training it is the number of tokens that are read, the same for all lengths.
        """
        assert isinstance(model, LM)
        length = self.lesson.test[part][1]
        domains = self.text.domains[split]
        limit = max(rows * self.lesson.train[1] // len(domains), length)
        found = {domain: _read(model, stream, length, limit) for domain, stream in domains.items()}
        sizes_C = self.text.tokenizer.byte_lengths
        scores = {name: _bits(nats, sizes_C[tokens].sum()) for name, (nats, tokens, _) in found.items()}
        nats, tokens, places = (np.concatenate(column) for column in zip(*found.values(), strict=True))
        bits, floor = _bits(nats, sizes_C[tokens].sum()), self.unigram(tokens)
        return {
            "task": self.lesson.task,
            "low": self.lesson.test[part][0],
            "high": length,
            "score": 1 - bits / 8,
            "bits_per_byte": bits,
            "loss": float(nats.mean()),
            "by_domain": scores,
            "by_position": _table(places, _positions(length), nats, sizes_C[tokens]),
            "by_count": _table(self.text.counts_C[tokens], [0, *(10**k for k in range(1, 8))], nats, sizes_C[tokens]),
            "unigram": floor,
            "at_chance": bits >= _CLOSE * floor,
            "asked": len(tokens),
            "text": self.text.sha256,
        }

    def unigram(self, tokens: NDArray[np.int64]) -> float:
        """Bits per byte of these tokens for a model that knows only how often each occurs in training."""
        counts_C = self.text.counts_C + 1
        nats = np.log(counts_C.sum()) - np.log(counts_C[tokens])
        return _bits(nats, self.text.tokenizer.byte_lengths[tokens].sum())


Read = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]  # nats, token and place of every target


def _read(model: LM, stream: TokenStream, length: int, limit: int) -> Read:
    """The first `limit` tokens of a text in windows of this length, each from a fresh state."""
    columns: list[list[NDArray[Any]]] = [[], [], []]
    rows = max(1, ROWS * 256 // length)
    for batch in windows_of(stream, length=length, batch=rows, limit=limit // length * length):
        for nats_BT, targets_BT, start in _losses(model, batch):
            counted = targets_BT != IGNORE
            places_BT = np.broadcast_to(start + np.arange(targets_BT.shape[1]), targets_BT.shape)
            for column, x_BT in zip(columns, (nats_BT, targets_BT, places_BT), strict=True):
                column.append(x_BT[counted])
    nats, tokens, places = (np.concatenate(column) for column in columns)
    return nats, tokens, places


def _losses(model: LM, batch: Batch) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], int]]:
    """Nats and targets of a batch [B, T] in parts, and the place of the first step of each."""
    device, state = model.head.weight.device, None
    for start in range(0, batch.inputs_BT.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        logits_BTC, state = model(batch.inputs_BT[:, part].to(device), state)
        targets_BT = batch.targets_BT[:, part]
        nats_BT = functional.cross_entropy(
            logits_BTC.float().mT, targets_BT.to(device), ignore_index=IGNORE, reduction="none"
        )
        yield nats_BT.double().cpu().numpy(), targets_BT.numpy(), start


def _bits(nats: NDArray[np.float64], size: float) -> float:
    return bits_per_byte(float(nats.sum()), float(size))


def _positions(length: int) -> list[int]:
    """Borders of positions: 0, 16, 32, 64, ... up to the length."""
    return [0, *(2**k for k in range(4, max(5, math.ceil(math.log2(length)))) if 2**k < length), length]


def _table(
    keys: NDArray[np.int64], borders: list[int], nats: NDArray[np.float64], sizes: NDArray[np.int64]
) -> list[list[float]]:
    """[low, high, tokens, nats, bytes] of the tokens with low <= key < high, without empty rows."""
    found: list[list[float]] = []
    for low, high in pairwise(borders):
        inside = (keys >= low) & (keys < high)
        if inside.any():
            sums = float(nats[inside].sum()), float(sizes[inside].sum())
            found.append([low, high, int(inside.sum()), *sums])
    return found
