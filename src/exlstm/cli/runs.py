"""`exlstm runs`: the runs below a folder."""

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

Folder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Options of `exlstm runs`."""

    folder: Folder = "runs"  # runs are looked for here and below
    json: bool = False  # a list of objects, with what is wrong with damaged runs


def runs(options: Runs) -> None:
    """Prints one line per run, the same on a terminal and in a pipe."""
    import json

    from exlstm.train.run_folder.runs import list_runs, table

    found = list_runs(options.folder)
    if options.json:
        print(json.dumps([asdict(line) for line in found], indent=2))
    elif found:
        print(table(found))
    else:
        print(f"no runs below {options.folder}")
