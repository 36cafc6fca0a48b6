"""TensorBoard: the numbers of metrics.jsonl as scalars, in the folder `tensorboard` of a run."""

import shutil
import time
from pathlib import Path
from typing import Any

from exlstm.runtime.files import reporting_failure
from exlstm.train.run_folder import RunFolder

FOLDER = "tensorboard"
_NO_SCALARS = ("step", "tokens", "seconds", "sample")


def writer_class() -> Any:
    """torch's SummaryWriter. ValueError where the package tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard; install it with pip install 'exlstm[track]', or leave it out."
        ) from error
    return SummaryWriter


class TensorBoard:
    """A writer for the metrics of a run, beginning with those in metrics.jsonl.

    The folder is made anew each time, so steps that a resumed run takes again are there once, and a run may begin to
    use it later. seconds: the training time so far.
    """

    def __init__(self, run: RunFolder, seconds: float) -> None:
        self.began = time.time() - seconds
        self.folder: Path = run.path / FOLDER
        with reporting_failure(self.folder, "free some space and continue with --resume"):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.writer = writer_class()(str(self.folder))
        for record in run.read_metrics():
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Writes a line of metrics.jsonl as "train/loss", "validation/loss", ..., and samples as text, at its step."""
        at = {"global_step": record["step"], "walltime": self.began + record.get("seconds", time.time() - self.began)}
        for name, value in record.items():
            if name not in _NO_SCALARS:
                number = name.removeprefix("validation_")
                self.writer.add_scalar(f"{'train' if number == name else 'validation'}/{number}", value, **at)
        if "sample" in record:
            self.writer.add_text("sample", record["sample"], **at)

    def close(self) -> None:
        """Writes what is still buffered."""
        with reporting_failure(self.folder, "free some space and continue with --resume"):
            self.writer.close()
