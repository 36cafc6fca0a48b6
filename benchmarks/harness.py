"""The variants of one measurement run in turn, in one process with the same number of threads, round after round.

What the machine does besides then falls on all of them alike. Every round has another order, so that none always comes
after the one that leaves the caches or the memory worst. Judged are medians; the ratio is given twice, of the medians
and as the median of the rounds' own ratios: where the two differ, the machine was not quiet.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from statistics import geometric_mean, median
from typing import Any, NamedTuple

Run = Callable[[], object]
Clock = Callable[[Run, int], float]  # seconds per call, the mean over some calls in a row
OURS = "exlstm"  # the names of our variants begin with this; all others are peers


class Timing(NamedTuple):
    """Seconds per call, one value per round; each is the mean of `calls` calls in a row."""

    rounds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        return median(self.rounds)

    def to_json(self) -> dict[str, Any]:
        """The times in milliseconds."""
        values = {"median": self.median, "low": min(self.rounds), "high": max(self.rounds)}
        return {name: rounded(1e3 * value) for name, value in values.items()} | {"calls": self.calls}


def side_by_side(
    runs: Mapping[str, Run], *, repeats: int = 7, warmup: int = 2, shortest: float = 0.02, clock: Clock | None = None
) -> dict[str, Timing]:
    """Times every variant `repeats` times, in turn, after `warmup` calls of each.

    shortest: seconds that one timing lasts at least; quick variants are called several times for it. clock: what
    measures; None is the time that passes here.
    """
    clock = clock or seconds_per_call
    calls = {name: max(1, round(shortest / seconds)) for name, seconds in warm_up(runs, warmup, clock).items()}
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    chance = Random(0)
    with without_garbage_collection():
        for _ in range(repeats):
            for name in chance.sample(list(runs), len(runs)):
                rounds[name].append(clock(runs[name], calls[name]))
    return {name: Timing(tuple(rounds[name]), calls[name]) for name in runs}


def warm_up(runs: Mapping[str, Run], warmup: int, clock: Clock) -> dict[str, float]:
    """Seconds of the last of `warmup` calls of each variant."""
    return {name: [max(clock(run, 1), 1e-7) for _ in range(warmup)][-1] for name, run in runs.items()}


def seconds_per_call(run: Run, calls: int) -> float:
    """Seconds per call, the mean over some calls in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switches garbage collection off, whose time would count for the variant being measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratios(timings: Mapping[str, Timing]) -> dict[str, dict[str, dict[str, float]]]:
    """Speed of ours over each peer: {ours: {peer: {"of_medians", "of_rounds"}}}; above 1 ours is faster."""
    ours = {name: timing for name, timing in timings.items() if name.startswith(OURS)}
    peers = {name: timing for name, timing in timings.items() if not name.startswith(OURS)}
    return {
        name: {
            peer: {
                "of_medians": rounded(theirs.median / mine.median),
                "of_rounds": rounded(median(b / a for a, b in zip(mine.rounds, theirs.rounds, strict=True))),
            }
            for peer, theirs in peers.items()
        }
        for name, mine in ours.items()
    }


def mean_ratio(values: list[float]) -> float:
    """The geometric mean, in which twice as fast and half as fast is 1."""
    return geometric_mean(values)


def rounded(value: float) -> float:
    """A number with four digits, more than a timing is good for."""
    return float(f"{value:.4g}")
