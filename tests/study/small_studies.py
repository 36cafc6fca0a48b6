"""Small studies, a pool that runs in this process, and rows of results made without a run."""

import json

from exlstm.mixers.lstm import LSTMConfig
from exlstm.study import Lesson, Training, stack
from exlstm.study.contract import load_study, run_id
from exlstm.study.pool import ProgressReporter, Started, attempt, pack
from exlstm.study.results import result_row

# Three models at two learning rates. Runs write down that they ran, in the folder that they run in; `bad` fails while
# there is a file called `broken`. The best rate of each model is another one.
COUNT = '''"""Which number is <b>largest</b> & why?

Expected: "ten" & not <i>nine</i>.

Paper: none | at all.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from exlstm.study import Claim, Picture, ReportTable

BEST = {"one": 0.1, "two": 0.2, "bad": 0.2}


@dataclass(frozen=True, kw_only=True)
class Count:
    model: str
    lr: float
    seed: int = 0

    def facets(self):
        return {"model": self.model, "task": "count"}

    def execute(self, report):
        with open("log.txt", "a") as log:
            log.write(f"{self.model} {self.lr} {self.seed} {os.getpid()}\\n")
        time.sleep(WAIT)
        report(0.5, "half")
        if self.model == "bad" and Path("broken").exists():
            raise RuntimeError("no luck today")
        tests = [{"task": "count", "score": self.lr + self.seed / 1000, "at_chance": False}]
        return {
            "metrics": {"validation": -abs(self.lr - BEST[self.model]), "tests": tests},
            "parameters": 10, "state_bytes": 20, "flops": 1e3, "seconds": 0.5,
        }


WAIT = 0.0


def runs(size):
    if size == "paper":
        return []
    models = ("one", "two", "bad")
    return [Count(model=model, lr=lr) for model in models for lr in (0.1, 0.2)]


def draw(figure):
    figure.subplots().plot([0, 1], [0, 1])


def report(results):
    yield Claim(text="ten <u>less</u> & |so| on", holds=None, evidence='"a" <b> | c')
    yield Claim(text="a claim that holds", holds=True)
    yield Claim(text="a claim that fails", holds=False, evidence="it is not so")
    rows = [(cell.facets["model"], cell.text()) for cell in results.cells()]
    rows.append(("<b>", "x|y"))
    yield ReportTable(title="Scores | <all>", columns=("model", "a|b"), rows=rows, note="a note > there")
    yield results.costs()
    yield Picture(name="rise", title="A line & <more>", draw=draw, note="a note < here")
'''

# the same beside two trainings, slow enough to be caught in the middle
SLOW = COUNT.replace("WAIT = 0.0", "WAIT = 0.3").replace(
    "    return [Count(", "    return [*trainings(), *(Count("
).replace("for lr in (0.1, 0.2)]", "for lr in (0.1, 0.2))]") + '''

def trainings():
    from exlstm.mixers.attention import AttentionConfig
    from exlstm.study import Lesson, Training, stack

    lesson = Lesson(task="parity", train=(3, 12), test=((12, 16),))
    how = {"steps": 8, "batch": 4, "validation_rows": 16, "test_rows": 16, "validations": 2}
    architecture = stack((AttentionConfig(heads=2),), width=16)
    how |= {"model": "attention", "architecture": architecture, "lessons": (lesson,)}
    return [Training(lr=lr, **how) for lr in (0.01, 0.001)]
'''  # fmt: skip


class Quiet:
    """A report that records its calls."""

    device = "cpu"

    def __init__(self, models=None):
        self.told, self.models = [], models

    def __call__(self, fraction, text):
        self.told.append((fraction, text))


def run_here(jobs, *, workers, threads=None, devices=("cpu",)):
    """`run_local` without processes: jobs are packed and unpacked, and events come in its order."""
    assert workers >= 1
    for job in jobs:
        yield Started(job.id)
        sent = []
        end = attempt(job.id, pack(job), ProgressReporter(job.id, devices[0], sent.append))
        yield from sent
        yield end


def training(**changes):
    """A run that takes a moment: an LSTM of width 8 on parity."""
    values = {
        "model": "lstm",
        "architecture": stack((LSTMConfig(),), width=8),
        "lessons": (Lesson(task="parity", train=(3, 12), test=((12, 20), (3, 12))),),
        "lr": 1e-2,
        "steps": 6,
        "batch": 4,
        "validations": 3,
        "validation_rows": 8,
        "test_rows": 16,
    }
    return Training(**values | changes)


def count_study(source=COUNT, name="count"):
    return load_study(name, source)


ORIGIN = {
    "commit": "abc1234",
    "machine": {"cpu": "a <fast> one", "cores": 2, "gpu": None, "system": "x"},
    "versions": {"python": "3"},
}


def row_of(study, run, *, size="small", error=None, score=0.5, validation=0.0, at_chance=False):
    """A row of results like that of a run."""
    outcome = {
        "status": "done",
        "metrics": {"validation": validation, "tests": [{"task": "count", "score": score, "at_chance": at_chance}]},
        "parameters": 10,
        "state_bytes": 20,
        "flops": 1e3,
        "seconds": 0.5,
    }
    if error is not None:
        outcome = {"status": "failed", "error": error}
    return result_row(study, size, run, outcome, ORIGIN)


def rows_of(study, pairs):
    """Rows by id, of (run, settings of `row_of`)."""
    return {run_id(run): row_of(study, run, **how) for run, how in pairs}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
