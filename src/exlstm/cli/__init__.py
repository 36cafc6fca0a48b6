"""The command line: `exlstm COMMAND`. A user's mistake is one sentence on stderr, never a traceback.

Everything else is imported inside `main`, so that Ctrl-C is handled during imports too.
"""

import contextlib
import io
import os
import sys
from collections.abc import Sequence

MISTAKE = 2
INTERRUPTED = 130  # the exit code of shells for a program that SIGINT ended
READER_GONE = 141  # the same for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    0 is success, 2 a mistake of the user (one sentence on stderr), 130 Ctrl-C, 141 a closed pipe behind stdout. With a
    closed stdout or stderr (`>&-`) the command runs and its output is dropped.
    """
    words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    _open_streams()
    try:
        from exlstm.cli.dispatch import dispatch

        code = dispatch(words[0], words[1:])
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as stop:
        if not _reader_gone(stop):
            raise
        code = READER_GONE
    except KeyboardInterrupt:
        _complain("")
        code = INTERRUPTED
    except (ValueError, OSError) as error:
        _complain(f"{_program(words[0])}: {error}")
        code = MISTAKE
    except (RuntimeError, MemoryError) as error:
        if not _memory_gone(error):
            raise
        _complain(f"{_program(words[0])}: the memory is not enough; use a smaller batch, length or model.")
        code = MISTAKE
    _drop_unwritten()
    return code


def _open_streams() -> None:
    """Makes stdout and stderr writable for every text."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character outside the terminal's encoding must not end a command


def _reader_gone(stop: BaseException) -> bool:
    """Whether a pipe broke, which rich and tyro turn into SystemExit."""
    return isinstance(stop, BrokenPipeError) or isinstance(stop.__context__, BrokenPipeError)


def _program(name: str) -> str:
    from exlstm.cli.dispatch import KNOWN

    return f"exlstm {name}" if name in KNOWN else "exlstm"


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def _drop_unwritten() -> None:
    """Sends output that cannot be written to /dev/null, or else Python would fail again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _memory_gone(error: Exception) -> bool:
    """Whether memory ran out. torch has a class of error for memory of a GPU, and none for that of a CPU."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
