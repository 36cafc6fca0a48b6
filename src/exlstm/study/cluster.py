"""Independent runs on the nodes of a Ray cluster, with the jobs and events of `exlstm.study.pool`.

Nodes need the dependencies of exlstm in the same versions, and other packages that a job imports. exlstm itself is sent
to them from this checkout, with its changes.
"""

import importlib.util
import logging
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import exlstm
from exlstm.study.pool import (
    Event,
    Failed,
    Finished,
    PoolJob,
    ProgressReporter,
    RunProgress,
    Started,
    attempt,
    last_lines,
    pack,
)

SECONDS_BETWEEN_LOOKS = 0.5


def run_on_ray(
    jobs: Iterable[PoolJob | None], *, address: str, cpus: int = 1, gpus: int | None = None
) -> Generator[Event, None, None]:
    """Runs each job as a task of a Ray cluster, and gives the same events and rows as `run_local`.

    A job is taken from `jobs` (None: not now) when the cluster has room for it, and one more, which waits and so makes
    a cluster grow that grows on demand. A task whose process or node dies is a `Failed`, and is not tried again; Ray
    itself also prints a line about it. Closing the generator ends all tasks and disconnects; a "local" cluster ends.

    address: "auto" for the cluster that this machine is part of, "host:port", "ray://host:port" from outside of it, or
    "local" for one that is started here.
    cpus: of each task, and its number of threads.
    gpus: of each task; None is one if the cluster has any. A task's device is "cuda:0", the first that Ray shows it.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("runs on a cluster need Ray, which is not installed; install exlstm[cluster].")
    if cpus < 1:
        raise ValueError(f"cpus is {cpus}; each run needs at least one.")
    return _run(iter(jobs), address, cpus, gpus)


def _run(jobs: Iterator[PoolJob | None], address: str, cpus: int, gpus: int | None) -> Generator[Event, None, None]:
    with _connected(address) as ray:
        if gpus is None:
            gpus = int("GPU" in ray.cluster_resources())
        # a lost mailbox costs reports of progress, and no row
        mailbox = ray.remote(_Mailbox).options(num_cpus=0).remote()
        device = "cuda:0" if gpus else "cpu"
        task = ray.remote(_on_node).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        running: dict[Any, PoolJob] = {}
        told: set[str] = set()  # running jobs whose `Started` was yielded
        post = mailbox.take.remote()
        try:
            while True:
                while len(running) <= _room(ray.cluster_resources(), cpus, gpus):
                    job = next(jobs, None)
                    if job is None:
                        break
                    running[task.remote(job.id, pack(job), device, cpus, mailbox)] = job
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
                if ray.wait([post], timeout=0)[0]:
                    yield from _news(_get(ray, post, default=[]), {job.id for job in running.values()}, told)
                    post = mailbox.take.remote()
                for ref in done:
                    job = running.pop(ref)
                    yield from _news([_get(ray, ref, default=None, name=job.id)], {job.id}, told)
                    told.discard(job.id)
        finally:
            # the cluster may be gone
            with suppress(ray.exceptions.RayError, ConnectionError):
                for ref in running:
                    ray.cancel(ref, force=True)
                ray.kill(mailbox)


def _get(ray: Any, ref: Any, *, default: Any, name: str = "") -> Any:
    """The result of a call. If its process or node died: the default, or for a run, by its name, a `Failed`."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return Failed(name, last_lines(f"{type(error).__name__}: {error}")) if name else default


def _news(events: Iterable[Event], running: set[str], told: set[str]) -> Iterator[Event]:
    """Events of running jobs, each job's `Started` before its others."""
    for event in events:
        if event.id in running:
            if event.id not in told:
                told.add(event.id)
                yield Started(event.id)
            if not isinstance(event, Started):
                yield event


def _room(resources: dict[str, float], cpus: int, gpus: int) -> int:
    """Number of tasks that the cluster can run at a time."""
    room = int(resources.get("CPU", 0)) // cpus
    return min(room, int(resources.get("GPU", 0)) // gpus) if gpus else room


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    import ray

    if ray.is_initialized():
        raise ValueError("this process is connected to a Ray cluster already; call ray.shutdown() first.")
    _look_for(address)
    # no dashboard for a local cluster; Ray refuses the option for one that exists
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": [str(Path(exlstm.__file__).parent)]},
            **own,
        )
    except ConnectionError as error:
        raise ValueError(
            f"could not connect to a Ray cluster at {address!r} ({error}); start one with `ray start --head`, use the "
            'address "local", or if the cluster asks for a token, set RAY_AUTH_MODE=token here as on its nodes.'
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _look_for(address: str) -> None:
    """ValueError if the address refuses connections: Ray itself would retry for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except OSError as error:
        raise ValueError(
            f"nobody answers at {address} ({error}); start a cluster there with `ray start --head`, or check the port."
        ) from error


class _Mailbox:
    """An actor that keeps the last progress of each run until it is asked for."""

    def __init__(self) -> None:
        self.latest: dict[tuple[type, str], Started | RunProgress] = {}

    def put(self, event: Started | RunProgress) -> None:
        self.latest[type(event), event.id] = event

    def take(self) -> list[Started | RunProgress]:
        events, self.latest = list(self.latest.values()), {}
        return events


def _on_node(name: str, packed: bytes, device: str, threads: int, mailbox: Any) -> Finished | Failed:
    mailbox.put.remote(Started(name))
    torch.set_num_threads(threads)  # an earlier run in this process may have changed it
    return attempt(name, packed, ProgressReporter(name, device, mailbox.put.remote))
