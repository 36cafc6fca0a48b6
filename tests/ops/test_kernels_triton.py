"""Triton's kernels are compiled for GPUs that are not there: what its interpreter accepts its compiler may not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this system")
SCRIPT = Path(__file__).with_name("compile_kernels.py")
MOST = {80: 163 << 10, 90: 227 << 10}  # bytes of shared memory of a block, A100 and H100


def compile_all(*arguments):
    """{kernel: bytes of shared memory}"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize(("kind", "capability"), [("bf16", 90)])
def test_small_kernels(kind, capability):
    found = compile_all(kind, capability, 24, 40, 32, 16)
    assert len(found) == 10
    assert max(found.values()) <= MOST[capability]


@pytest.mark.slow
@pytest.mark.parametrize("capability", MOST)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(("K", "V", "chunk"), [(128, 256, 128), (256, 512, 64), (64, 64, 256)])
def test_real_kernels(kind, capability, K, V, chunk):
    found = compile_all(kind, capability, K, V, chunk, 64)
    assert {name: count for name, count in found.items() if count > MOST[capability]} == {}
