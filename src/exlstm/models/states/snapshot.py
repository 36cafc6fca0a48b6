"""Snapshots of sequences that a model has read: values to store, fork, join and go on from.

The size of a snapshot does not depend on the length of the prompt, as far as the model's state does not grow.

B rows (sequences)  M rows that are still read  L chunk length  D model width  C classes (vocabulary)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from exlstm.mixers.state import LMState, state_nbytes
from exlstm.models.states.batching import join_rows, take_rows
from exlstm.models.states.fingerprint import Weights, weights_of
from exlstm.models.states.protocol import StatefulModel

Tokens = Sequence[int] | Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """The state of sequences after their last token, and the next logits. Made by `LM.read`, never changed.

    state: of the model, one row per sequence. logits_BC: for the next token. seen_BC: bool, which tokens occurred, for
    the repetition penalty. counts: tokens read, per row. weights: those that made the state.
    """

    state: LMState
    logits_BC: Tensor
    seen_BC: Tensor
    counts: tuple[int, ...]
    weights: Weights = field(repr=False)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return state_nbytes(self.state) + state_nbytes((self.logits_BC, self.seen_BC))

    def rows(self, index: int | Sequence[int]) -> "Snapshot":
        """A snapshot of some rows, in that order, in memory of its own; a row may occur more than once."""
        index = [index] if isinstance(index, int) else list(index)
        if wrong := [row for row in index if not 0 <= row < len(self)]:
            raise ValueError(f"there is no row {wrong[0]} in a snapshot of {len(self)}; rows count from 0.")
        if not index:
            raise ValueError("no rows were asked for; name at least one.")
        return Snapshot(
            state=take_rows(self.state, index), logits_BC=self.logits_BC[index], seen_BC=self.seen_BC[index],
            counts=tuple(self.counts[row] for row in index), weights=self.weights,
        )  # fmt: skip

    def fork(self, n: int) -> "Snapshot":
        """A snapshot of one sequence `n` times. ValueError for several rows: take one with `rows`."""
        if len(self) != 1 or n < 1:
            raise ValueError(f"a snapshot of {len(self)} rows cannot be forked into {n}; fork 1 row into 1 or more.")
        return self.rows([0] * n)

    @staticmethod
    def join(parts: "Sequence[Snapshot]") -> "Snapshot":
        """A snapshot of the rows of several, in order. ValueError unless they belong to the same weights."""
        if not parts:
            raise ValueError("there are no snapshots to join; pass at least one.")
        weights = parts[0].weights
        if any(part.weights is not weights and part.weights.fingerprint() != weights.fingerprint() for part in parts):
            raise ValueError("these snapshots are of different models (or weights); join those of one model.")
        return Snapshot(
            state=join_rows([part.state for part in parts]),
            logits_BC=torch.cat([part.logits_BC for part in parts]),
            seen_BC=torch.cat([part.seen_BC for part in parts]),
            counts=tuple(count for part in parts for count in part.counts), weights=weights,
        )  # fmt: skip


def snapshot_bytes(model: StatefulModel, length: int = 0) -> int:
    """Bytes of one row of a snapshot after `length` tokens. Only attention makes it depend on the length."""
    dtype = model.embed.weight.dtype
    logit = max(4, dtype.itemsize) if model.config.logit_cap is not None else dtype.itemsize
    return model.state_bytes(length) + model.config.vocab_size * (logit + 1)


@torch.inference_mode(False)
@torch.no_grad()
def read(
    model: StatefulModel, prompts: Tokens | Sequence[Tokens], after: Snapshot | None = None, *, chunk_len: int = 512
) -> Snapshot:
    """`LM.read`."""
    if chunk_len < 1:
        raise ValueError(f"chunk_len is {chunk_len}; read at least 1 token at a time.")
    tokens = [check_prompt(model, prompt, name) for name, prompt in _with_names(prompts)]
    if not tokens:
        raise ValueError("there are no prompts to read; pass at least one.")
    if after is not None:
        check_owner(model, after)
        if len(after) != len(tokens):
            raise ValueError(
                f"there are {len(tokens)} prompts to read after a snapshot of {len(after)} rows; "
                "use its rows() or fork() to have one row per prompt."
            )
    with evaluating(model):
        last_BD, state = read_tokens(model, tokens, None if after is None else after.state, chunk_len)
        logits_BC = model.read_out(last_BD)
    seen_BC = torch.zeros_like(logits_BC, dtype=torch.bool) if after is None else after.seen_BC.clone()
    for seen_C, prompt in zip(seen_BC, tokens, strict=True):
        seen_C[prompt.to(seen_C.device)] = True
    before = (0,) * len(tokens) if after is None else after.counts
    counts = tuple(count + len(prompt) for count, prompt in zip(before, tokens, strict=True))
    return Snapshot(state=state, logits_BC=logits_BC, seen_BC=seen_BC, counts=counts, weights=weights_of(model))


def read_tokens(
    model: StatefulModel, prompts: Sequence[Tensor], state: LMState | None, chunk_len: int
) -> tuple[Tensor, LMState]:
    """The last hidden states, last_BD, and the state after every prompt.

    At most `chunk_len` tokens of each prompt are in flight. A prompt that has ended leaves the batch.
    """
    live, start = list(range(len(prompts))), 0
    parts: list[tuple[list[int], Tensor, LMState]] = []
    device = model.embed.weight.device
    while live:
        here = [min(len(prompts[row]) - start, chunk_len) for row in live]
        tokens_ML = torch.zeros(len(live), max(here), dtype=torch.long)
        for row_L, row, count in zip(tokens_ML, live, here, strict=True):
            row_L[:count] = prompts[row][start : start + count]
        lengths_M = torch.tensor(here, device=device)
        ragged = min(here) < max(here)
        x_MLD, state = model.hidden(tokens_ML.to(device), state, lengths_B=lengths_M if ragged else None)
        x_MD = x_MLD[torch.arange(len(live), device=device), lengths_M - 1]
        start += chunk_len
        ended = [place for place, row in enumerate(live) if len(prompts[row]) <= start]
        if len(ended) == len(prompts) and not ragged:
            return x_MD, state
        going = [place for place, row in enumerate(live) if len(prompts[row]) > start]
        if ended:
            parts.append(([live[place] for place in ended], x_MD[ended], take_rows(state, ended)))
            state = take_rows(state, going) if going else None
        live = [live[place] for place in going]
    found = [row for rows, _, _ in parts for row in rows]
    order = [found.index(row) for row in range(len(prompts))]
    last_BD, joined = torch.cat([x_MD for _, x_MD, _ in parts]), join_rows([part for _, _, part in parts])
    return (last_BD, joined) if order == sorted(order) else (last_BD[order], take_rows(joined, order))


def check_prompt(model: StatefulModel, prompt: Tokens, name: str) -> Tensor:
    """Tokens of a prompt as a tensor on the CPU. ValueError, in one sentence, for prompts that cannot be read."""
    try:
        tokens_T = torch.as_tensor(prompt).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} is not a sequence of whole numbers; pass the ids that the tokenizer gives.") from None
    if tokens_T.numel() == 0:
        raise ValueError(f"{name} has no tokens; start it with the tokenizer's boundary token.")
    if tokens_T.ndim != 1 or tokens_T.is_floating_point() or tokens_T.is_complex() or tokens_T.dtype is torch.bool:
        raise ValueError(
            f"{name} is {tokens_T.dtype} of shape {tuple(tokens_T.shape)}; pass a sequence of ids (whole numbers)."
        )
    least, most = (int(x) for x in tokens_T.aminmax())
    vocab = model.config.vocab_size
    if least < 0 or most >= vocab:
        wrong = least if least < 0 else most
        raise ValueError(
            f"{name} has token {wrong}, which is outside the vocabulary of {vocab}; use the model's own tokenizer."
        )
    return tokens_T.long()


def check_owner(model: StatefulModel, snapshot: Snapshot) -> None:
    """ValueError unless the snapshot belongs to the weights that the model has now."""
    if not snapshot.weights.match(model):
        raise ValueError(
            "the snapshot belongs to another model, or to weights that this one had before; read the prompt again."
        )


@contextmanager
def evaluating(model: StatefulModel) -> Iterator[None]:
    """Evaluation mode inside the `with` block; the mode from before afterwards."""
    was_training = model.training
    if was_training:
        model.train(False)
    try:
        yield
    finally:
        if was_training:
            model.train()


def _with_names(prompts: Tokens | Sequence[Tokens]) -> list[tuple[str, Tokens]]:
    """Prompts with their names in error messages."""
    several = len(prompts) > 0 and hasattr(prompts[0], "__len__") and getattr(prompts[0], "ndim", 1) > 0
    if not several:
        return [("the prompt", cast("Tokens", prompts))]
    return [(f"prompt {number}", cast("Tokens", prompt)) for number, prompt in enumerate(prompts)]
