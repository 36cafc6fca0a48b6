"""The Triton kernels of the scans are compiled for GPUs that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this system")
SCRIPT = Path(__file__).with_name("compile_scans.py")


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_kernels_fit_and_spill_next_to_nothing(capability):
    """Both directions, with rows and without; nothing but what is fetched ahead lies in shared memory."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(capability)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert {(op, name) for op, name, *_ in found} == {
        (op, name) for op in ("scan", "selective_scan") for name in ("forward_kernel", "backward_kernel")
    }
    for op, name, shared, _, spilled in found:
        assert int(shared) <= 48 << 10, f"{op} {name}: {shared} bytes"
        assert int(spilled) <= 64, f"{op} {name} spills {spilled} bytes"
