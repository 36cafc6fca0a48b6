"""Triton's kernels are compiled for GPUs that are not there: what its interpreter accepts its compiler may not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this system")
HERE = Path(__file__).parent
ROOM = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}  # bytes of shared memory of a program: A100, RTX 3090, H100
WITH_PRODUCTS = {"state_kernel", "output_kernel", "state_gradient_kernel", "gradient_kernel"}


def printed_by(script, *arguments):
    """The words of each line that the script prints, in a process that does not interpret kernels."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def check(capability, kind, *sizes):
    found = printed_by("compile_kernels.py", kind, capability, ROOM[capability], *sizes)
    assert len(found) == 8
    assert {name: shared for name, shared, _ in found if int(shared) > ROOM[capability]} == {}
    # products in float32 as IEEE has them are sums of products of single numbers
    fast = {name for name, _, products in found if int(products)}
    assert fast == (WITH_PRODUCTS if kind == "bf16" else set())


def test_everything_up_to_the_launch():
    """For sizes of 1, which Triton treats as constants where it is not told otherwise; both cells, every kernel."""
    assert len(printed_by("compile_launches.py")) == 13


@pytest.mark.slow
def test_everything_up_to_the_launch_at_many_sizes():
    """A form for each dtype and width, but none for lengths, batches and heads."""
    forms = dict(printed_by("compile_launches.py", "everything"))
    assert len(forms) == 13
    assert int(forms["gradient_kernel"]) == 9


@pytest.mark.slow
@pytest.mark.parametrize("capability", ROOM)
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(("K", "V", "chunk"), [(24, 40, 32), (128, 256, 128), (256, 512, 64), (512, 512, 128)])
def test_real_kernels(kind, capability, K, V, chunk):
    check(capability, kind, K, V, chunk)
