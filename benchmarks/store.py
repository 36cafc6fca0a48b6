"""Results on disk: one JSON file per case, written after every measurement, so that nothing is lost."""

import json
import os
from pathlib import Path
from typing import Any

ALL_RESULTS = Path(__file__).parent / "results"  # a folder for CPUs, and one for each kind of GPU
RESULTS = ALL_RESULTS / "cpu"
FORMAT = 1
# fields of a machine that must be equal for two measurements to be in one table
SAME = ("cpu", "cores", "threads", "instructions", "torch", "versions")
Record = dict[str, Any]
Results = dict[str, dict[str, Record]]  # case -> measurement -> record


class Store:
    """The file of one case. same: fields of the machine that must be equal for results to be added to it."""

    def __init__(self, folder: Path, case: str, machine: dict[str, Any], same: tuple[str, ...] = SAME) -> None:
        self.path, self.machine = folder / f"{case}.json", machine
        before = json.loads(self.path.read_text()) if self.path.exists() else {}
        was = before.get("machine", {})
        self.other_machine = bool(was) and any(was.get(name) != machine.get(name) for name in same)
        # numbers of two machines are not compared: the file begins anew
        self.measured: dict[str, Record] = {} if self.other_machine else before.get("measured", {})

    def has(self, name: str, commit: str | None) -> bool:
        """Whether this was measured, and passed, with the same code."""
        record = self.measured.get(name, {})
        return record.get("commit") == commit and commit is not None and "red" not in record

    def put(self, name: str, record: Record) -> None:
        """Adds or replaces one measurement; the others stay."""
        self.measured[name] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        content = {"format": FORMAT, "machine": self.machine, "measured": self.measured}
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, self.path)


def load(folder: Path = RESULTS) -> tuple[Results, dict[str, dict[str, Any]]]:
    """All results, and the machine of each case."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return (
        {case: content["measured"] for case, content in files.items()},
        {case: content["machine"] for case, content in files.items()},
    )
