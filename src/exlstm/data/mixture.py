"""Training text of several sources: which row of a batch comes from which of them.

A batch is a function of the step number here, too. All rows of all steps are counted, and in every CYCLE of them each
source has its share of places, spread evenly; a source's own count of rows is the turn of its window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from exlstm.data.packing import Batch, TokenStream, batch_at, check_fits, windows_at

CYCLE = 10_000  # rows: shares are exact to 1 / CYCLE


@dataclass(frozen=True, eq=False)
class Mixture:
    """Streams, and the share of the training tokens that comes from each; shares sum to 1."""

    streams: tuple[TokenStream, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        """Tokens of all streams."""
        return sum(map(len, self.streams))

    @property
    def bytes(self) -> int:
        """Of the text of all streams."""
        return sum(stream.bytes for stream in self.streams)

    def batch_at(self, step: int, *, batch: int, length: int, seed: int, carry: bool) -> Batch:
        """The training batch of a step, rows of one source beside each other; `packing.batch_at` of a single stream.

        carry=False  Rows take turns, so that after any number of them each source has its share, to within two rows.
        carry=True   A row stays with its source for good: shares are rounded to rows of a batch, at least one each.
        """
        if carry:
            counts = self.rows(batch, carry=True)
            parts = [
                batch_at(stream, step, batch=count, length=length, seed=seed, carry=True)
                for stream, count in zip(self.streams, counts, strict=True)
            ]
            return Batch(*map(torch.cat, zip(*parts, strict=True)))
        counts_K, source_C, turn_C = self._cycle
        cycle_B, slot_B = np.divmod(np.arange(step * batch, (step + 1) * batch), CYCLE)
        source_B = source_C[slot_B]
        turn_B = cycle_B * counts_K[source_B] + turn_C[slot_B]
        parts = [
            windows_at(stream, turn_B[source_B == index].tolist(), length=length, seed=seed)
            for index, stream in enumerate(self.streams)
            if (source_B == index).any()
        ]
        return Batch(*map(torch.cat, zip(*parts, strict=True)))

    def rows(self, batch: int, *, carry: bool) -> list[int]:
        """How many rows each source has, of a batch when carried, or else of CYCLE."""
        return apportioned(self.shares, batch if carry else CYCLE)

    def check(self, names: Sequence[str], *, batch: int, length: int, carry: bool) -> None:
        """ValueError, naming the source, for one that is too short for its rows of a batch, or gets none."""
        if carry and batch < len(self.streams):
            raise ValueError(
                f"--batch {batch} has fewer rows than --data has sources, {len(self.streams)}, and with --carry-state "
                "each needs one; use a larger batch."
            )
        counts = self.rows(batch, carry=True) if carry else [1] * len(self.streams)
        for name, stream, count in zip(names, self.streams, counts, strict=True):
            try:
                check_fits(stream, batch=count, length=length, carry=carry)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if len(names) > 1 else str(error)) from error

    @cached_property
    def _cycle(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows of each source in a cycle; the source of every place in it, and its turn among those of the source."""
        counts = self.rows(1, carry=False)
        turns = np.concatenate([np.arange(count) for count in counts])
        sources = np.repeat(np.arange(len(counts)), counts)
        when = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = np.argsort(when, kind="stable")
        return np.array(counts), sources[order], turns[order]


def apportioned(shares: Sequence[float], total: int) -> list[int]:
    """`total` things dealt out by shares that sum to 1: at least one each, and otherwise as near as whole numbers get.

    There are at least as many things as shares.
    """
    ideal = [share * total for share in shares]
    counts = [max(1, int(number)) for number in ideal]
    while sum(counts) < total:
        counts[max(range(len(counts)), key=lambda index: ideal[index] - counts[index])] += 1
    while sum(counts) > total:
        several = [index for index, count in enumerate(counts) if count > 1]
        counts[max(several, key=lambda index: counts[index] - ideal[index])] -= 1
    return counts
