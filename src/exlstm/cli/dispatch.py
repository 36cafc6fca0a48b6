"""The dispatcher of the command line: finds the command, parses its options and runs it."""

from collections.abc import Mapping, Sequence
from typing import Any

from exlstm import __version__
from exlstm.cli.commands import COMMANDS, FOREIGN, GROUPS, Command
from exlstm.cli.parse import parse, similar, training_settings
from exlstm.train.recipes import RECIPES

KNOWN = {**COMMANDS, **GROUPS, **FOREIGN}


def dispatch(name: str, words: Sequence[str]) -> int:
    """Runs a command and returns its exit code; errors are raised."""
    if name in FOREIGN:
        return FOREIGN[name].run(list(words))
    if name in ("-h", "--help"):
        _overview("exlstm", "xLSTM language models: train, evaluate, generate, convert", KNOWN)
        return 0
    if name in ("-V", "--version"):
        print(f"exlstm {__version__}")
        return 0
    if name in GROUPS:
        return _in_group(name, words)
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name!r}{similar(name, KNOWN)}; exlstm --help lists them.")
    command = COMMANDS[name]
    default = command.default
    if name == "train":
        default, words = training_settings(words, RECIPES)
    return _run(f"exlstm {name}", command, words, default)


def _in_group(group: str, words: Sequence[str]) -> int:
    """Runs a command of a group, such as `exlstm study run`."""
    name, *rest = words or ["--help"]
    commands = GROUPS[group].commands
    if name in ("-h", "--help"):
        _overview(f"exlstm {group}", GROUPS[group].help, commands)
        return 0
    if name not in commands:
        raise ValueError(f"there is no command {name!r}{similar(name, commands)}; exlstm {group} --help lists them.")
    return _run(f"exlstm {group} {name}", commands[name], rest, commands[name].default)


def _run(program: str, command: Command, words: Sequence[str], default: Any) -> int:
    description = f"{_sentence(command.help)}\n\n{command.more}".strip()
    options = parse(command.options, words, program=program, description=description, default=default)
    return 0 if options is None else command.run(options) or 0


def _overview(program: str, about: str, commands: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    rows = Table.grid(padding=(0, 2))
    for name, command in commands.items():
        rows.add_row(f"[bold]{name}[/bold]", command.help)
    console = Console(highlight=False)
    console.print(f"usage: {program} COMMAND [OPTIONS]\n\n{_sentence(about)}\n")
    console.print(Panel(rows, title="commands", title_align="left", border_style="dim"))
    console.print(f"{program} COMMAND --help lists the options of a command.")


def _sentence(help_line: str) -> str:
    """A line of the overview as a sentence. The name xLSTM keeps its small x."""
    name = help_line.startswith("xLSTM")
    return f"{help_line if name else help_line[0].upper() + help_line[1:]}."
