"""Startup times: the import, and the first use of each compiled kernel.

Fresh processes, in turn. The first use is timed in a copy of the package whose kernels were never compiled, and then
again and again in the same copy, where they are read from the disk.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ROOT
from benchmarks.bench import Bench
from benchmarks.harness import rounded

BEGIN = """
import time, torch, exlstm
from exlstm.ops.slstm import slstm
from exlstm.ops.mlstm import mlstm
torch.manual_seed(0)
"""
END = "\nprint(time.perf_counter() - began)"
SLSTM = "x, r = torch.randn(4, 32, 4, 4, 16), torch.randn(4, 16, 4, 16)\n"
MLSTM = "q, k, v, i, f = (torch.randn(s) for s in [(1, 64, 4, 32)] * 3 + [(1, 64, 4)] * 2)\n"
MODEL = "model = exlstm.LM(exlstm.preset('laptop-tiny'))\n"
START = "began = time.perf_counter()\n"
FIRST_USES = {
    "slstm_forward": SLSTM + START + "with torch.no_grad(): slstm(x, r)",
    "slstm_forward_backward": SLSTM + START + "slstm(x.requires_grad_(), r.requires_grad_())[0].sum().backward()",
    "mlstm_forward": MLSTM + START + "with torch.no_grad(): mlstm(q, k, v, i, f)",
    "mlstm_forward_backward": MLSTM + START + "mlstm(q.requires_grad_(), k, v, i, f)[0].sum().backward()",
    "mlstm_one_step": MLSTM + START + "with torch.no_grad(): mlstm(*(x[:, :1] for x in (q, k, v, i, f)))",
    "training_step": MODEL + START + "model(torch.zeros(2, 64, dtype=torch.long))[0].sum().backward()",
    "first_token": MODEL + START + "with torch.inference_mode(): model(torch.zeros(1, 1, dtype=torch.long))",
}


def run(bench: Bench) -> None:
    """Times imports and first uses."""
    rounds = 2 if bench.quick else 11
    bench.record("import", "a fresh process that imports and ends, seconds", partial(imports, rounds), dict)
    uses = ("slstm_forward",) if bench.quick else FIRST_USES
    for name in uses:
        bench.record(
            f"first_{name}", f"first call in a fresh process, seconds: {name}",
            partial(first_use, FIRST_USES[name], 2 if bench.quick else 7), dict,
        )  # fmt: skip


def imports(rounds: int) -> dict[str, Any]:
    """Seconds of whole processes, in turn, after one of each that fills the page cache."""
    statements = {"import torch": "import torch", "import exlstm": "import exlstm"}
    taken: dict[str, list[float]] = {name: [] for name in statements}
    for number in range(rounds + 1):
        for name, statement in statements.items():
            seconds = timed(lambda statement=statement: subprocess.run([sys.executable, "-c", statement], check=True))
            if number:
                taken[name].append(seconds)
    pairs = zip(taken["import exlstm"], taken["import torch"], strict=True)
    return {
        "repeats": rounds,
        "seconds": {name: rounded(median(values)) for name, values in taken.items()},
        "over_torch": rounded(median(taken["import exlstm"]) / median(taken["import torch"])),
        "over_torch_by_round": rounded(median(a / b for a, b in pairs)),
    }


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def first_use(code: str, rounds: int) -> dict[str, Any]:
    """Seconds of the first call: without a cache (once), and with it (median)."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src" / "exlstm", Path(folder) / "exlstm", ignore=shutil.ignore_patterns("__pycache__"))
        caches = {name: str(Path(folder) / "cache") for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
        environment = {**os.environ, **caches, "PYTHONPATH": folder}
        command = [sys.executable, "-c", BEGIN + code + END]

        def once() -> float:
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
            return float(done.stdout.splitlines()[-1])

        uncached, cached = once(), [once() for _ in range(rounds)]
    return {"repeats": rounds, "seconds": {"uncached": rounded(uncached), "cached": rounded(median(cached))}}
