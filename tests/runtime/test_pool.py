"""The pool of spinning threads, and replays on it or on torch's threads: every item once, for any number of callers."""

import subprocess
import sys
import threading
import time
from array import array
from concurrent.futures import ThreadPoolExecutor

import pytest
from counting import Counting, count_items

from exlstm.runtime.cpu import graph, tasks
from exlstm.runtime.cpu.graph import Replayer
from exlstm.runtime.cpu.pool import SpinPool
from exlstm.runtime.cpu.tasks import BACKOFF_TASKS


@pytest.fixture
def pool():
    pool = SpinPool(3)
    yield pool
    pool.stop()
    assert not any(thread.is_alive() for thread in pool.threads)


def run(pool, counting, blocks=None):
    return pool.run(count_items.address, counting.address, counting.items, blocks or counting.items)


def test_every_item_once(pool):
    for items in [*range(1, 20), 1000] * 20:
        counting = Counting(items, work=20)
        assert run(pool, counting)
        assert counting.all_are(1)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 50])
def test_blocks_cover_all_items(pool, blocks):
    counting = Counting(50)
    assert run(pool, counting, blocks)
    assert counting.all_are(1)


def test_every_item_once_where_all_threads_want_the_same(pool):
    """Blocks of no work at all: taking them is all that happens."""
    for _ in range(10):
        counting = Counting(100_000)
        pool.backoff = 0
        assert run(pool, counting)
        assert counting.all_are(1)


def test_other_threads_work_too(pool):
    """The caller alone would not have waited: while one block takes long, others compute the rest."""
    seen = set()
    for _ in range(200):
        counting = Counting(50, work=2000)
        assert run(pool, counting)
        assert counting.all_are(1)
        seen.add(pool.num_sleeping)
    assert min(seen) < len(pool.threads), "no thread woke"


def test_threads_fall_asleep_and_wake(pool):
    for _ in range(5):
        counting = Counting(40, work=500)
        run(pool, counting)
        assert counting.all_are(1)
        deadline = time.monotonic() + 20
        while pool.num_sleeping < len(pool.threads) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert pool.num_sleeping == len(pool.threads)


def test_many_callers(pool):
    """A caller that finds the pool busy works alone; no item is lost or computed twice."""
    wrong = []

    def call(items):
        for _ in range(300):
            counting = Counting(items, work=30)
            if not run(pool, counting) or not counting.all_are(1):
                wrong.append(counting)

    threads = [threading.Thread(target=call, args=(items,)) for items in (3, 17, 64, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_stopped_pool_works_alone(pool):
    pool.stop()
    counting = Counting(9)
    assert run(pool, counting)
    assert counting.all_are(1)


QUIET = """
import threading, torch
from exlstm.runtime.cpu import region
region.gnu_openmp = lambda: None
import exlstm
torch.set_num_threads({threads})
from exlstm.ops.linear import linear
with torch.no_grad():
    linear(torch.ones(1, 2000), torch.ones(2000, 2000), backend="numba")
print(sum(t.name.startswith("exlstm") for t in threading.enumerate()))
"""


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_no_thread_that_torch_was_not_given(threads):
    """And the process ends by itself, with the pool awake or asleep."""
    done = subprocess.run(
        [sys.executable, "-c", QUIET.format(threads=threads)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{threads - 1}\n"), done.stderr


@pytest.mark.slow
def test_tasks_after_one_that_was_waited_for_are_run_serially(pool):
    """As when another process takes the core of a thread: any waiting at all counts here. All items are computed."""
    pool.spin_limit, counting = 10, Counting(8, work=100_000)  # a tenth of that: one spin
    turns, end = 0, time.monotonic() + 60
    while pool.backoff == 0 and time.monotonic() < end:  # at once, but where other processes have all cores
        run(pool, counting)
        turns += 1
    assert counting.all_are(turns)
    assert pool.backoff == BACKOFF_TASKS, "no thread was in the middle of a block when the caller had run out of them"
    for left in reversed(range(BACKOFF_TASKS)):
        run(pool, counting)
        assert pool.backoff == left
    assert counting.all_are(turns + BACKOFF_TASKS)


def replay(replayer, tasks_of, threads):
    """Replays a table of tasks: (counting, whether threads share it)."""
    table = array("q", [
        number
        for counting, parallel in tasks_of
        for number in (count_items.address, counting.address, counting.items, counting.items, parallel)
    ])  # fmt: skip
    replayer.replay(table.buffer_info()[0], len(tasks_of), threads)


WAYS = {
    "torch's threads": lambda monkeypatch: None,
    "a pool": lambda monkeypatch: monkeypatch.setattr(graph, "usable_openmp", lambda: None),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_replay_computes_every_item_of_every_task_once(way, threads, monkeypatch):
    WAYS[way](monkeypatch)
    replayer = Replayer()
    for _ in range(20):
        countings = [(Counting(items, work=20), parallel) for items in (1, 3, 40, 1000) for parallel in (0, 1)]
        replay(replayer, countings, threads)
        assert all(counting.all_are(1) for counting, _ in countings)


def test_several_replays_at_once():
    """Each with a region of its own, from several threads of Python."""

    def call(_number):
        countings = [(Counting(50, work=20), 1) for _ in range(30)]
        replay(Replayer(), countings, 2)
        return all(counting.all_are(1) for counting, _ in countings)

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(16)))


def test_tasks_come_one_after_another():
    """The second sees what the first wrote, on whatever threads they ran: it counts further."""
    counting = Counting(64, work=50)
    replay(Replayer(), [(counting, 1)] * 200, 2)
    assert counting.all_are(200)


def test_control_blocks_do_not_share_a_cache_line():
    places = [tasks.WORD, tasks.FUNCTION, tasks.DONE, tasks.FAILED, tasks.STOP]
    _, address = tasks.control_block()
    assert address % tasks.LINE == 0
    assert len({place // tasks.LINE for place in places}) == len(places)
    assert max(places) + 8 <= tasks.CONTROL_BYTES
