"""The delta rule's Triton kernels are compiled for GPUs that are not there: what its interpreter accepts may not be."""

import pytest
from test_kernels_triton import ROOM, printed_by

pytest.importorskip("triton", reason="Triton has no wheel for this system")


def check(capability, kind, K, V):
    found = dict(printed_by("compile_delta_rule.py", capability, kind, K, V))
    assert len(found) == 7
    assert {name: shared for name, shared in found.items() if int(shared) > ROOM[capability]} == {}


@pytest.mark.slow
def test_kernels_for_an_h100():
    check(90, "bf16", 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(("K", "V"), [(24, 40), (128, 128), (256, 512)])
def test_real_kernels(capability, kind, K, V):
    check(capability, kind, K, V)
