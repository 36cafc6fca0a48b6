"""The folder of a run: its files, and reading and writing them.

config.json               {"format": 1, "train": settings, "model": architecture, "data": fingerprint}, and where the
                          run starts from a model "from": its path and fingerprint
tokenizer.json            the tokenizer
metrics.jsonl             one JSON object per line: training steps, validations and samples, told apart by their keys
loss.png, report.html     curves and report, rewritten when the run stops
summary.json              final numbers, present once the run is complete
tensorboard/              with --tensorboard only
checkpoints/step-00001200 exlstm/train/checkpoint.py; checkpoints/best is a link to the best of them
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exlstm.data.tokenizer import Tokenizer, tokenizer_from_json
from exlstm.models.checkpoints.loading import load
from exlstm.models.checkpoints.own import config_from_json, config_to_json
from exlstm.models.lm import LM, LMConfig
from exlstm.models.locate import RUN_FORMAT, RunCheckpoints, Which, read_json
from exlstm.nn.fields import json_value
from exlstm.runtime.files import SCRATCH, reporting_failure, write_or_explain
from exlstm.train.config import TrainConfig, from_json, to_json

if sys.platform != "win32":
    import fcntl

_TAIL = 1 << 16  # bytes
_OWN = (
    "config.json",
    "tokenizer.json",
    "metrics.jsonl",
    "loss.png",
    "report.html",
    "summary.json",
    "checkpoints",
    "tensorboard",
)


@dataclass(frozen=True)
class RunFolder(RunCheckpoints):
    """The files of one run; `open_run` and `create_run` make one."""

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def train_config(self) -> TrainConfig:
        """The settings of the run. Runs older than the setting `binary` took every file."""
        return from_json({"binary": True, **self.config()["train"]})

    def model_config(self) -> LMConfig:
        """The architecture of the run's model."""
        return config_from_json(self.config()["model"])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return tokenizer_from_json(read_json(self.path / "tokenizer.json"))

    def used(self) -> tuple[int, float]:
        """Steps and seconds at the last checkpoint; zeros without one, and for a damaged one."""
        with suppress(IndexError, ValueError, KeyError):
            position = self.position(self.steps()[-1])
            return int(position["step"]), float(position["seconds"])
        return 0, 0.0

    def keep_settings(self, config: TrainConfig) -> None:
        """Writes the settings of a resumed run, with its new budget, to config.json."""
        data = self.config()
        if data["train"] != to_json(config):
            write_or_explain(self.path / "config.json", json.dumps({**data, "train": to_json(config)}, indent=2))

    def load_model(self, which: Which | int = "best", *, device: str = "cpu") -> LM:
        """The model of a checkpoint, in evaluation mode."""
        return load(self.checkpoint_at(self.step_of(which)), device=device).eval()

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl. A torn last line, as a killed run may leave, is skipped."""
        if not self.metrics.exists():
            return
        with self.metrics.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    try:
                        record = json_value(line)
                    except ValueError as error:
                        raise ValueError(
                            f"{self.metrics} has a damaged line {line[:60]!r}; remove that line."
                        ) from error
                    yield record

    def last_metrics(self) -> list[dict[str, Any]]:
        """The records at the end of metrics.jsonl, without reading all of it."""
        if not self.metrics.exists():
            return []
        with self.metrics.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().splitlines(keepends=True)[size > _TAIL :]
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    @contextmanager
    def held(self) -> Iterator[None]:
        """A lock on the folder of checkpoints, which ends with the process. ValueError if another process holds it.

        Windows has no such locks; there the run always counts as free.
        """
        if sys.platform == "win32":
            yield
            return
        self.checkpoints.mkdir(exist_ok=True)
        handle = os.open(self.checkpoints, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"the run {self.path} is being trained by another process; wait for its end, or choose another "
                    "folder with --run."
                ) from error
            yield
        finally:
            os.close(handle)

    def check_idle(self) -> None:
        """Raises ValueError if a process trains the run at this moment."""
        if self.checkpoints.is_dir():
            with self.held():
                pass

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with (
            reporting_failure(self.metrics, "free some space and continue with --resume"),
            self.metrics.open("a") as out,
        ):
            out.write(json.dumps(record) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Removes lines of metrics.jsonl after `step`: a resumed run takes these steps again."""
        kept = [json.dumps(record) + "\n" for record in self.read_metrics() if record["step"] <= step]
        write_or_explain(self.metrics, "".join(kept))

    def remove(self) -> None:
        """Deletes the files of the run, and the folder if nothing else is in it."""
        _clear(self)
        with suppress(OSError):
            self.path.rmdir()


def open_run(path: str | Path) -> RunFolder:
    """A run that exists. Raises ValueError if there is none at `path`."""
    folder = RunFolder(Path(path))
    if not folder.path.is_dir():
        raise ValueError(f"there is no run at {path}; name a folder that exlstm train has written.")
    folder.config()
    return folder


def new_run_path(preset: str) -> Path:
    """The first free one of runs/PRESET-001, runs/PRESET-002, ..."""
    number = 1
    while (path := Path("runs") / f"{preset}-{number:03d}").exists():
        number += 1
    return path


def create_run(
    path: Path,
    config: TrainConfig,
    model: LMConfig,
    tokenizer: Tokenizer,
    fingerprint: dict[str, Any],
    start: dict[str, Any] | None = None,
) -> RunFolder:
    """Makes the folder; config.json comes last, so that a folder that has one is complete.

    fingerprint: of the text, the entry "data". start: the entry "from".
    Raises ValueError if something else is there already.
    """
    folder = RunFolder(path)
    check_free(path, overwrite=config.overwrite)
    with reporting_failure(path, "free some space or choose another folder with --run"):
        _clear(folder)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
    write_or_explain(path / "tokenizer.json", json.dumps(tokenizer.to_json()))
    content = {"format": RUN_FORMAT, "train": to_json(config), "model": config_to_json(model), "data": fingerprint}
    if start is not None:
        content["from"] = start
    write_or_explain(path / "config.json", json.dumps(content, indent=2))
    return folder


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raises ValueError unless a new run may be written to `path`: never over anything that is not a run."""
    if path.is_dir():
        there = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        foreign = [name for name in there if name not in _OWN]
        if there and not overwrite and not foreign:
            raise ValueError(f"the run {path} exists; continue it with --resume, or delete it with --overwrite.")
        RunFolder(path).check_idle()
        if foreign:
            raise ValueError(f"{path} holds {foreign[0]!r}, which no run writes; choose another folder with --run.")
    elif path.exists():
        raise ValueError(f"{path} is a file; choose another folder with --run.")


def _clear(folder: RunFolder) -> None:
    # config.json first: a folder without it is not taken for a run if this is interrupted
    for entry in (*(folder.path / name for name in _OWN), *folder.path.glob(f"{SCRATCH}*")):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
