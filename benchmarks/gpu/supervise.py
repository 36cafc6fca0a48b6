"""The supervisor: runs every case on a GPU in a process of its own, within a given time.

First everything is compiled, several processes at a time and none of them timed: compilers cache on disk, and GPU time
is scarce. Then the cases are timed, one after another. A process that dies, hangs or loses the
card in a call costs that variant and no more: another process goes on without it, and the record says why.
"""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.bench import Bench
from benchmarks.gpu.device import SAME, here, machine
from benchmarks.gpu.work import ROUNDS, Setup, Stage
from benchmarks.store import Store

MINUTES = 9.0
COMPILED = ("mlstm_op", "slstm_op")  # the cases whose kernels take long; attention has the mLSTM's
COMPILING = 0.45  # of the time at most
GRACE = 30.0  # seconds that a process may go on with what it began in time
PER_PROCESS = 16.0  # GiB on the card, while compiling
NO_GPU = (
    "No GPU: torch.cuda.is_available() is False here, so nothing was timed; run it on a machine with an NVIDIA GPU."
)


def every_case(options: Namespace, folder: Path, cases: list[str], code: str) -> int:
    """The exit code: 1 if anything was refused, failed, or found no time. Prints how long each case took."""
    began, failed = time.monotonic(), []
    until = began + 60 * options.minutes
    if not options.quick:
        compile_first(options, folder, cases, code, began + COMPILING * 60 * options.minutes)
        print(f"== compiled ({time.monotonic() - began:.0f} s)", flush=True)
    for case in cases:
        start = time.monotonic()
        if not one_case(options, folder, case, code, until):
            failed.append(case)
        print(f"== {case} took {time.monotonic() - start:.0f} s ({time.monotonic() - began:.0f} s in all)", flush=True)
    print(f"== results in {folder}")
    if failed:
        print(f"refused, failed or out of time: {', '.join(failed)}; --resume does what is missing")
    return int(bool(failed))


def one_case(options: Namespace, folder: Path, case: str, code: str, until: float) -> bool:
    """Whether a case ran without failures. Each process leaves out the variants that ended earlier ones."""
    without: dict[str, str] = {}
    marker = folder / f"{case}.trying"
    marker.unlink(missing_ok=True)
    while (left := until - time.monotonic()) > 0:
        command = child(options, folder, case, code, without, options.resume or bool(without))
        ended = run([*command, "--seconds", f"{left:.0f}"], left + GRACE)
        if ended is None:
            print(f"{case}: stopped, the time is over", flush=True)
            break
        if not marker.exists():
            return ended == 0 and not without
        died = json.loads(marker.read_text())
        marker.unlink()
        print(f"{case}/{died['key']}: {died['reason']}; going on without it", flush=True)
        without[died["key"]] = died["reason"]
    marker.unlink(missing_ok=True)
    return False


def child(options: Namespace, folder: Path, case: str, code: str, without: dict[str, str], resume: bool) -> list[str]:
    """The command that measures one case."""
    command = [sys.executable, "-m", "benchmarks", "case", "--device", "gpu", "--out", str(folder), "--commit", code]
    command += ["--only", *([name for name in options.only if name.partition("/")[0] == case] or [case])]
    command += ["--quick"] * options.quick + ["--resume"] * resume + ["--even-red"] * options.even_red
    return command + (["--without", json.dumps(without)] if without else [])


def run(command: list[str], seconds: float, **options: object) -> int | None:
    """The exit code of a process, None if it ran out of time and was killed."""
    try:
        return subprocess.run(command, cwd=ROOT, check=False, timeout=seconds, **options).returncode  # type: ignore[call-overload]
    except subprocess.TimeoutExpired:
        return None


def compile_first(options: Namespace, folder: Path, cases: list[str], code: str, until: float) -> None:
    """One process for each variant that is going to be timed. What fails here will say so when it is timed."""
    # what a peer tunes while others use the card would be the wrong choice: it keeps its kernels, and tunes again
    environment = {**os.environ, "FLA_CACHE_RESULTS": "0"}

    def one(name: str, variant: str) -> None:
        left = until - time.monotonic()
        if left > 0:
            command = child(
                Namespace(**{**vars(options), "only": [name]}), folder, name.partition("/")[0], code, {}, False
            )
            run([*command, "--compile", variant], left, env=environment, capture_output=True)

    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    count = max(1, min(8, (os.cpu_count() or 2) // 2, int(memory / PER_PROCESS)))
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda task: one(*task), compilations(options, folder, cases, code)))


def compilations(options: Namespace, folder: Path, cases: list[str], code: str) -> Iterator[tuple[str, str]]:
    """Measurement and variant. The backward has all kernels; the last variant is the one that compiles longest."""
    for case in cases:
        if case in COMPILED:
            bench = bench_of(options, folder, case, code)
            for work in import_module(f"benchmarks.gpu.{case}").works(Setup(here(), tiny=options.quick)):
                if work.name.endswith("backward") and bench.wants(work.name):
                    yield from ((f"{case}/{work.name}", variant) for variant in reversed(work.variants))


def bench_of(options: Namespace, folder: Path, case: str, code: str | None) -> Bench:
    """The bench of a case. Results of another card or of other versions are replaced."""
    store = Store(folder, case, machine(), SAME)
    if store.other_machine:
        print(f"{store.path.name} holds results of another GPU or other versions; it begins anew")
    names = [name.partition("/") for name in options.only]
    return Bench(
        case, store, commit=code, only=tuple(name for of, _, name in names if of == case and name),
        quick=options.quick, resume=options.resume, rounds=ROUNDS, say=lambda text: print(text, flush=True),
    )  # fmt: skip


def measure(options: Namespace, folder: Path, setup: Setup) -> int:
    """One case in this process; the exit code."""
    torch.manual_seed(0)
    (case,) = {name.partition("/")[0] for name in options.only}
    stage = Stage(
        bench=bench_of(options, folder, case, options.commit), setup=setup, variant=options.compile,
        marker=folder / f"{case}.trying" if options.compile is None else None,
        until=time.monotonic() + options.seconds, without=json.loads(options.without), even_red=options.even_red,
    )  # fmt: skip
    for work in import_module(f"benchmarks.gpu.{case}").works(setup):
        stage.measure(work)
    return int(stage.bench.red > 0 or stage.left > 0)
