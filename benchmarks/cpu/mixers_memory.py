"""Peak memory of a training step as sequences grow, as in `memory`, for every mixer whose state has one size.

2 blocks of width 256, 8192 tokens a step, in sequences of 512 and of 8192; the median of three child processes each.
"""

from functools import partial

from benchmarks.bench import Bench
from benchmarks.cpu.memory import OURS, VOCABULARY, build, peaks
from benchmarks.cpu.mixers_length import constant_state
from benchmarks.cpu.training import batch
from benchmarks.gate import check_training


def run(bench: Bench) -> None:
    """Measures what `memory` does not."""
    lengths, tokens, width = ((64, 128), 256, 64) if bench.quick else ((512, 8192), 8192, 256)
    names = [name for name in constant_state() if name not in OURS and bench.wants(name)]
    # a step takes a process, so two mixers show that this runs
    for name in names[:2] if bench.quick else names:
        about = f"peak of a step of {tokens} tokens beyond model and optimiser, 2 blocks, width {width}"
        take = partial(peaks, name, lengths, tokens, width, 1 if bench.quick else 3)
        bench.record(name, about, take, lambda name=name: check_training(build(name, width), batch(VOCABULARY, 2, 160)))
