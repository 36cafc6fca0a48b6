"""The command line: `exlstm COMMAND`. Mistakes cost one sentence on stderr, never a traceback.

Everything else is imported inside `main`, which also answers Ctrl-C while that goes on.
"""

import contextlib
import io
import os
import sys
from collections.abc import Sequence

MISTAKE = 2
INTERRUPTED = 130  # what shells report for a program that SIGINT ended
READER_GONE = 141  # and for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    0 for success, 2 for what the user can put right (one sentence on stderr), 130 after Ctrl-C, 141 when the reader of
    the output has gone. With a closed stdout or stderr (`>&-`) the command runs and its output is dropped.
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
    """Makes stdout and stderr able to take every text."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end a command


def _reader_gone(stop: BaseException) -> bool:
    """Whether a pipe broke. rich and tyro turn that into SystemExit."""
    return isinstance(stop, BrokenPipeError) or isinstance(stop.__context__, BrokenPipeError)


def _program(name: str) -> str:
    from exlstm.cli.dispatch import KNOWN

    return f"exlstm {name}" if name in KNOWN else "exlstm"


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def _drop_unwritten() -> None:
    """Python writes what is left at exit; where that cannot be written, it would fail again there."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _memory_gone(error: Exception) -> bool:
    """torch has a class of its own for a GPU's memory and none for the CPU's."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
