"""The bench of a case: checks numbers, then times, then writes the results."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks.harness import Run, Timing, ratios, rounded, side_by_side
from benchmarks.machine import speed
from benchmarks.store import Store

Check = Callable[[], dict[str, Any]]  # numbers that prove the work is right; AssertionError if it is not
Derive = Callable[[Mapping[str, Timing], dict[str, float]], dict[str, Any]]  # from timings and the machine's speed


@dataclass
class Bench:
    """One case being measured.

    only: names of measurements, all if empty. quick: tiny sizes and few repeats, to see that everything runs. resume:
    leaves out what the file already holds for this commit.
    """

    case: str
    store: Store
    commit: str | None = None
    only: tuple[str, ...] = ()
    quick: bool = False
    resume: bool = False
    rounds: int = 7
    red: int = 0  # measurements refused so far
    say: Callable[[str], None] = print

    @property
    def repeats(self) -> int:
        return 2 if self.quick else self.rounds

    def wants(self, name: str) -> bool:
        """Whether this measurement is still to be done; called before its inputs are built."""
        if self.only and name not in self.only:
            return False
        return not (self.resume and self.store.has(name, self.commit))

    def measure(
        self, name: str, about: str, runs: Mapping[str, Run], check: Check, *,
        derive: Derive | None = None, warmup: int = 2, rounds: int | None = None,
    ) -> None:  # fmt: skip
        """Times `runs` side by side if `check` passes. Variants called exlstm... are ours, the others are peers.

        rounds: how often, None for as often as all measurements; fewer where a peer takes minutes.
        """
        if not self.wants(name):
            return
        began = time.monotonic()
        accuracy = self.passes(name, about, check)
        if accuracy is None:
            return
        before = speed()
        repeats = self.repeats if rounds is None else min(rounds, self.repeats)
        timings = side_by_side(runs, repeats=repeats, warmup=1 if self.quick else warmup)
        after = speed()
        best = {key: max(value, after[key]) for key, value in before.items()}
        record = {
            "repeats": repeats,
            "milliseconds": {variant: timing.to_json() for variant, timing in timings.items()},
            "ratios": ratios(timings),
            "machine_speed": best,
            "accuracy": accuracy,
        }
        if derive is not None:
            record["derived"] = derive(timings, best)
        self.write(name, about, record, began)

    def record(self, name: str, about: str, take: Callable[[], dict[str, Any]], check: Check) -> None:
        """Records what `take` measures by its own means (memory, fresh processes), if `check` passes."""
        if not self.wants(name):
            return
        began = time.monotonic()
        accuracy = self.passes(name, about, check)
        if accuracy is not None:
            self.write(name, about, {"accuracy": accuracy} | take(), began)

    def passes(self, name: str, about: str, check: Check) -> dict[str, Any] | None:
        """The numbers of the accuracy check. None if it failed: the failure is recorded, and nothing is timed."""
        try:
            return check()
        except AssertionError as problem:
            self.red += 1
            self.store.put(name, {"about": about, "commit": self.commit, "date": today(), "red": str(problem)})
            self.say(f"{self.case}/{name}: RED, not timed: {problem}")
            return None

    def write(self, name: str, about: str, record: dict[str, Any], began: float) -> None:
        took = rounded(time.monotonic() - began)
        head = {"about": about, "commit": self.commit, "date": today(), "threads": torch.get_num_threads()}
        self.store.put(name, head | {"took_seconds": took} | record)
        self.say(f"{self.case}/{name} ({took:.0f} s): {in_one_line(record)}")


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def in_one_line(record: dict[str, Any]) -> str:
    """A measurement in one line for the terminal."""
    parts = [f"{variant} {x['median']:.4g} ms" for variant, x in record.get("milliseconds", {}).items()]
    for ours, peers in record.get("ratios", {}).items():
        parts += [f"{ours} / {peer} = {x['of_medians']:.2f} ({x['of_rounds']:.2f})" for peer, x in peers.items()]
    parts += [f"{name} {value}" for name, value in record.get("derived", {}).items()]
    parts += [f"{name} {value}" for name, value in record.items() if name not in SHOWN_OTHERWISE]
    return "; ".join(parts)


SHOWN_OTHERWISE = ("repeats", "milliseconds", "ratios", "derived", "accuracy", "machine_speed")
