"""The command line: `exlstm COMMAND`. Mistakes cost one sentence on stderr, never a traceback."""

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from exlstm import __version__
from exlstm.cli.commands import COMMANDS, FOREIGN, GROUPS, Command
from exlstm.cli.parse import parse, similar, take_choice
from exlstm.train.recipes import RECIPES

MISTAKE = 2
INTERRUPTED = 130  # what shells report for a program that SIGINT ended
READER_GONE = 141  # and for SIGPIPE
_KNOWN = {**COMMANDS, **GROUPS, **FOREIGN}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    0 for success, 2 for what the user can put right (one sentence on stderr), 130 after Ctrl-C, 141 when whoever reads
    the output has gone.
    """
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end a command
    try:
        code = _dispatch(name, words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit, and would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        command = f"exlstm {name}" if name in _KNOWN else "exlstm"
        print(f"{command}: {error}", file=sys.stderr)
        return MISTAKE
    return code


def _dispatch(name: str, words: Sequence[str]) -> int:
    """The exit code of a command that has not failed."""
    if name in FOREIGN:
        return FOREIGN[name].run(list(words))
    if name in ("-h", "--help"):
        _overview("exlstm", "xLSTM language models: train, evaluate, generate, convert", _KNOWN)
        return 0
    if name in ("-V", "--version"):
        print(f"exlstm {__version__}")
        return 0
    if name in GROUPS:
        return _in_group(name, words)
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name!r}{similar(name, _KNOWN)}; exlstm --help lists them.")
    command = COMMANDS[name]
    default = command.default
    if name == "train":
        chosen, words = take_choice("--recipe", words, RECIPES)
        default = chosen or default
    return _run(f"exlstm {name}", command, words, default)


def _in_group(group: str, words: Sequence[str]) -> int:
    """A command such as `exlstm study run`."""
    name, *rest = words or ["--help"]
    commands = GROUPS[group].commands
    if name in ("-h", "--help"):
        _overview(f"exlstm {group}", GROUPS[group].help, commands)
        return 0
    if name not in commands:
        raise ValueError(f"there is no command {name!r}{similar(name, commands)}; exlstm {group} --help lists them.")
    return _run(f"exlstm {group} {name}", commands[name], rest, commands[name].default)


def _run(program: str, command: Command, words: Sequence[str], default: Any) -> int:
    description = f"{command.help[0].upper()}{command.help[1:]}.\n\n{command.more}".strip()
    options = parse(command.options, words, program=program, description=description, default=default)
    if options is not None:
        command.run(options)
    return 0


def _overview(program: str, about: str, commands: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    rows = Table.grid(padding=(0, 2))
    for name, command in commands.items():
        rows.add_row(f"[bold]{name}[/bold]", command.help)
    console = Console(highlight=False)
    console.print(f"usage: {program} COMMAND [OPTIONS]\n\n{about[0].upper()}{about[1:]}.\n")
    console.print(Panel(rows, title="commands", title_align="left", border_style="dim"))
    console.print(f"{program} COMMAND --help lists the options of a command.")
