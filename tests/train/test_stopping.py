"""Whatever ends a run, the run can be read and resumed: Ctrl-C, kill, kill -9 at any moment, a full disk."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny_runs import Settings, ctrl_c_at, numbers, optimizer, weights

from exlstm.models.lm import LMConfig
from exlstm.train import run_folder
from exlstm.train.config import TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import open_run
from exlstm.train.signals import stop_requests
from pairwise import every_pair

# trains the tiny run; `die` makes the process kill itself around a certain call of a function
PROGRAM = """
import json, os, shutil, signal, sys
import torch
torch.set_num_threads(1)
from exlstm.models.pattern import lm_from_pattern
from exlstm.train import checkpoint, loop, run_folder
from exlstm.train.config import TrainConfig
from exlstm.train.run import train

def kill(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)

def die(module, name, when, after=lambda *arguments: None):
    real = getattr(module, name)
    def patched(*arguments, **options):
        if when(*arguments):
            after(*arguments)
            kill()
        return real(*arguments, **options)
    setattr(module, name, patched)

config = json.loads(sys.argv[1])

def torn_line(record):
    with open(config["run"] + "/metrics.jsonl", "a") as metrics:
        metrics.write(str(record)[:20])

exec(sys.argv[2])
print(train(TrainConfig(**config), model=lm_from_pattern("m", vocab_size=257, width=16, heads=2)).stopped)
"""

# when the process dies, and how many checkpoints there must be then (one is kept)
MOMENTS = {
    "no checkpoint yet": ("die(checkpoint, 'save', lambda model, folder: True)", 0),
    "before the model": ("die(checkpoint, 'save', lambda model, folder: '03' in folder.name)", 1),
    "before the optimiser": ("die(checkpoint, 'save_file', lambda tensors, file: '03' in file.parent.name)", 1),
    "before the renaming": ("die(os, 'replace', lambda source, target: str(target).endswith('03'))", 1),
    "after the renaming": ("die(loop, 'tidy', lambda run, keep: run.steps() == [2, 3])", 2),
    "while an old one is deleted": (
        "die(shutil, 'rmtree', lambda p, **_: str(p).endswith('.old-2'), lambda p: os.unlink(p / 'trainer.json'))",
        1,
    ),
    "in the middle of a line": ("die(json, 'dumps', lambda record, **_: record.get('step') == 5, torn_line)", 1),
}


def in_a_process(config: TrainConfig, death: str = "") -> list[str]:
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return [sys.executable, "-u", "-c", PROGRAM, json.dumps(settings), death]


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=() if moment == "before the renaming" else pytest.mark.slow) for moment in MOMENTS],
)
def test_kill_9_leaves_a_run_that_resumes(moment: str, settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    death, checkpoints = MOMENTS[moment]
    config = settings(validations=8, keep=1)
    done = subprocess.run(in_a_process(config, death), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = open_run(tmp_path / "run")
    assert len(run.steps()) == checkpoints
    for step in run.steps():
        run.load_model(step)
        run.position(step)
    assert all(record["step"] <= 5 for record in run.read_metrics())

    assert train(TrainConfig(run=config.run, resume=True)).stopped == "budget"
    train(replace(config, run=str(tmp_path / "whole")), model=tiny)
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    assert weights(tmp_path / "run", 8) == weights(tmp_path / "whole", 8)
    assert [entry.name for entry in sorted(run.checkpoints.iterdir())] == ["best", "step-00000008"]


# goes on with a run in one process after another, forked before torch has threads, and kills each but the last
KILLER = """
import json, os, random, signal, sys, time
import torch
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.config import TrainConfig
from exlstm.train.run import train

config, kills = json.loads(sys.argv[1]), int(sys.argv[2])

def in_a_child(seconds):
    child = os.fork()
    if not child:
        sys.stdout = open(os.devnull, "w")
        torch.set_num_threads(2)
        begun = os.path.exists(config["run"] + "/config.json")
        options = {"run": config["run"], "resume": True} if begun else config
        train(TrainConfig(**options), model=None if begun else lm_from_pattern("ms", vocab_size=257, width=16, heads=2))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

draw = random.Random(0)
codes = [in_a_child(0.2 + draw.random()) for _ in range(kills)]
print(json.dumps(codes + [in_a_child(None)]))
"""


@pytest.mark.slow
def test_fifty_kills_beside_busy_cores(settings: Settings, tmp_path: Path) -> None:
    """At any moment, with every core taken by others: what is left is the uninterrupted run, bit for bit."""
    changes = {"steps": 1500, "batch": 4, "validations": 30, "save_minutes": 0.004, "carry_state": True, "keep": 2}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    codes = {}
    try:
        for name, kills in (("run", 50), ("whole", 0)):
            config = settings(run=str(tmp_path / name), **changes)
            given = json.dumps({key: getattr(config, key) for key in config.__dataclass_fields__})
            done = subprocess.run(
                [sys.executable, "-c", KILLER, given, str(kills)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            codes[name] = json.loads(done.stdout)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert codes == {"run": [-signal.SIGKILL] * 50 + [0], "whole": [0]}
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    assert weights(tmp_path / "run", 1500) == weights(tmp_path / "whole", 1500)
    assert optimizer(tmp_path / "run", 1500) == optimizer(tmp_path / "whole", 1500)


@pytest.mark.slow  # by default one of the command line's tests sends SIGINT to a process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_signal_from_outside_saves_and_says_how_to_go_on(number: int, settings: Settings, tmp_path: Path) -> None:
    config = settings(steps=1_000_000, validations=0)
    with subprocess.Popen(in_a_process(config), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "step 1 " in line)
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert f"continue with: exlstm train --run {config.run} --resume" in rest
    run = open_run(config.run or "")
    logged = [record["step"] for record in run.read_metrics()]
    assert run.steps() == [logged[-1]]
    assert logged == list(range(1, len(logged) + 1))
    assert (run.path / "report.html").exists()
    assert not (run.path / "summary.json").exists()


def test_a_second_ctrl_c_is_immediate() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_requests() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_may_send_several_signals() -> None:
    """None of them ends the run before it is saved; under nohup it goes on."""
    before = signal.getsignal(signal.SIGHUP)
    with stop_requests() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
            assert stop()
    assert signal.getsignal(signal.SIGHUP) is before
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


class Ending(io.StringIO):
    """A stream that ends at the line that has certain words in it: a terminal that is closed, a reader that leaves."""

    def __init__(self, words: str, error: OSError, terminal: bool) -> None:
        super().__init__()
        self.words, self.error, self.terminal = words, error, terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        if self.words in self.getvalue() + text:
            raise self.error
        return super().write(text)


@pytest.mark.breadth(1)
@every_pair(
    words=["reading the text", "step 4: "],
    error=[BrokenPipeError(), OSError(errno.EIO, "Input/output error")],
    terminal=[False, True],
)
def test_an_output_that_ends_ends_the_run(
    words: str,
    error: OSError,
    terminal: bool,
    settings: Settings,
    tiny: LMConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After the step at hand, saved. What would be said later does not raise; how to go on is said on stderr."""
    monkeypatch.setattr(sys, "stdout", Ending(words, error, terminal))
    stopped = train(settings(), model=tiny)
    assert (stopped.stopped, stopped.step) == ("signal", 1 if "text" in words else 4)
    assert open_run(stopped.run).steps() == [stopped.step]
    assert f"continue with: exlstm train --run {stopped.run} --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(TrainConfig(run=stopped.run, resume=True)).step == 8


def test_ctrl_c_in_the_final_evaluation(settings: Settings, tiny: LMConfig) -> None:
    """No final numbers then; a resumed run makes up for it."""
    stopped = train(settings(samples=1), model=tiny, sample=ctrl_c_at(1))  # in the last step
    assert (stopped.stopped, stopped.step, stopped.final) == ("signal", 8, None)
    assert train(TrainConfig(run=stopped.run, resume=True)).final is not None


def full_disk(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_in_safetensors(*arguments: Any, **options: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.breadth(2)
@pytest.mark.parametrize(
    ("place", "failure"),
    [
        ("exlstm.models.checkpoints.saving.save_file", full_disk),
        ("exlstm.models.checkpoints.saving.save_file", full_disk_in_safetensors),
        ("exlstm.train.checkpoint.save_file", full_disk_in_safetensors),
        ("exlstm.runtime.files.sync", full_disk),
        ("pathlib.Path.write_text", full_disk),
    ],
)
def test_a_full_disk(
    place: str, failure: Any, settings: Settings, tiny: LMConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(model: object, tokenizer: object) -> str:
        if (run.checkpoints / "step-00000004").exists():
            monkeypatch.setattr(place, failure)
        return ""

    config = settings(samples=8)
    run = run_folder.RunFolder(Path(config.run or ""))
    with pytest.raises(ValueError, match=r"could not write .*step-00000008: .*No space left.*; the older ") as caught:
        train(config, model=tiny, sample=fill_the_disk)
    assert "\n" not in str(caught.value)
    assert run.steps() == [4]
    assert sorted(entry.name for entry in run.checkpoints.iterdir()) == ["best", "step-00000004"]
    monkeypatch.undo()
    assert train(TrainConfig(run=config.run, resume=True)).step == 8


def test_a_full_disk_while_logging(settings: Settings, tiny: LMConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, lines = Path.open, []

    def fill(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "a":
            lines.append(None)
            if len(lines) == 7:
                full_disk()
        return real(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", fill)
    config = settings()
    with pytest.raises(ValueError, match=r"could not write .*metrics.jsonl: No space left .*--resume\.$"):
        train(config, model=tiny)
    monkeypatch.undo()
    assert open_run(config.run or "").steps() == [4]
    assert train(TrainConfig(run=config.run, resume=True)).step == 8


def test_bad_weights_are_not_saved(settings: Settings, tiny: LMConfig) -> None:
    def poison(model: Any, tokenizer: object) -> str:
        with torch.no_grad():
            model.head.weight[0, 0] = float("inf")
        return ""

    config = settings(samples=1, validations=0)
    with pytest.raises(ValueError, match=r"the parameter head\.weight is not finite after step 8, so no checkpoint"):
        train(config, model=tiny, sample=poison)
    assert open_run(config.run or "").steps() == []
