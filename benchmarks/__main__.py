"""python -m benchmarks cpu | gpu | report: measure everything (or --only some of it), and write tables and pictures.

Every case runs in a process of its own: one that fails leaves the others alone.
"""

import argparse
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from benchmarks import ROOT, mixers_report
from benchmarks.bench import Bench
from benchmarks.cpu import BY_NAME, CASES
from benchmarks.gpu import CASES as GPU_CASES
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu import supervise
from benchmarks.gpu.device import here, slug
from benchmarks.gpu.work import Setup
from benchmarks.machine import commit, machine
from benchmarks.report import write_report
from benchmarks.store import ALL_RESULTS, RESULTS, Store

QUICK = ROOT / "runs" / "benchmarks"  # ignored by git: numbers of tiny sizes are not results


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 1 if a case was refused or failed."""
    options = parser().parse_args(arguments)
    if options.command == "report":
        paths = write_report(options.out or RESULTS) + mixers_report.write_report(options.out or RESULTS)
        for path in paths + ([] if options.out else gpu_report.write_report(ALL_RESULTS)):
            print(f"written: {path}")
        return 0
    if options.command == "gpu" or options.device == "gpu":
        return on_gpu(options)
    folder = Path(options.out or (QUICK if options.quick else RESULTS)).resolve()
    if options.command == "case":
        return measure(options, folder)
    return every_case(options, folder)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for name, about in {
        "cpu": "measure on the CPU",
        "gpu": "measure on an NVIDIA GPU",
        "case": "measure one case in this process",
        "report": "write the docs",
    }.items():
        command = commands.add_parser(name, help=about)
        command.add_argument(
            "--out", type=Path, help="the folder of the results (default: that of the machine, in benchmarks/results)"
        )
        if name == "report":
            continue
        command.add_argument("--only", nargs="+", default=[], metavar="NAME", help="CASE or CASE/MEASUREMENT")
        command.add_argument("--quick", action="store_true", help="tiny sizes, 2 repeats: that everything runs")
        command.add_argument("--resume", action="store_true", help="leave out what was measured at this commit")
        command.add_argument("--commit", default=None, help=argparse.SUPPRESS)
        command.set_defaults(device="cpu")
        if name != "gpu":
            command.add_argument("--threads", type=int, default=None, help="threads of torch (default: the cores)")
        if name != "cpu":
            command.add_argument(
                "--even-red", action="store_true", help="time what fails its check, too; it stays refused"
            )
    commands.choices["gpu"].add_argument(
        "--minutes", type=float, default=supervise.MINUTES, help="no measurement begins later (default: %(default)g)"
    )
    child = commands.choices["case"]
    child.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help=argparse.SUPPRESS)
    child.add_argument("--seconds", type=float, default=float("inf"), help=argparse.SUPPRESS)
    child.add_argument("--without", default="{}", help=argparse.SUPPRESS)
    child.add_argument("--compile", default=None, help=argparse.SUPPRESS)
    return top


def on_gpu(options: argparse.Namespace) -> int:
    """All cases, or the one of this process; not without a GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(supervise.NO_GPU)
    results = ALL_RESULTS / slug(torch.cuda.get_device_name())
    folder = Path(options.out or (QUICK / "gpu" if options.quick else results)).resolve()
    if options.command == "case":
        return supervise.measure(options, folder, Setup(here(), tiny=options.quick))
    return supervise.every_case(options, folder, wanted(options, GPU_CASES), options.commit or commit() or "unknown")


def wanted(options: argparse.Namespace, known: tuple[str, ...]) -> list[str]:
    """The cases that were asked for, in order."""
    cases = list(dict.fromkeys(name.partition("/")[0] for name in options.only)) or list(known)
    if unknown := [case for case in cases if case not in known]:
        raise SystemExit(f"there is no case {unknown[0]!r}; the cases are {', '.join(known)}.")
    return cases


def every_case(options: argparse.Namespace, folder: Path) -> int:
    """Each case in a child process, in order; what they print is shown as it comes."""
    cases = wanted(options, (*CASES, *BY_NAME) if options.only else CASES)
    # once, now: results written on the way must not change what the checkout is called
    code = options.commit or commit() or "unknown"
    began, failed = time.monotonic(), []
    for case in cases:
        command = [sys.executable, "-m", "benchmarks", "case", "--out", str(folder), "--commit", code]
        command += ["--only", *([n for n in options.only if n.partition("/")[0] == case] or [case])]
        command += ["--quick"] * options.quick + ["--resume"] * options.resume
        command += [] if options.threads is None else ["--threads", str(options.threads)]
        print(f"== {case} ({(time.monotonic() - began) / 60:.1f} min)", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(case)
    print(f"== {(time.monotonic() - began) / 60:.1f} min; results in {folder}")
    if failed:
        print(f"refused or failed: {', '.join(failed)}")
    return int(bool(failed))


def measure(options: argparse.Namespace, folder: Path) -> int:
    """One case in this process."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    (case,) = {name.partition("/")[0] for name in options.only}
    store = Store(folder, case, machine())
    if store.other_machine:
        print(f"{store.path.name} holds results of another machine or other versions; it begins anew")
    measurements = tuple(name.partition("/")[2] for name in options.only if "/" in name)
    bench = Bench(
        case, store, commit=options.commit or commit(), only=measurements, quick=options.quick, resume=options.resume,
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    import_module(f"benchmarks.cpu.{case}").run(bench)
    return int(bench.red > 0)


if __name__ == "__main__":
    raise SystemExit(main())
