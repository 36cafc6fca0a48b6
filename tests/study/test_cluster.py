"""Runs on Ray: the events and rows of the local pool, from a cluster that is started here."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pool_jobs
import pytest
from test_study_pool import alive, outcome, pids, wait_until

from exlstm.study import cluster
from exlstm.study.cluster import run_on_ray
from exlstm.study.pool import Failed, Finished, RunProgress, Started, run_local

pytestmark = pytest.mark.slow  # a cluster takes its time to start
HERE = Path(__file__).parent
KINDS = {kind.__name__: kind for kind in (Started, RunProgress, Finished, Failed)}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes_with(text):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_bytes().decode(errors="replace"):
                yield int(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            pass


@pytest.fixture(scope="module")
def head():
    """A cluster of two CPUs that only this machine reaches, and only with its token: its addresses and settings."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # Ray's sockets lie in it: their paths have to be short
    (folder / "token").write_text(secrets.token_hex(32))
    settings = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PYTHONPATH": str(HERE),  # of nodes: what jobs call
    }
    port, client = free_port(), free_port()
    options = f"--head --block --port {port} --ray-client-server-port {client} --node-ip-address 127.0.0.1 --num-cpus 2"
    options += f" --min-worker-port 0 --max-worker-port 0 --object-store-memory 100000000 --temp-dir {folder / 's'}"
    options += " --include-dashboard=false --disable-usage-stats"
    process = subprocess.Popen(
        [Path(sys.executable).parent / "ray", "start", *options.split()],
        env=settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listens(port) and listens(client), seconds=120.0)
        yield {"near": f"127.0.0.1:{port}", "client": f"ray://127.0.0.1:{client}"}, settings
    finally:
        process.terminate()  # it ends what it started
        process.wait(timeout=60)
        end = time.monotonic() + 20.0
        while left := list(processes_with(str(folder))):
            if time.monotonic() > end:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(folder)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("way", ["near", "client"])
def test_the_events_and_rows_of_the_local_pool(head, tmp_path, way):
    """By address from within, or as a client from outside. In the end the driver leaves while a task is busy."""
    addresses, settings = head
    command = [sys.executable, HERE / "cluster_driver.py", addresses[way], tmp_path]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.rpartition("told ")[2])
    ends = outcome(KINDS[kind](*rest) for kind, *rest in told if rest[0] != "left")
    here = outcome(run_local(pool_jobs.mixed_jobs(), workers=1))
    for name in ("square 0", "square 1", "square 2", "square 3"):
        assert ends.pop(name) == here[name]
    assert ends.pop("raises").splitlines()[-2:] == here["raises"].splitlines()[-2:]
    assert ends.pop("exit").startswith("WorkerCrashedError: ")
    assert ends.pop("who").items() >= {"device": "cpu", "threads": 1}.items()
    assert ends.keys() == {"a", "b"}  # they met
    (worker,) = pids(tmp_path)
    wait_until(lambda: not alive(worker), seconds=30.0)


def test_without_ray_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"install exlstm\[cluster\]"):
        run_on_ray([], address="auto")


def test_a_run_has_a_cpu():
    with pytest.raises(ValueError, match="cpus is 0"):
        run_on_ray([], address="auto", cpus=0)


def test_room():
    assert cluster._room({"CPU": 7.0}, 2, 0) == 3
    assert cluster._room({"CPU": 7.0, "GPU": 2.0}, 2, 1) == 2
    assert cluster._room({"GPU": 4.0}, 1, 1) == 0


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_nobody_at_the_address(address):
    with pytest.raises(ValueError, match=f"nobody answers at {address.format('.*')} .*ray start --head"):
        cluster._look_for(address.format(free_port()))


def test_news_starts_with_the_start():
    """Mail is slower than rows now and then: no run ends before it began, and none goes on when it has ended."""
    told = set()
    late = RunProgress("b", 0.5, "late")
    assert list(cluster._news([RunProgress("a", 0.1, ""), Started("a"), late], {"a"}, told)) == [
        Started("a"),
        RunProgress("a", 0.1, ""),
    ]
    assert list(cluster._news([Finished("a", {})], {"a"}, told)) == [Finished("a", {})]
    assert list(cluster._news([Failed("c", "")], {"c"}, told)) == [Started("c"), Failed("c", "")]


def test_the_mailbox_keeps_the_last():
    mailbox = cluster._Mailbox()
    for event in (Started("a"), RunProgress("a", 0.1, ""), Started("b"), RunProgress("a", 0.2, "")):
        mailbox.put(event)
    assert mailbox.take() == [Started("a"), RunProgress("a", 0.2, ""), Started("b")]
    assert mailbox.take() == []
