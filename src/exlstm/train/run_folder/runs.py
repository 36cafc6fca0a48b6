"""The list of runs below a folder: state, steps, loss and bits per byte of each."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from exlstm.models.checkpoints.loading import open_checkpoint
from exlstm.models.locate import read_json
from exlstm.train.run_folder import RunFolder

_FILES = ("config.json", "tokenizer.json", "metrics.jsonl")


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run. loss: of the last training step, in nats. bits_per_byte: of the whole validation text for a finished
    run, of the best validation for others. when: the last change, ISO 8601. problem: of a damaged run.
    """

    run: str
    state: Literal["running", "stopped", "finished", "damaged"]
    steps: int | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    when: str
    problem: str | None = None


def list_runs(folder: str | Path) -> list[RunLine]:
    """Every run below a folder, or the folder itself, sorted by path. ValueError if there is no such folder."""
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; name one that holds runs of exlstm train.")
    return [_line(RunFolder(path)) for path in sorted(_runs(root))]


def table(lines: Sequence[RunLine]) -> str:
    """The lines as plain text, in columns."""
    rows: list[tuple[str, ...]] = [("run", "state", "steps", "loss", "bits/byte", "when")]
    for line in lines:
        when = datetime.fromisoformat(line.when).astimezone().strftime("%Y-%m-%d %H:%M")
        numbers = ("-" if x is None else f"{x:.4f}" for x in (line.loss, line.bits_per_byte))
        rows.append((line.run, line.state, "-" if line.steps is None else f"{line.steps:,}", *numbers, when))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in (2, 3, 4) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _runs(root: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(root):
        if "checkpoints" in folders and not set(files).isdisjoint(_FILES):
            yield Path(path)
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]


def _line(run: RunFolder) -> RunLine:
    when = datetime.fromtimestamp(max(file.stat().st_mtime for file in run.path.iterdir()), UTC)
    about: dict[str, Any] = {"run": str(run.path), "when": when.isoformat(timespec="seconds")}
    try:
        return RunLine(**about, **_numbers(run))
    except (ValueError, KeyError, TypeError, OSError) as error:
        return RunLine(**about, state="damaged", problem=str(error))


def _running(run: RunFolder) -> bool:
    try:
        run.check_idle()
    except ValueError:
        return True
    return False


def _numbers(run: RunFolder) -> dict[str, Any]:
    """Fields of a `RunLine`. ValueError, KeyError, TypeError or OSError for a run that could not be resumed."""
    run.train_config(), run.model_config(), run.tokenizer()
    done, saved, bits = run.path / "summary.json", run.steps(), None
    if saved:
        with open_checkpoint(run.checkpoint_at(saved[-1])):
            bits = run.position(run.step_of("best"))["validation_bits_per_byte"]
    if done.exists():
        bits = read_json(done)["validation"]["bits_per_byte"]
    logged = [record for record in run.last_metrics() if "loss" in record]
    return {
        "state": "running" if _running(run) else "finished" if done.exists() else "stopped",
        "steps": max([0, *saved[-1:], *(record["step"] for record in logged[-1:])]),
        "loss": logged[-1]["loss"] if logged else None,
        "bits_per_byte": bits,
    }
