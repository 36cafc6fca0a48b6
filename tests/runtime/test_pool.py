"""The team that shares out pieces: every piece once, however many call, sleep and wake."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from exlstm.runtime.cpu import player as player_page
from exlstm.runtime.cpu import team as team_page
from exlstm.runtime.cpu.jit import compiled
from exlstm.runtime.cpu.jobs import REST, add, address_of, load
from exlstm.runtime.cpu.player import Player
from exlstm.runtime.cpu.team import Team


def _count(arguments, piece):
    """Adds one to the counter of this piece, after some work."""
    for n in range(load(arguments)):
        add(arguments + 8, n)
    add(arguments + 16 + 8 * piece, 1)


count = compiled(_count)


def counter(arguments, piece):
    count(arguments, piece)


COUNTER = address_of(counter)


@pytest.fixture
def team():
    team = Team(3)
    yield team
    team.dismiss()
    assert not any(thread.is_alive() for thread in team.threads)


def job(pieces, work=0):
    """Arguments: how long a piece takes, a place for it, and a counter per piece."""
    arguments = np.zeros(2 + pieces, np.int64)
    arguments[0] = work
    return arguments


def test_every_piece_once(team):
    for pieces in [*range(1, 20), 1000] * 20:
        arguments = job(pieces, work=20)
        team.run(COUNTER, arguments.ctypes.data, pieces)
        assert (arguments[2:] == 1).all()


def test_every_piece_once_where_all_want_the_same(team):
    """Pieces of no work at all: taking them is all that happens."""
    for _ in range(10):
        arguments = job(100_000)
        team.rest = 0
        team.run(COUNTER, arguments.ctypes.data, 100_000)
        assert (arguments[2:] == 1).all()


def test_others_work_too(team):
    """The caller alone would not have waited for anybody: while one piece takes long, others do the rest."""
    seen = set()
    for _ in range(200):
        arguments = job(50, work=2000)
        before = team.control
        team.run(COUNTER, arguments.ctypes.data, 50)
        assert (arguments[2:] == 1).all()
        seen.add(team.sleepers)
        assert team.control == before
    assert min(seen) < len(team.threads), "nobody woke"


def test_the_team_falls_asleep_and_wakes(team):
    for _ in range(5):
        arguments = job(40, work=500)
        team.run(COUNTER, arguments.ctypes.data, 40)
        assert (arguments[2:] == 1).all()
        deadline = time.monotonic() + 20
        while team.sleepers < len(team.threads) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert team.sleepers == len(team.threads)


def test_many_callers(team):
    """Whoever finds the team busy works alone; nobody's pieces are lost or done twice."""
    wrong = []

    def call(pieces):
        for _ in range(300):
            arguments = job(pieces, work=30)
            team.run(COUNTER, arguments.ctypes.data, pieces)
            if not (arguments[2:] == 1).all():
                wrong.append(arguments)

    threads = [threading.Thread(target=call, args=(pieces,)) for pieces in (3, 17, 64, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_dismissed_team_works_alone(team):
    team.dismiss()
    arguments = job(9)
    team.run(COUNTER, arguments.ctypes.data, 9)
    assert (arguments[2:] == 1).all()


QUIET = """
import threading, torch
import exlstm
torch.set_num_threads({threads})
model = exlstm.LM(exlstm.preset("laptop-tiny"))
from exlstm.ops.linear import linear
with torch.no_grad():
    linear(torch.ones(1, 600), torch.ones(600, 600), backend="numba")
print(sum(t.name.startswith("exlstm") for t in threading.enumerate()))
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_no_thread_that_torch_was_not_given(threads):
    """And the process ends by itself, with the team awake or asleep."""
    done = subprocess.run(
        [sys.executable, "-c", QUIET.format(threads=threads)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{threads - 1}\n"), done.stderr


def test_who_waited_long_rests(team, monkeypatch):
    """As when another process takes the core of a thread. Every piece is done all the same."""
    monkeypatch.setattr(team_page, "together", lambda *job: team_page.alone(*job[1:]) or team.patience)
    arguments = job(5)
    for turn in range(2 * (REST + 1)):
        team.run(COUNTER, arguments.ctypes.data, 5)
        assert (arguments[2:] == turn + 1).all()
        assert team.rest == REST - turn % (REST + 1)


def table_of(*jobs):
    """What `play` takes: (arguments, pieces, whether they are shared) of each job, and what has to stay alive."""
    numbers = [(COUNTER, x.ctypes.data, pieces, shared) for x, pieces, shared in jobs]
    return np.array(numbers, np.int64)


WAYS = {
    "torch's threads": lambda monkeypatch: None,
    "a team": lambda monkeypatch: monkeypatch.setattr(player_page, "gnu_openmp", lambda: None),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_player_plays_every_piece_of_every_job_once(way, threads, monkeypatch):
    WAYS[way](monkeypatch)
    player = Player()
    for _ in range(20):
        jobs = [(job(pieces, work=20), pieces, shared) for pieces in (1, 3, 40, 1000) for shared in (0, 1)]
        table = table_of(*jobs)
        player.play(table.ctypes.data, len(table), threads)
        assert all((x[2:] == 1).all() for x, _, _ in jobs)


def test_several_players_at_once():
    """Each with a region of its own, from several threads of Python."""

    def play(_number):
        player, jobs = Player(), [(job(50, work=20), 50, 1) for _ in range(30)]
        table = table_of(*jobs)
        player.play(table.ctypes.data, len(table), 2)
        return all((x[2:] == 1).all() for x, _, _ in jobs)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(play, range(16)))


def test_jobs_come_one_after_another():
    """The second sees what the first wrote, on whatever threads they ran: it counts further."""
    player, x = Player(), job(64, work=50)
    table = table_of(*[(x, 64, 1)] * 200)
    player.play(table.ctypes.data, len(table), 2)
    assert (x[2:] == 200).all()
