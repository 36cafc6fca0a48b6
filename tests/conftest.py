"""What holds in every test: names tell the truth about shapes, seeds are fixed, unwritten memory is NaN, one thread."""

import os
import random
from collections.abc import Generator

# before torch is imported, and for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports Triton: without a GPU its kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

from exlstm.ops import kept
from shape_names import watch

torch.set_num_threads(1)
settings.register_profile(
    "exlstm", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("exlstm")


@pytest.fixture(autouse=True)
def same_start() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    # with this on, torch.empty holds NaN until it is written; on a GPU it would forbid kernels that have no such form
    torch.use_deterministic_algorithms(not torch.cuda.is_available())


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Measurements that are kept go to a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "folder", lambda: tmp_path_factory.getbasetemp() / "cache")
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of Triton kernels run on a CPU through its interpreter; with a GPU they are its own, compiled."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.stem.endswith("_triton"):
                item.add_marker(pytest.mark.gpu)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    # every call that Triton's interpreter makes would be looked at too: there one test in a file is enough
    if item.path.stem.endswith("_triton") and item.name != "test_names":
        return (yield)
    with watch() as found:
        yield
    if found:
        pytest.fail("names that do not tell the truth about shapes:\n  " + "\n  ".join(found[:8]), pytrace=False)
