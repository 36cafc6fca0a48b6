"""Peak memory of a training step as sequences grow, with the same number of tokens in each step.

A child process per length builds the model and its optimiser, takes one step of few tokens, notes its memory, resets
the kernel's high-water mark, takes two steps and reads the mark. Counted is what a step needs beyond what was there.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.bench import Bench
from benchmarks.cpu.train_llama import llama_like
from benchmarks.cpu.training import batch, plain_step
from benchmarks.gate import check_training
from benchmarks.harness import rounded
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern

VOCABULARY = 256
OURS = {"mlstm": "mmmm", "one_slstm": "mmms", "mlstm_large": "MMMM"}


def run(bench: Bench) -> None:
    """Measures our mixes of blocks, and Llama for comparison."""
    lengths, tokens, width = ((64, 128), 256, 64) if bench.quick else ((512, 2048, 8192), 8192, 256)
    for name in (*OURS, "llama"):
        about = (
            f"peak of a step of {tokens} tokens beyond model and optimiser, {OURS.get(name, 'Llama')}, width {width}"
        )
        take = partial(peaks, name, lengths, tokens, width, 1 if bench.quick else 3)
        bench.record(name, about, take, partial(check, name, width))


def peaks(name: str, lengths: tuple[int, ...], tokens: int, width: int, children: int) -> dict[str, Any]:
    """MB by length, the median of some children, and the largest over that of the shortest sequences."""
    found = {T: median(in_a_child(name, T, tokens, width) for _ in range(children)) for T in lengths}
    return {
        "repeats": children,
        "megabytes": {str(T): rounded(value) for T, value in found.items()},
        "largest_over_shortest": rounded(max(found.values()) / found[lengths[0]]),
    }


def in_a_child(name: str, length: int, tokens: int, width: int) -> float:
    command = [sys.executable, "-m", "benchmarks.cpu.memory", name, str(length), str(tokens), str(width)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def check(name: str, width: int) -> dict[str, Any]:
    """The accuracy rule, for models of ours."""
    if name not in OURS:
        return {}
    return check_training(build(name, width), batch(VOCABULARY, 2, 160))


def build(name: str, width: int) -> Any:
    """The model of this name: a mix of blocks, Llama, or two blocks of a mixer."""
    torch.manual_seed(0)
    if name == "llama":
        return llama_like(width)
    return LM(lm_from_pattern(OURS.get(name, f"{name}*2"), vocab_size=VOCABULARY, width=width))


def child(name: str, length: int, tokens: int, width: int) -> float:
    """Megabytes that a step needs beyond what the process held before it."""
    model = build(name, width)
    plain_step(model, batch(VOCABULARY, 1, 64))()
    step = plain_step(model, batch(VOCABULARY, tokens // length, length))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the memory in use
    for _ in range(2):
        step()
    return (status("VmHWM") - before) / 2**10


def status(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], *(int(x) for x in sys.argv[2:]))))
