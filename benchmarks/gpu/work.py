"""One measurement: its variants, their checks, and its least possible time.

A peer that is not installed, fails, or computes something else is left out, and the record says why in one line.
"""

import faulthandler
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.gpu.device import ceilings, clock_of, finish, free
from benchmarks.harness import OURS, Run, Timing, ratios, rounded, side_by_side

ROUNDS = 15
LONGEST = 240  # seconds that a first call may take, most of it to compile
TIMED = "*"  # stands for all variants, while they are timed
Derive = Callable[[Mapping[str, Timing], dict[str, float]], dict[str, Any]]


class Setup(NamedTuple):
    """The device and dtype, and whether only to check that everything runs."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    tiny: bool = False


class Cost(NamedTuple):
    """The least that a piece of work takes: bytes to and from memory, each once, and floating-point operations."""

    bytes: float
    flops: float

    def seconds(self, rates: Mapping[str, float]) -> float:
        """Seconds at the measured rates, memory and arithmetic at the same time."""
        return max(self.bytes / rates["copy_gb_s"] / 1e9, self.flops / rates["gemm_tflops"] / 1e12)


def finite(found: Any) -> dict[str, Any]:
    """Checks that all numbers of one or several tensors are finite."""
    for x in (found,) if isinstance(found, Tensor) else found:
        assert torch.isfinite(x).all(), "not all of its numbers are finite"
    return {}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One program. Names that begin with "exlstm" are ours, the others are peers.

    build: imports what it needs and makes its inputs; the run that it returns gives back what it computed. check: takes
    that, returns numbers to be kept, raises AssertionError if they are not good enough. cost: the least its work takes.
    """

    build: Callable[[], Run]
    check: Callable[[Any], dict[str, Any]] = finite
    cost: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """One measurement. steps: of one call, for a time per step. derive: more numbers from the timings."""

    name: str
    about: str
    variants: Mapping[str, Variant]
    steps: int | None = None
    derive: Derive | None = None


@dataclass(kw_only=True)
class Stage:
    """Runs the measurements of a case, one after another.

    until: time.monotonic() after which none begins. without: what an earlier process did not survive, by
    "measurement/variant", and why. marker: a file that tells which call a process that died was in; None writes and
    times nothing at all: that is to compile only. variant: the only one to be tried.
    even_red: times what fails its check, too; the record stays refused.
    """

    bench: Bench
    setup: Setup
    marker: Path | None
    until: float = float("inf")
    without: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None
    even_red: bool = False
    left: int = 0  # measurements that there was no time for

    def measure(self, work: Work) -> None:
        """Runs one measurement and writes it to disk."""
        if not self.bench.wants(work.name):
            return
        if time.monotonic() > self.until:
            self.left += 1
            self.bench.say(f"{self.bench.case}/{work.name}: no time is left; --resume does it")
            return
        free(self.setup.device)
        began = time.monotonic()
        runs, accuracy, absent = self.first_calls(work)
        if self.marker is None:
            return
        record: dict[str, Any] = {"repeats": self.bench.repeats, "accuracy": accuracy, "absent": absent}
        try:
            record |= self.timed(work, runs, absent)
        except Exception as problem:
            record["red"] = in_short(problem)
        ours = [name for name in work.variants if name.startswith(OURS)]
        failed = [name for name in ours if name in absent]
        self.bench.red += bool(failed) or "red" in record
        if failed and (self.even_red or failed == ours):
            record["red"] = f"{failed[0]}: {absent[failed[0]]}"
        for name in failed:
            self.bench.say(f"{self.bench.case}/{work.name}: RED: {name}: {absent[name]}")
        self.bench.write(work.name, work.about, record, began)

    def first_calls(self, work: Work) -> tuple[dict[str, Run], dict[str, Any], dict[str, str]]:
        """The variants that run, what their checks found, and why the others do not."""
        runs: dict[str, Run] = {}
        accuracy: dict[str, Any] = {}
        absent: dict[str, str] = {}
        for name in work.variants if self.variant is None else [self.variant]:
            run, numbers, reason = self.first_call(work, name)
            free(self.setup.device)
            if run is not None:
                runs[name] = run
            if numbers:
                accuracy[name] = numbers
            if reason is not None:
                absent[name] = reason
        return runs, accuracy, absent

    def first_call(self, work: Work, name: str) -> tuple[Run | None, dict[str, Any], str | None]:
        """The run if it is to be timed, what its check found, and why it is not right, or not there."""
        for key in (f"{work.name}/{name}", f"{work.name}/{TIMED}"):
            if key in self.without:
                return None, {}, self.without[key]
        run, variant = None, work.variants[name]
        try:
            with self.watched(work, name):
                made = variant.build()
                found = made()
                finish(self.setup.device)
                run = made if self.even_red else None
                numbers = variant.check(found)
                return made, numbers, None
        except AssertionError as problem:
            return run, {}, in_short(problem)
        except Exception as problem:
            return None, {}, in_short(problem)

    def timed(self, work: Work, runs: Mapping[str, Run], absent: dict[str, str]) -> dict[str, Any]:
        """The variants in turn, ceilings before and after; one that fails now joins the absent."""
        if not runs:
            return {}
        clock, failed = clock_of(self.setup.device), {}

        def guarded(name: str) -> None:
            if name not in failed:
                try:
                    runs[name]()
                except Exception as problem:
                    self.leave_if_dead(work, name, problem)
                    failed[name] = in_short(problem)

        calls: dict[str, Run] = {name: lambda name=name: guarded(name) for name in runs}
        with self.watched(work, TIMED):
            before = ceilings(self.setup.device, clock, tiny=self.setup.tiny)
            timings = side_by_side(calls, repeats=self.bench.repeats, warmup=1, shortest=0, clock=clock)
            after = ceilings(self.setup.device, clock, tiny=self.setup.tiny)
        absent |= failed
        timings = {name: timing for name, timing in timings.items() if name not in failed}
        best = {name: max(value, after[name]) for name, value in before.items()}
        return {
            "milliseconds": {name: timing.to_json() for name, timing in timings.items()},
            "ratios": ratios(timings),
            "machine_speed": best,
            "derived": derived(work, timings, best),
        }

    @contextmanager
    def watched(self, work: Work, name: str) -> Iterator[None]:
        """Writes the running call to the marker, and ends the process if it takes too long."""
        if self.marker is None:
            yield
            return
        self.mark(work, name, f"its process ended, or it took more than {LONGEST} s")
        faulthandler.dump_traceback_later(LONGEST, exit=True, file=sys.__stderr__)
        try:
            yield
        except Exception as problem:
            self.leave_if_dead(work, name, problem)
            self.marker.unlink()
            raise
        else:
            self.marker.unlink()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def leave_if_dead(self, work: Work, name: str, problem: Exception) -> None:
        """Ends the process after an illegal address on the card; another process continues without this variant."""
        try:
            finish(self.setup.device)
        except RuntimeError:
            self.mark(work, name, in_short(problem))
            raise SystemExit(f"{self.bench.case}/{work.name}: the card stopped at {name}: {problem}") from problem

    def mark(self, work: Work, name: str, reason: str) -> None:
        if self.marker is not None:
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            self.marker.write_text(json.dumps({"key": f"{work.name}/{name}", "reason": reason}))


def derived(work: Work, timings: Mapping[str, Timing], rates: dict[str, float]) -> dict[str, Any]:
    """Derived numbers: the share of the roofline, the time per step, and those that the case derives."""
    costs = {name: work.variants[name].cost for name in timings}
    least = {name: cost.seconds(rates) for name, cost in costs.items() if cost is not None}
    found: dict[str, Any] = {
        "roofline_ms": {name: rounded(1e3 * seconds) for name, seconds in least.items()},
        "share_of_roofline": {name: rounded(seconds / timings[name].median) for name, seconds in least.items()},
    }
    if work.steps is not None:
        found["us_per_step"] = {name: rounded(1e6 * x.median / work.steps) for name, x in timings.items()}
    return found | (work.derive(timings, rates) if work.derive else {})


def in_short(problem: BaseException) -> str:
    """The kind of an exception and the first line that it says."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    said = lines[0][:200] if lines else "it says nothing"
    return said if isinstance(problem, AssertionError) and lines else f"{type(problem).__name__}: {said}"
