"""What a run does: it learns, keeps to its budget, follows the clock if told to, and reports."""

import itertools
import json
import math
import sys
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tiny_runs import Settings, ctrl_c_at, numbers, weights

from exlstm.data.baselines import Baselines, baselines
from exlstm.data.text import documents, split_documents
from exlstm.models.block import Block
from exlstm.models.lm import LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train import display, loop
from exlstm.train.config import TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import open_run, report
from exlstm.train.run_folder.picture import loss_picture
from exlstm.train.run_folder.summary import RunSummary
from exlstm.train.schedule import learning_rate


def steps(run: str) -> list[dict[str, float]]:
    return [record for record in numbers(run) if "loss" in record]


def test_it_learns(settings: Settings, tiny: LMConfig) -> None:
    """From eight bits per byte, a uniform guess, to less than four."""
    done = train(settings(steps=60, batch=4, length=32, final_minutes=9.0), model=tiny)
    assert steps(done.run)[0]["bits_per_byte"] == pytest.approx(math.log2(257), abs=0.7)
    assert done.final is not None
    assert done.final.bits_per_byte < 4.0


def test_a_budget_of_tokens(settings: Settings, tiny: LMConfig) -> None:
    done = train(settings(steps=None, tokens=97, accumulate=1), model=tiny)  # 32 tokens per step
    assert (done.step, done.tokens) == (4, 128)


def test_a_budget_of_minutes_follows_the_clock(
    settings: Settings, tiny: LMConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock takes two seconds, so that one minute is over after some steps."""
    ticks = itertools.count(step=2)
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(ticks)))
    config = settings(steps=None, minutes=1.0, validations=2, warmup=0.0)
    done = train(config, model=tiny)
    rates = [record["lr"] for record in steps(done.run)]
    assert 2 < len(rates) < 30
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(learning_rate(config, 2 / 60), rel=0.1)
    assert rates[-1] < 0.5 * config.lr
    assert open_run(done.run).position(done.step)["seconds"] >= 60
    assert len([record for record in numbers(done.run) if "validation_loss" in record]) == 2


def test_the_smallest_budget_is_one_step(settings: Settings, tiny: LMConfig) -> None:
    assert train(settings(steps=None, minutes=1e-9), model=tiny).step == 1


def test_save_minutes(settings: Settings, tiny: LMConfig) -> None:
    done = train(settings(validations=0, save_minutes=1e-9, keep=3), model=tiny)
    assert open_run(done.run).steps() == [6, 7, 8]


def test_log_every(settings: Settings, tiny: LMConfig) -> None:
    done = train(settings(log_every=3), model=tiny)
    assert [record["step"] for record in steps(done.run)] == [3, 6]


def test_weights_stay_float32_under_bfloat16(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    low = train(settings(dtype="bfloat16"), model=tiny)
    full = train(settings(run=str(tmp_path / "full")), model=tiny)
    model = open_run(low.run).load_model()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    one, other = ([record["loss"] for record in steps(run)] for run in (low.run, full.run))
    assert one != other
    assert one == pytest.approx(other, rel=0.02)


@pytest.mark.filterwarnings("ignore")  # torch warns about itself while it traces
@pytest.mark.slow
def test_compile_trains_the_same(
    settings: Settings, tiny: LMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, but without the code generator, which takes a C++ compiler and a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    one = train(settings(compile=True), model=tiny)
    other = train(settings(run=str(tmp_path / "other")), model=tiny)
    losses = [[record["loss"] for record in steps(run)] for run in (one.run, other.run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("workers", [1, 2])
def test_gradient_checkpointing_trains_the_same(
    settings: Settings, tiny: LMConfig, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every worker: each block of the model is run once more in each step."""
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args, **named: calls.append(None) or forward(*args, **named))
    plain = train(settings(run=str(tmp_path / "a"), workers=workers, steps=2), model=tiny)
    before = len(calls)
    again = train(settings(run=str(tmp_path / "b"), workers=workers, steps=2, gradient_checkpointing=True), model=tiny)
    assert len(calls) - before == before + 2 * workers
    assert numbers(again.run) == numbers(plain.run)
    assert weights(again.run, 2) == weights(plain.run, 2)


def test_compile_that_fails(settings: Settings, tiny: LMConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("No working C++ compiler found.\nA long story.")

    monkeypatch.setattr(torch, "compile", lambda model: fail)
    message = r"^--compile does not work .* \(RuntimeError: No working C\+\+ compiler found\); leave it out\.$"
    with pytest.raises(ValueError, match=message):
        train(settings(compile=True), model=tiny)


def test_baselines_are_measured_on_the_same_text(settings: Settings, tiny: LMConfig, text: Path) -> None:
    done = train(settings(yardsticks=True, final_minutes=9.0), model=tiny)
    split = split_documents(documents(str(text)))
    assert done.yardsticks == baselines(split.train, split.val)
    assert done.final is not None
    assert done.final.bytes == sum(len(document.data) for document in split.val)
    table = done.table().splitlines()
    assert [line.split(maxsplit=1)[1] for line in table[-4:]].count("this model") == 1
    values = [float(line.split()[0]) for line in table[1:]]
    assert values == sorted(values)


def test_the_best_checkpoint_is_the_one_that_counts(
    settings: Settings, tiny: LMConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that is far too high at the end: the first validation is better than the last one."""
    monkeypatch.setattr(loop, "learning_rate", lambda config, fraction: 1e-2 if fraction < 0.5 else 3.0)
    done = train(settings(steps=20, validations=2, final_minutes=9.0), model=tiny)
    scores = [record["validation_loss"] for record in numbers(done.run) if "validation_loss" in record]
    assert scores[0] < scores[1]
    assert done.final_step == 10
    assert done.final is not None
    assert done.final.loss == pytest.approx(scores[0], rel=0.3)


def test_summary_json(settings: Settings, tiny: LMConfig) -> None:
    done = train(settings(yardsticks=True), model=tiny)
    data = json.loads((Path(done.run) / "summary.json").read_text())
    assert data["run"] == "run"  # no path of the machine
    assert data["step"] == 8
    assert data["parameters"] == done.parameters > 0
    assert data["validation"]["bits_per_byte"] == done.final.bits_per_byte  # type: ignore[union-attr]
    assert 0 < data["validation"]["coverage"] <= 1
    assert set(data["yardsticks_bits_per_byte"]) == {"trigram", "gzip", "xz"}
    assert {"cpu", "cores", "threads", "gpu", "system", "python", "torch"} == set(data["machine"])
    assert "commit" in data


class Page(HTMLParser):
    """What a browser would do with the report."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.last: tuple[str, str | None] = "", ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        assert tag != "script"
        assert tag != "table" or self.last == ("div", "scroll"), "on a narrow screen the page would scroll sideways"
        self.last = tag, dict(attributes).get("class")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_report_is_one_file_with_everything(settings: Settings, tiny: LMConfig) -> None:
    def sample(model: object, tokenizer: object) -> str:
        return "<script>alert('sheep')</script> & more"

    done = train(settings(samples=2, yardsticks=True), model=tiny, sample=sample)
    page = Page((Path(done.run) / "report.html").read_text(encoding="utf-8"))
    assert len(page.links) == 1
    assert page.links[0].startswith("data:image/png;base64,")
    assert page.words.count("<script>alert('sheep')</script> & more") == 2
    for expected in ("gzip -9", "xz -9", "trigram", "bits per byte", "weight_decay", "MLSTM", "torch", "this model"):
        assert expected in page.words, expected
    assert "stopped early" not in page.words
    assert "None" not in page.words
    assert (Path(done.run) / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_names_the_text_that_was_not_named() -> None:
    settings = dict(report.settings(TrainConfig()))
    assert settings["data"] == "the source text of Python's standard library"
    assert "blocks" not in settings
    assert dict(report.settings(TrainConfig(data="notes.txt", blocks="ms")))["data"] == "notes.txt"


def test_the_report_of_a_stopped_run(settings: Settings, tiny: LMConfig) -> None:
    stopped = train(settings(samples=8), model=tiny, sample=ctrl_c_at(1))
    page = Page((Path(stopped.run) / "report.html").read_text(encoding="utf-8"))
    assert "stopped early" in page.words
    assert "Comparison" not in page.words


@pytest.mark.parametrize("found", [None, Baselines(trigram=2.27, gzip=1.71, xz=1.7)])
def test_pictures_of_little(found: Baselines | None) -> None:
    """No step at all, one step, and a loss that is no number."""
    records = [{"tokens": 1, "bits_per_byte": 8.0}, {"tokens": 2, "bits_per_byte": math.nan}]
    for count in range(3):
        assert loss_picture(records[:count], found, "title").startswith(b"\x89PNG")


def test_an_unfinished_summary_has_no_table() -> None:
    assert RunSummary(run="r", stopped="signal", step=1, tokens=1, seconds=1, parameters=1, seed=0).table() == ""


def progress(step: int, fraction: float, seconds: float) -> display.StepProgress:
    return display.StepProgress(
        step=step, fraction=fraction, seconds=seconds, loss=2.0, bits_per_byte=3.0, lr=1e-3, tokens=1000 * step
    )


def test_the_line_that_is_shown() -> None:
    meter = display.Meter(torch.device("cpu"))
    meter.line(progress(1, 0.1, 10.0), now=100.0)
    line = meter.line(progress(3, 0.25, 30.0), now=104.0)
    assert "step 3  loss 2.000  3.000 bits/byte  500 tokens/s  lr 1.0e-03" in line


def test_the_time_left_does_not_count_what_compiles() -> None:
    """The first step shown takes a minute of compiling; the others one second for one per cent each."""
    meter = display.Meter(torch.device("cpu"))
    assert meter.left(progress(1, 0.01, 61.0)) == ""
    assert meter.left(progress(2, 0.02, 62.0)) == "1:38 left"
    assert meter.left(progress(50, 0.50, 110.0)) == "0:50 left"
    resumed = display.Meter(torch.device("cpu"))
    assert resumed.left(progress(50, 0.50, 1000.0)) == ""
    assert resumed.left(progress(51, 0.51, 1001.0)) == "0:49 left"


def test_without_a_terminal_there_are_plain_lines(
    settings: Settings, tiny: LMConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(), model=tiny)
    out = capsys.readouterr().out
    assert out.isprintable() or set(out) - {"\n"} == {c for c in out if c.isprintable()}
    assert "100%  step 8  loss" in out
    assert "step 4: " in out
    assert out.splitlines()[-1].endswith("report.html")


def test_on_a_terminal_notes_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    shown = display.LiveDisplay(torch.device("cpu"), display.Output(sys.stdout))
    shown.show(progress(1, 0.5, 1.0))
    shown.note("a [bold] path")
    shown.close()
    assert "a [bold] path" in capsys.readouterr().out


def test_settings_without_a_model(settings: Settings) -> None:
    config = settings(preset="laptop-tiny", steps=1, validations=1, length=4, workers=1)
    done = train(config)
    assert open_run(done.run).model_config() == lm_from_pattern("ms", vocab_size=257, width=32)
    assert open_run(done.run).train_config() == replace(config, run=None)
