"""Triton's kernels are compiled for GPUs that are not there: what its interpreter accepts its compiler may not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this system")
SCRIPT = Path(__file__).with_name("compile_kernels.py")
ROOM = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}  # bytes of shared memory of a program: A100, RTX 3090, H100
WITH_PRODUCTS = {"state_kernel", "output_kernel", "state_gradient_kernel", "gradient_kernel"}


def compile_all(*arguments):
    """{kernel: (bytes of shared memory, matrix instructions)}"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = map(str.split, done.stdout.splitlines())
    return {name: (int(shared), int(products)) for name, shared, products in lines}


def check(capability, kind, *sizes):
    found = compile_all(kind, capability, ROOM[capability], *sizes)
    assert len(found) == 8
    assert {name: shared for name, (shared, _) in found.items() if shared > ROOM[capability]} == {}
    # products in float32 as IEEE has them are sums of products of single numbers
    fast = {name for name, (_, products) in found.items() if products}
    assert fast == (WITH_PRODUCTS if kind == "bf16" else set())


@pytest.mark.parametrize(("kind", "capability"), [("bf16", 90)])
def test_small_kernels(kind, capability):
    check(capability, kind, 24, 40, 32)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ROOM)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(("K", "V", "chunk"), [(128, 256, 128), (256, 512, 64), (64, 64, 256), (512, 512, 128)])
def test_real_kernels(kind, capability, K, V, chunk):
    check(capability, kind, K, V, chunk)
