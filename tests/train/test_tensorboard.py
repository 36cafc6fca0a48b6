"""--tensorboard: what metrics.jsonl holds, once per step however often the run was resumed."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Settings, ctrl_c_at, numbers

from exlstm.models.lm import LMConfig
from exlstm.train.config import TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import tensorboard

INSTALLED = importlib.util.find_spec("tensorboard") is not None
Point = tuple[str, int, Any]


class StandIn:
    """What of a SummaryWriter is used: a file for each writer, of one point a line."""

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(exist_ok=True)
        self.file = (Path(folder) / f"{len(list(Path(folder).iterdir()))}.jsonl").open("x")

    def add_scalar(self, tag: str, value: float, global_step: int, walltime: float) -> None:
        self.file.write(json.dumps([tag, global_step, value]) + "\n")

    add_text: Any = add_scalar

    def close(self) -> None:
        self.file.close()


def read_stand_in(folder: Path) -> list[Point]:
    return [tuple(json.loads(line)) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


def read_real(folder: Path) -> list[Point]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    scalars = [(tag, event.step, event.value) for tag in found.Tags()["scalars"] for event in found.Scalars(tag)]
    texts = [
        (tag.removesuffix("/text_summary"), event.step, event.tensor_proto.string_val[0].decode())
        for tag in found.Tags()["tensors"]
        for event in found.Tensors(tag)
    ]
    return scalars + texts


@pytest.mark.parametrize(
    "real",
    [
        False,
        pytest.param(
            True, marks=[pytest.mark.slow, pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")]
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package tensorboard
def test_every_number_is_there_once(
    settings: Settings, tiny: LMConfig, monkeypatch: pytest.MonkeyPatch, real: bool
) -> None:
    """Of a run that began without it, was resumed with it, lost its last steps, and took them again."""
    if not real:
        monkeypatch.setattr(tensorboard, "writer_class", lambda: StandIn)
        monkeypatch.setattr("exlstm.train.setup.writer_class", lambda: StandIn)
    run = Path(train(settings(steps=4, samples=4), model=tiny, sample=ctrl_c_at(2)).run)
    train(TrainConfig(run=str(run), resume=True, tensorboard=True), sample=ctrl_c_at(99))
    shutil.rmtree(run / "checkpoints/step-00000004")
    train(TrainConfig(run=str(run), resume=True), sample=ctrl_c_at(99))
    found = sorted((read_real if real else read_stand_in)(run / "tensorboard"))
    names = {"loss": "train/loss", "bits_per_byte": "train/bits_per_byte", "lr": "train/lr"}
    names |= {"gradient_norm": "train/gradient_norm", "validation_loss": "validation/loss", "sample": "sample"}
    names |= {"validation_bits_per_byte": "validation/bits_per_byte"}
    records = numbers(run)
    expected = sorted((tag, r["step"], r[key]) for r in records for key, tag in names.items() if key in r)
    assert {step for _, step, _ in expected} == {1, 2, 3, 4}
    assert {tag for tag, _, _ in expected} == set(names.values())
    assert [point[:2] for point in found] == [point[:2] for point in expected]
    for (*_, x), (*_, y) in zip(found, expected, strict=True):
        assert x == (y if isinstance(y, str) else pytest.approx(y, rel=1e-6))  # TensorBoard's are float32


def test_a_missing_package_is_told_before_anything_is_written(
    settings: Settings, tiny: LMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ValueError, match=r"^--tensorboard needs the package tensorboard; .*exlstm\[track\].* leave it out"
    ):
        train(settings(tensorboard=True), model=tiny)
    assert not (tmp_path / "run").exists()
