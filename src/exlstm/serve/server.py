"""A server from its start to its end: warm before it says that it is ready, and done with its work when it stops.

SIGTERM and SIGINT drain: no new work, the rest completes within a time, states go to disk, exit code 0. A second signal
ends it at once.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from exlstm.serve.guard import Guard
from exlstm.serve.service import Service


class Uvicorn(uvicorn.Server):
    """uvicorn with our signals: its own close the socket first, and raise the signal again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(kw_only=True, eq=False)
class Serving:
    """A service behind an address.

    sock: bound already, so that an address in use is an error before a model is loaded. ready: called once requests
    are taken. exit_code: 1 if the engine failed for good.
    """

    service: Service
    app: Guard
    sock: socket.socket
    ready: Callable[[], None]
    exit_code: int = 0
    signals: int = 0
    loop: asyncio.AbstractEventLoop = field(init=False)

    def run(self) -> int:
        """Serves until it is told to stop; returns the exit code."""
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self.serve())
        return self.exit_code

    async def serve(self) -> None:
        """Serves on the running loop."""
        limits, loop = self.service.limits, asyncio.get_running_loop()
        self.loop = loop
        config = uvicorn.Config(
            self.app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            proxy_headers=False,
            timeout_keep_alive=limits.keep_alive_seconds,
            backlog=limits.connections,
            ws="none",
        )
        self.uvicorn = Uvicorn(config)
        self.service.start(self.fail)
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError, NotImplementedError, RuntimeError):  # not on the main thread
                loop.add_signal_handler(number, self.stop)
        lag = asyncio.ensure_future(self.watch_lag())
        self.sock.listen(limits.connections)
        self.ready()
        try:
            await self.uvicorn.serve(sockets=[self.sock])
        finally:
            lag.cancel()
            await self.service.stop()

    def stop(self) -> None:
        """Begins to drain; called again, it ends at once."""
        self.signals += 1
        if self.service.phase == "ready":
            self.service.phase = "draining"
        if self.signals == 1:
            self.draining = asyncio.ensure_future(self.drain())

    async def drain(self) -> None:
        """Lets running work complete for a time, then ends the rest, and the server."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.service.limits.drain_seconds
        while self.service.jobs and loop.time() < until and self.signals < 2:
            await asyncio.sleep(0.02)
        self.end_jobs()
        await self.end_connections()

    async def end_connections(self) -> None:
        """Ends the server; connections of clients that do not read are cut after a second."""
        until = self.loop.time() + (1.0 if self.signals < 2 else 0.1)
        self.uvicorn.should_exit = True
        connections = self.uvicorn.server_state.connections
        while connections and self.loop.time() < until:
            await asyncio.sleep(0.02)
        for connection in list(connections):
            connection.transport.abort()

    def end_jobs(self) -> None:
        """Ends all jobs; streams get an error before their end."""
        for job in self.service.jobs:
            job.cause = "drain"
            job.wake.set()

    def fail(self, error: BaseException) -> None:
        """Ends the server after the engine has failed for good."""
        print(f"the engine failed again and again; the last error was: {error!r}", file=sys.stderr)
        self.service.phase, self.exit_code = "failed", 1
        self.end_jobs()
        self.draining = asyncio.ensure_future(self.end_connections())

    async def watch_lag(self) -> None:
        """Measures by how much the event loop is late, once a second."""
        loop = asyncio.get_running_loop()
        while True:
            planned = loop.time() + 1.0
            await asyncio.sleep(1.0)
            self.service.metrics.lag.set(max(0.0, loop.time() - planned))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Any = uvloop.new_event_loop
    return factory  # type: ignore[no-any-return]


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address. ValueError for one that is in use or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ValueError(f"{host}:{port} cannot be used ({error.strerror}); name another --host or --port.") from None
    sock.set_inheritable(True)
    return sock
