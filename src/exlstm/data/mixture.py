"""Training batches from several sources: the source of each row is a function of the step number.

All rows of all steps are numbered. Each source has its share of the rows in every CYCLE of them, spread evenly. The
number of a row among the rows of its source selects its window.
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
    """Token streams, and the share of the training tokens drawn from each; shares sum to 1."""

    streams: tuple[TokenStream, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        """Tokens of all streams."""
        return sum(map(len, self.streams))

    @property
    def bytes(self) -> int:
        """Bytes of text in all streams."""
        return sum(stream.bytes for stream in self.streams)

    def batch_at(self, step: int, *, batch: int, length: int, seed: int, carry: bool) -> Batch:
        """The training batch of a step, with the rows of one source beside each other.

        Equal to `packing.batch_at` for a single stream.
        carry: whether the state of a row goes on in the next step. If not, sources take turns, and after any number of
        rows each has its share to within two rows. If so, a row always reads the same source; shares are rounded to
        rows of a batch, at least one row each.
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
        """Rows of each source: in a batch when carried, else in a CYCLE."""
        return apportion(self.shares, batch if carry else CYCLE)

    def check(self, names: Sequence[str], *, batch: int, length: int, carry: bool) -> None:
        """Raises ValueError for a source that is too short for its rows of a batch, or has no row."""
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
        """Rows of each source in a cycle; the source of every row, and its number among the rows of that source."""
        counts = self.rows(1, carry=False)
        turns = np.concatenate([np.arange(count) for count in counts])
        sources = np.repeat(np.arange(len(counts)), counts)
        when = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        order = np.argsort(when, kind="stable")
        return np.array(counts), sources[order], turns[order]


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Divides the whole number `total` by shares that sum to 1: at least 1 each, and as near as whole numbers get.

    `total` is at least the number of shares.
    """
    ideal = [share * total for share in shares]
    counts = [max(1, int(number)) for number in ideal]
    while sum(counts) < total:
        counts[max(range(len(counts)), key=lambda index: ideal[index] - counts[index])] += 1
    while sum(counts) > total:
        several = [index for index, count in enumerate(counts) if count > 1]
        counts[max(several, key=lambda index: counts[index] - ideal[index])] -= 1
    return counts
