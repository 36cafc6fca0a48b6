"""Log-likelihoods with carried state: a context is read once, and all of its continuations begin from its state.

B batch  T time  D model width  C classes (vocabulary)  N tokens  L tokens of one chunk
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from exlstm.mixers.state import LMState, rows
from exlstm.models.lm import LM

Tokens = Sequence[int]
# steps read at a time, so that memory does not grow with a text
STEPS = 512
# logits made at a time, 64 MiB in float32
LOGITS = 1 << 24


class LogLikelihood:
    """The sum of log probabilities in nats, and whether every token was the most likely one."""

    def __init__(self) -> None:
        self.total, self.greedy = 0.0, True

    def add(self, log_probs: Tensor, greedy: Tensor) -> None:
        """Adds the log probabilities of further tokens."""
        self.total += float(log_probs.double().sum())
        self.greedy = self.greedy and bool(greedy.all())


def score_choices(
    model: LM, context: Sequence[Tokens], choices: Sequence[Sequence[Tokens]], batch: int
) -> Iterator[list[LogLikelihood]]:
    """The scores of the continuations of each context, in order. A context has at least one token.

    All contexts are read in one batch; continuations are scored `batch` at a time.
    """
    state = read(model, [line[:-1] for line in context])
    # the last token of a context predicts the first of the continuation, so it is read with the continuation
    forks = [(row, line[-1], choice) for row, line in enumerate(context) for choice in choices[row]]
    scores = [LogLikelihood() for _ in forks]
    order = sorted(range(len(forks)), key=lambda index: -len(forks[index][2]))
    for first in range(0, len(order), batch):
        here = order[first : first + batch]
        index_B = torch.tensor([forks[index][0] for index in here], device=model.embed.weight.device)
        texts = [[forks[index][1], *forks[index][2]] for index in here]
        _score(model, texts, rows(state, index_B), [scores[index] for index in here])
    results = iter(scores)
    for row in range(len(context)):
        yield [next(results) for _ in choices[row]]


def score_texts(model: LM, texts: Sequence[Tokens]) -> list[LogLikelihood]:
    """The score of each text: of all tokens but the first, each given all before it. A text has at least one token."""
    scores = [LogLikelihood() for _ in texts]
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    state = model.zero_state(len(texts))
    _score(model, [texts[index] for index in order], state, [scores[index] for index in order])
    return scores


def read(model: LM, texts: Sequence[Tokens]) -> LMState:
    """The states after these texts, any of which may be empty."""
    state = model.zero_state(len(texts))
    for start in range(0, max(map(len, texts)), STEPS):
        tokens_BT, lengths_B = _padded([text[start : start + STEPS] for text in texts], model)
        _, state = model.hidden(tokens_BT, state, lengths_B=lengths_B)
    return state


def _score(model: LM, texts: Sequence[Tokens], state: LMState, scores: Sequence[LogLikelihood]) -> None:
    """Scores all tokens but the first. Texts are sorted, the longest first, so that finished rows can be left out."""
    for start in range(0, len(texts[0]) - 1, STEPS):
        parts = [text[start : start + STEPS + 1] for text in texts if len(text) - 1 > start]
        if len(parts) < len(texts):
            state = rows(state, torch.arange(len(parts), device=model.embed.weight.device))
        tokens_BT, lengths_B = _padded([part[:-1] for part in parts], model)
        hidden_BTD, state = model.hidden(tokens_BT, state, lengths_B=lengths_B)
        counts = [len(part) - 1 for part in parts]
        hidden_ND = torch.cat([x_TD[:count] for x_TD, count in zip(hidden_BTD, counts, strict=True)])
        targets_N = torch.tensor([token for part in parts for token in part[1:]], device=hidden_ND.device)
        log_probs_N, greedy_N = _log_probs(model, hidden_ND, targets_N)
        for score, log_probs, greedy in zip(
            scores, torch.split(log_probs_N, counts), torch.split(greedy_N, counts), strict=False
        ):
            score.add(log_probs, greedy)


def _log_probs(model: LM, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The log probability of each target, in float32 or wider, and whether it is the most likely token."""
    size = max(1, LOGITS // model.config.vocab_size)
    log_probs, greedy = [], []
    for x_LD, targets_L in zip(torch.split(hidden_ND, size), torch.split(targets_N, size), strict=True):
        logits_LC = model.read_out(x_LD[None])[0]
        logits_LC = logits_LC.to(torch.promote_types(logits_LC.dtype, torch.float32))
        log_probs.append(logits_LC.gather(1, targets_L[:, None])[:, 0] - logits_LC.logsumexp(1))
        greedy.append(logits_LC.argmax(1) == targets_L)
    return torch.cat(log_probs), torch.cat(greedy)


def _padded(texts: Sequence[Tokens], model: LM) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, T] with zeros behind each text, and the lengths, None where all are equal."""
    lengths = [len(text) for text in texts]
    T = max(lengths)
    tokens_BT = torch.zeros(len(texts), T, dtype=torch.long)
    for row_T, text in zip(tokens_BT, texts, strict=True):
        row_T[: len(text)] = torch.tensor(text, dtype=torch.long)
    device = model.embed.weight.device
    lengths_B = torch.tensor(lengths, device=device) if min(lengths) < T else None
    return tokens_BT.to(device), lengths_B


def batches(items: Iterable[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in groups of `size` of similar length, the longest first, so that too little memory shows at once."""
    order = sorted(items, key=lambda index: -lengths[index])
    for first in range(0, len(order), size):
        yield order[first : first + size]
