"""Results on disk: one line of JSON per run that ended, in study/results/NAME/SIZE.jsonl.

    {"format": 1, "study": ..., "size": ..., "id": ..., "facets": {...}, "seed": ..., "config": {...},
     "status": "done" | "failed", "error": ..., "commit": ..., "machine": {...}, "versions": {...}, ...}

and the result of `execute`: for a `Training` parameters, state bytes, FLOPs, seconds, metrics, and metrics over time. A
run that ended twice has two lines; the later one counts.
"""

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from exlstm.nn.fields import json_value
from exlstm.runtime.files import reporting_failure, sync
from exlstm.runtime.machine import commit, machine
from exlstm.study.aggregate import Results
from exlstm.study.contract import Row, Run, Size, Study, run_id, to_json

FORMAT = 1
_VERSIONS = ("exlstm", "torch", "numpy", "numba", "triton")


def result_path(folder: Path, study: str, size: Size) -> Path:
    """The file of results of a study in this folder."""
    return folder / "results" / study / f"{size}.jsonl"


def report_path(folder: Path, study: str, size: Size) -> Path:
    """The page of a study, beside its results; that of one whose runs are all another's stands alone."""
    return result_path(folder, study, size).with_suffix(".md")


class ResultFile:
    """A file of results, to which lines are only added."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Row]:
        """The newest row of every run, by id, without a last line that was cut off.

        ValueError for a file of another format, or that is damaged elsewhere.
        """
        if not self.path.exists():
            return {}
        rows: dict[str, Row] = {}
        for number, line in enumerate(self._whole_lines(), 1):
            try:
                row = json_value(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or row.get("format") != FORMAT:
                raise ValueError(f"line {number} of {self.path} is no result of format {FORMAT}; restore the file.")
            rows[row["id"]] = row
        return rows

    def _whole_lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1]

    def start(self, *, resume: bool, overwrite: bool) -> dict[str, Row]:
        """The rows to begin with. ValueError if there are some, and neither resume nor overwrite was asked for."""
        if resume and overwrite:
            raise ValueError("--resume keeps the results, --overwrite deletes them; give one of them.")
        hint = "free some space or change the permissions"
        with reporting_failure(self.path, hint):
            if overwrite:
                self.path.unlink(missing_ok=True)
        rows = self.read()
        if rows and not resume:
            raise ValueError(
                f"{self.path} has results of {len(rows)} runs; add to them with --resume, delete them with --overwrite."
            )
        with reporting_failure(self.path, hint):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                whole = sum(len(line) + 1 for line in self._whole_lines())
                os.truncate(self.path, whole)  # a line that was cut off would damage the next
        return rows

    def add(self, row: Row) -> None:
        """Adds a line, which is on the disk itself when this returns."""
        with (
            reporting_failure(self.path, "free some space, then go on with --resume"),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(row, separators=(",", ":"), allow_nan=True) + "\n")
            file.flush()
            sync(self.path)


def with_borrowed(own: Mapping[str, Row], study: Study, size: Size, folder: Path) -> dict[str, Row]:
    """A study's own rows and those of the studies that it uses, by id; of one run a row that is done, if there is one.

    Failures count as well: a learning rate at which a run of the other study diverged is not the best one here.
    """
    found: dict[str, Row] = {}
    for rows in (*(ResultFile(result_path(folder, other, size)).read() for other in study.uses), own):
        for name, row in rows.items():
            if row["status"] == "done" or name not in found or found[name]["status"] != "done":
                found[name] = row
    return found


def load_results(study: Study, size: Size, folder: Path, seeds: int) -> Results:
    """All results of a study: its own rows, those of the studies that it uses, and measurements of benchmarks."""
    rows = with_borrowed(ResultFile(result_path(folder, study.name, size)).read(), study, size, folder)
    return Results(study, size, rows, seeds, _measurements(study, folder))


def _measurements(study: Study, folder: Path) -> dict[str, dict[str, Row]]:
    """Measurements of the benchmarks beside a folder of studies, which `make bench-cpu` writes, by case and name."""
    paths = {case: folder.parent / "benchmarks" / "results" / "cpu" / f"{case}.json" for case in study.benchmarks}
    return {case: json_value(path.read_bytes())["measured"] for case, path in paths.items() if path.exists()}


def provenance() -> Row:
    """Commit, machine and versions for every row. Read once, as the checkout may change during a long study."""
    found = machine()
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    keep = ("cpu", "cores", "gpu", "system")
    return {"commit": commit(), "machine": {key: found[key] for key in keep}, "versions": versions}


def result_row(study: Study, size: Size, run: Run, outcome: Row, origin: Row) -> Row:
    """The row of a run. outcome: status, error or numbers. origin: of `provenance`."""
    return {
        "format": FORMAT,
        "study": study.name,
        "size": size,
        "id": run_id(run),
        "facets": run.facets(),
        "seed": run.seed,
        "config": {"kind": type(run).__name__, **to_json(run)},
        **origin,
        **outcome,
    }
