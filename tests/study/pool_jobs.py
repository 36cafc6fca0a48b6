"""Jobs for tests of the pool and of the cluster; workers import this module by its name."""

import os
import signal
import time
from pathlib import Path

import torch

from exlstm.study.pool import PoolJob


def square(number, report):
    report(0.5, "half")
    return {"square": number * number}


def who(_, report):
    return {"process": os.getpid(), "device": report.device, "threads": torch.get_num_threads()}


def change_threads(number, report):
    torch.set_num_threads(number)
    return {}


def fail(text, report):
    raise RuntimeError(text)


def leave_by_sys_exit(code, report):
    raise SystemExit(code)


def leave(code, report):
    os._exit(code)


def unpicklable(_, report):
    return {"row": lambda: 1}


def chatter(times, report):
    for k in range(times):
        report(k / times, "x" * 1000)
    return {"times": times}


def leave_a_child_behind(folder, report):
    """Exits while a forked child lives on with its open files, until a file tells the child to end."""
    if os.fork() == 0:
        try:
            wait_for(Path(folder) / "let go")
        except TimeoutError:
            (Path(folder) / "never let go").touch()
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path, seconds=60.0):
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(str(path))
        time.sleep(0.01)


def meet(argument, report):
    """Ends only if another job runs at the same time."""
    folder, mine, other = argument
    (Path(folder) / mine).touch()
    wait_for(Path(folder) / other)
    return who(None, report)


def meet_and_fail(argument, report):
    meet(argument, report)
    raise RuntimeError(report.device)


def forever(folder, report):
    """A busy loop that never reads its pipe."""
    path = Path(folder) / f"{os.getpid()}.tmp"
    path.touch()
    path.rename(path.with_suffix(".pid"))
    (Path(folder) / "busy").touch()
    while True:
        sum(range(10_000))


def mixed_jobs():
    """Jobs that succeed and jobs that fail, to compare orders and places."""
    squares = [PoolJob(f"square {k}", square, k) for k in range(4)]
    return [*squares[:2], PoolJob("raises", fail, "first line\nsecond line"), *squares[2:]]
