"""Jobs on a Ray cluster, in a process of its own: Ray changes the process that it is in, and reads settings on import.

Called with the address and a folder; prints what happened as JSON.
"""

import contextlib
import json
import sys
from pathlib import Path

import pool_jobs

from exlstm.study.cluster import run_on_ray
from exlstm.study.pool import Failed, Finished, PoolJob


def jobs(folder):
    yield PoolJob("a", pool_jobs.meet, (folder, "a", "b"))
    yield PoolJob("b", pool_jobs.meet, (folder, "b", "a"))
    yield from pool_jobs.mixed_jobs()
    yield PoolJob("exit", pool_jobs.leave, 3)
    yield PoolJob("who", pool_jobs.who, None)
    yield PoolJob("left", pool_jobs.forever, folder)


def main(address, folder):
    """Leaves when only the last job goes on."""
    told, left = [], len(list(jobs(folder))) - 1
    with contextlib.closing(run_on_ray(jobs(folder), address=address)) as events:
        while left:
            event = next(events)
            told.append([type(event).__name__, *event])
            left -= isinstance(event, Finished | Failed)
        pool_jobs.wait_for(Path(folder) / "busy")
    print("told " + json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
