"""SIGINT, SIGTERM and SIGHUP as a request to stop: the present step is finished, then the run is saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_WANTED = (signal.SIGINT, signal.SIGTERM)
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that is true once SIGINT, SIGTERM or SIGHUP has come.

    A second SIGINT or SIGTERM acts as usual, at once. SIGHUP never does, for a terminal that closes may send it twice,
    and SIGTERM after it; under `nohup` it stays ignored.
    Outside the main thread Python delivers no signals, so the function is always false.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    usual = {number: signal.getsignal(number) for number in _WANTED}
    hangup = None if _HANGUP is None else signal.getsignal(_HANGUP)

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number != _HANGUP:
            restore()

    for number in _WANTED:
        signal.signal(number, ask)
    if _HANGUP is not None and hangup is not signal.SIG_IGN:
        signal.signal(_HANGUP, ask)
    try:
        yield asked.is_set
    finally:
        restore()
        if _HANGUP is not None:
            signal.signal(_HANGUP, hangup)
