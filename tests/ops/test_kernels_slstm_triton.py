"""The sLSTM's Triton kernels are compiled for GPUs that are not there: do they fit, do they use its matrix units?"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from exlstm.ops.slstm import scan_memory

pytest.importorskip("triton", reason="Triton has no wheel for this system")
SCRIPT = Path(__file__).with_name("compile_slstm.py")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# bytes of shared memory of a block: a card for games, an A100, an H100
SMALLEST, A100, H100 = 99 << 10, 163 << 10, 227 << 10


class Kernel(NamedTuple):
    """What `compile_slstm` says of it."""

    shared: int
    registers: int
    spilled: int
    wgmma: int
    mma: int
    reads: int


def compile_all(*arguments):
    """{name: Kernel}"""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: Kernel(*map(int, rest)) for name, *rest in map(str.split, done.stdout.splitlines())}


def memory(kind, units):
    return scan_memory(torch.empty(1, units, 4, units, dtype=DTYPES[kind], device="meta"))


def check_scan(found, kind, capability, units):
    """It takes no more than is said, spills next to nothing, and R is read before the loop."""
    for name in ("forward_kernel", "backward_kernel"):
        kernel = found[name]
        assert kernel.shared <= memory(kind, units), name
        assert kernel.spilled <= 64, f"{name}: {kernel}"
        assert kernel.reads == 0, name
        if kind != "fp32":
            assert (kernel.wgmma if capability == 90 and units >= 64 else kernel.wgmma + kernel.mma) > 0, name


def check_steps(found, kind):
    for name in ("forward_step", "backward_step"):
        kernel = found[name]
        assert kernel.shared <= SMALLEST, name
        assert kernel.spilled == 0, f"{name}: {kernel}"
        assert kind == "fp32" or kernel.wgmma + kernel.mma > 0, name


@pytest.mark.parametrize(("batch", "units"), [pytest.param(1, 16, marks=pytest.mark.slow), (2, 64)])
def test_small_kernels(batch, units):
    found = compile_all("bf16", 90, batch, units, "scan", "steps")
    check_scan(found, "bf16", 90, units)
    check_steps(found, "bf16")


def test_what_fits_where():
    assert memory("bf16", 128) <= H100 < min(memory("bf16", 129), memory("fp32", 65))
    assert memory("bf16", 65) == memory("fp16", 128) > A100 >= memory("fp32", 64)
    assert memory("fp32", 64) > SMALLEST >= max(memory("bf16", 64), memory("fp32", 32))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 4000])
@pytest.mark.parametrize(
    ("kind", "capability", "units"),
    [("bf16", 90, 128), ("fp16", 90, 100), ("bf16", 90, 64), ("fp32", 90, 64), ("bf16", 80, 64), ("fp32", 80, 64),
     ("fp32", 80, 32), ("bf16", 80, 5)],
)  # fmt: skip
def test_scans(kind, capability, units, batch):
    check_scan(compile_all(kind, capability, batch, units, "scan"), kind, capability, units)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 64])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kind", "units"), [("bf16", 1024), ("fp16", 300), ("fp32", 512)])
def test_steps(kind, capability, units, batch):
    check_steps(compile_all(kind, capability, batch, units, "steps"), kind)
