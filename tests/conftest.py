"""Fixtures of every test: checks of shape names, fixed seeds, NaN in unwritten memory, one thread, an own cache."""

import gc
import os
import random
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

# before torch is imported, and for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports Triton: without a GPU its kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

from exlstm.runtime import cache
from shape_names import watch

# a job in a shell's background ignores Ctrl-C, and one of nohup hanging up: the processes that tests start would, too
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# until all tests are collected: nothing of them is garbage, and looking for some takes a third of the time
gc.disable()
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
    # a test before may have left another number, with which sums round differently
    torch.set_num_threads(1)
    # with this on, torch.empty holds NaN until it is written; on a GPU it would forbid kernels that have no such form
    torch.use_deterministic_algorithms(not torch.cuda.is_available())


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Redirects the cache of measurements to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "folder", lambda: tmp_path_factory.getbasetemp() / "cache")
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--transformers-sdist", metavar="FILE", help="source distribution of transformers, whose tests run on our model"
    )


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of Triton kernels with `gpu` where there is a GPU; elsewhere they run through the interpreter."""
    mark_breadth(items)
    for item in items:
        if torch.cuda.is_available() and item.path.stem.endswith("_triton"):
            item.add_marker(pytest.mark.gpu)
        given = getattr(getattr(item, "obj", None), "hypothesis", None)
        if given is not None and watches(item) and not hasattr(given.inner_test, "watched"):
            given.inner_test = watched_once(given.inner_test)
    # ten thousand tests and what they import stay to the end: a collection of garbage need not look at them
    gc.collect()
    gc.freeze()
    gc.enable()


def mark_breadth(items: list[pytest.Item]) -> None:
    """Marks cases of a test with `breadth(n)` as slow, but for the first n."""
    seen: Counter[tuple[object, str]] = Counter()
    for item in items:
        if (breadth := item.get_closest_marker("breadth")) is not None:
            test = item.path, getattr(item, "originalname", item.name)
            seen[test] += 1
            if seen[test] > breadth.args[0]:
                item.add_marker(pytest.mark.slow)


def watches(item: pytest.Item) -> bool:
    """Whether shape names are checked in a test: only where tensors carry suffixes, since it slows every call by half.

    Of a test's cases one in four is, chosen by its name: they call the same functions, and other tests do, too.
    """
    cases = getattr(item, "callspec", None) is not None
    if cases and zlib.crc32(item.nodeid.encode()) % 4:
        return False
    if item.path.stem.endswith(("_triton", "_tracing")):
        # calls inside of Triton's interpreter and torch's compiler would be checked too: one test is enough
        return item.name == "test_names"
    return item.path.parent.name in {"ops", "nn", "mixers", "models", "rnn", "train", "infer", "forecast"}


def watched_once(inner_test: Callable[..., None]) -> Callable[..., None]:
    """Wraps the test of a @given to check names in its first example: others differ in sizes only."""
    seen: list[None] = []

    @wraps(inner_test)
    def watched(*arguments: Any, **options: Any) -> None:
        if seen:
            return inner_test(*arguments, **options)
        seen.append(None)
        with checking_names():
            return inner_test(*arguments, **options)

    vars(watched)["watched"] = True
    return watched


@contextmanager
def checking_names() -> Iterator[None]:
    """Fails the test if a name within was wrong."""
    with watch() as found:
        yield
    if found:
        pytest.fail("names that do not tell the truth about shapes:\n  " + "\n  ".join(found[:8]), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    if not watches(item) or hasattr(getattr(item, "obj", None), "hypothesis"):
        return (yield)
    with checking_names():
        return (yield)
