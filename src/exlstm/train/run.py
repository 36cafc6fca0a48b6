"""`train`: one call from settings to a finished run."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

from exlstm.data.baselines import baselines
from exlstm.models.lm import LMConfig
from exlstm.models.summary import parameters
from exlstm.runtime.allocator import keep_freed_memory
from exlstm.runtime.files import write_or_explain
from exlstm.runtime.machine import clock, commit, pick_device, slow_bfloat16
from exlstm.train.config import DEFAULT_STEPS, TrainConfig
from exlstm.train.display import Display, Output, open_display
from exlstm.train.evaluate import score_whole
from exlstm.train.loop import Sample, Trainer
from exlstm.train.replicas import ThreadedReplicas, threads_shared
from exlstm.train.run_folder import create_run
from exlstm.train.run_folder.report import write_report
from exlstm.train.run_folder.summary import RunSummary
from exlstm.train.setup import set_up
from exlstm.train.signals import stop_requests


@keep_freed_memory()
def train(config: TrainConfig, *, model: LMConfig | None = None, sample: Sample | None = None) -> RunSummary:
    """Trains a model, or continues to train one, and leaves a run folder.

    model: another architecture than `config.preset` and `config.blocks` name; its vocabulary must hold the tokenizer's.
    sample: writes a text with the model, for the report; called a few times in the run.
    SIGINT, SIGTERM, SIGHUP (a closed terminal) and a standard output without a reader end it after the step at hand;
    then, too, everything is saved.

    Raises ValueError, one sentence, for settings, text, run folder, checkpoint or a full disk, and (NotFiniteError)
    for a loss that is not finite. Checkpoints that were there are never damaged.
    """
    device = pick_device(config.device)
    code = commit()  # now: the checkout may change during a long run
    learns = config.tokenizer.startswith("bpe:") and not config.resume
    output = Output(sys.stdout)
    output.note(f"reading the text{f' and training the tokenizer {config.tokenizer}' * learns} ...")
    setup = set_up(config, model)
    shared = threads_shared(setup.config.workers)
    with ExitStack() as held, shared, closing(open_display(device, output)) as display, stop_requests() as asked:

        def stop() -> bool:
            return asked() or output.ended

        trainer = Trainer(setup, device, display, sample)
        if not setup.config.resume:  # after everything that can raise for a new run
            start = None if setup.start is None else setup.start.to_json()
            create_run(setup.run.path, setup.config, setup.model, setup.tokenizer, setup.about, start)
        _introduce(trainer, display)
        held.enter_context(setup.run.held())
        setup.run.keep_settings(setup.config)
        (setup.run.path / "summary.json").unlink(missing_ok=True)
        with _nothing_left(trainer):
            stopped = trainer.run(stop)
        summary = RunSummary(
            run=str(setup.run.path),
            stopped=stopped,
            step=trainer.position.step,
            tokens=trainer.tokens(),
            seconds=trainer.position.seconds,
            parameters=parameters(trainer.model),
            seed=setup.config.seed,
            shares=setup.shares,
            commit=code,
        )
        if stopped == "budget":
            display.note(f"scoring the whole validation text, for at most {setup.config.final_minutes:g} minutes")
            summary = _final_numbers(trainer, summary, stop)
    if summary.final is not None:
        write_or_explain(setup.run.path / "summary.json", json.dumps(summary.to_json(), indent=2) + "\n")
    write_report(setup.run, setup.config, trainer.model, summary)
    output.note(_closing_words(summary))
    if output.ended:  # stderr may still be read, as in `exlstm train | head`
        Output(sys.stderr).note(_closing_words(summary))
    return summary


@contextmanager
def _nothing_left(trainer: Trainer) -> Iterator[None]:
    """Removes the folder of a new run that fails in its first step."""
    try:
        yield
    except Exception:
        if trainer.position.step == 0 and not trainer.config.resume:
            trainer.run_folder.remove()
        raise


def _introduce(trainer: Trainer, display: Display) -> None:
    setup, config = trainer.setup, trainer.config
    budgets = [
        f"{config.steps:,} steps" if config.steps is not None else "",
        f"{config.minutes:g} minutes" if config.minutes is not None else "",
        f"{config.tokens:,} tokens" if config.tokens is not None else "",
    ]
    budget = " or ".join(filter(None, budgets)) or f"{DEFAULT_STEPS:,} steps"
    size = f"{len(setup.model.blocks)} blocks, {parameters(trainer.model):,} parameters"
    display.note(f"run {setup.run.path}: {size}, {config.dtype} on {trainer.device}")
    if slow_bfloat16(trainer.device, config.dtype):
        display.note("this CPU has no instructions for bfloat16: float32 would train several times faster")
    display.note(
        f"text: {setup.train.bytes:,} bytes to train on ({len(setup.train):,} tokens), {setup.val.bytes:,} to validate"
    )
    for note in setup.notes:
        display.note(f"{note} (--binary takes them)")
    if len(setup.shares) > 1:
        shares = ", ".join(f"{share:.1%} from {name}" for name, share in setup.shares.items())
        display.note(f"training tokens: {shares}; validation text is that of all, joined")
    if setup.start is not None:
        display.note(f"started from {setup.start.model}, fingerprint {setup.start.fingerprint[:12]}")
    where = f"from step {trainer.position.step:,} on" if trainer.position.step else "from the beginning"
    display.note(f"training for {budget}, {config.tokens_per_step:,} tokens per step, {where}; Ctrl-C saves and stops")


def _final_numbers(trainer: Trainer, summary: RunSummary, stop: Callable[[], bool]) -> RunSummary:
    """Adds the best checkpoint's score on the whole validation text, and the yardsticks; a signal leaves them out."""
    setup, config = trainer.setup, trainer.config
    best = setup.run.step_of("best")
    last = best == trainer.position.step
    model = trainer.model if last else setup.run.load_model(best, device=str(trainer.device))
    final, coverage = score_whole(
        ThreadedReplicas(model, config.workers),
        setup.val,
        setup.tokenizer.byte_lengths,
        batch=config.batch,
        length=config.length,
        minutes=config.final_minutes,
        dtype=config.dtype,
        stop=stop,
    )
    found = baselines(setup.split.train, setup.split.val) if config.yardsticks and not stop() else None
    if stop():
        return replace(summary, stopped="signal")
    return replace(summary, final=final, final_step=best, coverage=coverage, yardsticks=found)


def _closing_words(summary: RunSummary) -> str:
    if summary.final is None:
        return f"stopped and saved at step {summary.step:,}; continue with: exlstm train --run {summary.run} --resume"
    return f"{summary.table()}\ntrained for {clock(summary.seconds)}; see {summary.run}/report.html"
