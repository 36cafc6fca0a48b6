"""Work shared out among threads: every item once, in torch's threads or plain ones, also in a forked child."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident

import pytest
import torch

from exlstm.runtime import threads
from exlstm.runtime.threads import share_out

WAYS = ["torch's threads", "plain threads"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    if request.param == "plain threads":
        monkeypatch.setattr(threads, "gnu_openmp", lambda: None)
    elif threads.gnu_openmp() is None:
        pytest.skip("torch came with another OpenMP")
    return request.param


@pytest.fixture(autouse=True)
def many_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("items", [1, 2, 3, 7])
@pytest.mark.parametrize("most", [None, 1, 2, 9])
def test_every_item_once(way, items, most):
    seen = []
    share_out(lambda first, last, what: seen.extend((what, n) for n in range(first, last)), items, "x", threads=most)
    assert sorted(seen) == [("x", n) for n in range(items)]


def test_pieces_run_side_by_side(way):
    """Each waits for the others: one thread alone would never come to an end."""
    barrier, names = Barrier(3, timeout=20), set()

    def scan(first, last):
        barrier.wait()
        names.add(get_ident())

    share_out(scan, 3)
    assert len(names) == 3


def test_an_exception_comes_back_when_all_are_done(way):
    done = []

    def scan(first, last):
        if first == 1:
            raise KeyError("the second piece")
        done.append(first)

    with pytest.raises(KeyError, match="the second piece"):
        share_out(scan, 3)
    assert sorted(done) == [0, 2]


def test_several_callers_at_once(way):
    def call(number):
        seen = []
        for _ in range(20):
            share_out(lambda first, last: seen.extend(range(first, last)), 5)
        return sorted(seen)

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(call, range(4))) == [sorted(list(range(5)) * 20)] * 4


def in_child(queue):
    seen = []
    share_out(lambda first, last: seen.extend(range(first, last)), 4)
    queue.put(sorted(seen))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own(way):
    share_out(lambda first, last: None, 4)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=20) == [0, 1, 2, 3]
    finally:
        child.kill()
        child.join()
