"""Setting up a run before its first step: text, tokenizer, architecture, folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from exlstm.data.corpus import Corpus, read_corpus
from exlstm.data.mixture import Mixture
from exlstm.data.packing import TokenStream, pack
from exlstm.data.text import Split
from exlstm.data.tokenizer import Tokenizer, tokenizer_from_spec
from exlstm.models.lm import LM, LMConfig
from exlstm.models.memory import check_memory
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.presets import preset
from exlstm.models.summary import parameters
from exlstm.runtime.machine import clock, pick_device
from exlstm.train.config import TrainConfig, resumed, with_absolute_paths
from exlstm.train.replicas import default_workers
from exlstm.train.run_folder import RunFolder, check_free, new_run_path, open_run
from exlstm.train.run_folder.tensorboard import writer_class
from exlstm.train.schedule import progress
from exlstm.train.start import Start, read_start, start_of


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that is ready to train.

    about: the entry "data" of config.json. shares: of the training tokens, by source. notes: for the user.
    start: the model that the run starts from, None for new weights.
    """

    run: RunFolder
    config: TrainConfig
    model: LMConfig
    tokenizer: Tokenizer
    split: Split
    train: Mixture
    val: TokenStream
    about: dict[str, Any]
    shares: dict[str, float]
    notes: list[str]
    start: Start | None


def set_up(config: TrainConfig, model: LMConfig | None) -> Setup:
    """Reads the text for a new run, or opens the one to resume. Nothing is written.

    Raises ValueError for text, tokenizer, model or folder that cannot be used, and for a batch that no memory holds.
    """
    return _existing(config, model) if config.resume else _new(config, model)


def _new(config: TrainConfig, model: LMConfig | None) -> Setup:
    start, tokenizer, name = None, None, config.preset
    if config.from_model is not None:
        start, model, tokenizer, name = read_start(config, model)
    path = new_run_path(name) if config.run is None else Path(config.run)
    check_free(path, overwrite=config.overwrite)
    if start is not None and Path(start.model).is_relative_to(path.resolve()):
        raise ValueError(f"--overwrite would delete {start.model} to start from; choose another folder with --run.")
    if config.tensorboard:
        writer_class()  # raises for a missing package before the text is read
    if model is None:
        preset(config.preset)  # raises for an unknown name before the text is read
    corpus = read_corpus(config.data, binary=config.binary)
    split = corpus.split
    tokenizer = tokenizer or tokenizer_from_spec(config.tokenizer, [document.data for document in split.train])
    train, val = corpus.mixture(tokenizer), pack(split.val, tokenizer)
    model = model_config(config, tokenizer.vocab_size) if model is None else model
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"the model has a vocabulary of {model.vocab_size}, the tokenizer one of {tokenizer.vocab_size}; "
            f"make it at least {tokenizer.vocab_size}."
        )
    check_memory(model, config.batch, config.length, pick_device(config.device), parameters=_parameters_of(model))
    if config.accumulate > 1 and config.tokens_per_step > len(train):
        raise ValueError(
            f"--accumulate {config.accumulate} makes a step of {config.tokens_per_step:,} tokens and the text has "
            f"{len(train):,}; use a smaller one, or give more text."
        )
    # raises for a text that is too short for one batch before anything is written
    train.check(corpus.names, batch=config.batch, length=config.length, carry=config.carry_state)
    if config.workers > 1 and model.draws:
        source = "dropout" if model.dropout > 0 else "a learned graph"
        raise ValueError(
            f"--workers {config.workers} cannot be used with {source}, whose random numbers come in one order only; "
            "leave --workers out."
        )
    if config.workers == 0:
        alone = config.compile or model.draws  # random numbers come from one generator, in the order of the calls
        config = replace(config, workers=default_workers(pick_device(config.device), config.batch, alone=alone))
    config = replace(with_absolute_paths(config), run=str(path))
    about = _describe(corpus, config, train, val)
    return _ready(RunFolder(path), config, model, tokenizer, corpus, train, val, about, start)


def _existing(config: TrainConfig, model: LMConfig | None) -> Setup:
    assert config.run is not None
    run = open_run(config.run)
    steps, seconds = run.used()
    config = resumed(config, run.train_config(), steps=steps, seconds=seconds)
    run.check_idle()
    if config.tensorboard:
        writer_class()
    if model is not None and model != run.model_config():
        raise ValueError(f"the run {run.path} has another architecture than the one given; leave it out to resume.")
    corpus = read_corpus(config.data, binary=config.binary)
    tokenizer = run.tokenizer()
    about = run.config()["data"]
    if corpus.fingerprint() != about["sha256"]:
        raise ValueError(
            f"the text of the run {run.path} has changed since it began, so it cannot be continued; "
            "restore the text (for the standard library: the same Python), or start a new run."
        )
    _check_budget_left(run, config, steps, seconds)
    train, val = corpus.mixture(tokenizer), pack(corpus.split.val, tokenizer)
    return _ready(run, config, run.model_config(), tokenizer, corpus, train, val, about, start_of(run))


def _ready(
    run: RunFolder,
    config: TrainConfig,
    model: LMConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    train: Mixture,
    val: TokenStream,
    about: dict[str, Any],
    start: Start | None,
) -> Setup:
    _check_positions(config, model)
    return Setup(
        run=run,
        config=config,
        model=model,
        tokenizer=tokenizer,
        split=corpus.split,
        train=train,
        val=val,
        shares=_shares(corpus, config, train),
        notes=corpus.notes(),
        about=about,
        start=start,
    )


def _check_positions(config: TrainConfig, model: LMConfig) -> None:
    """ValueError for sequences that could go on beyond a table of positions."""
    if model.positions is not None and (config.length > model.positions or config.carry_state):
        setting = "--carry-state" if config.carry_state else f"--length {config.length}"
        raise ValueError(
            f"{setting} does not go with a model of {model.positions:,} positions; leave it out, or use another model."
        )


def _check_budget_left(run: RunFolder, config: TrainConfig, steps: int, seconds: float) -> None:
    """ValueError for a finished run whose budget is used up."""
    # without a summary the final evaluation is left to do
    if (run.path / "summary.json").exists() and progress(config, steps=steps, seconds=seconds) >= 1:
        more = "--minutes +10" if config.minutes is not None else "--steps +1000"
        raise ValueError(
            f"the run {run.path} has used up its budget after {steps:,} steps in {clock(seconds)}; give it more, for "
            f"example {more}."
        )


def model_config(config: TrainConfig, vocab_size: int) -> LMConfig:
    """The architecture that `config.preset` and `config.blocks` name."""
    base = preset(config.preset, vocab_size=vocab_size)
    if config.blocks is None:
        return base
    return lm_from_pattern(config.blocks, vocab_size=vocab_size, width=base.width)


def _parameters_of(model: LMConfig) -> int:
    with torch.device("meta"):
        return parameters(LM(model))


def _shares(corpus: Corpus, config: TrainConfig, train: Mixture) -> dict[str, float]:
    """Shares of the sources as trained: rounded to rows where these stay with their source."""
    rows = train.rows(config.batch, carry=config.carry_state)
    return {name: count / sum(rows) for name, count in zip(corpus.names, rows, strict=True)}


def _describe(corpus: Corpus, config: TrainConfig, train: Mixture, val: TokenStream) -> dict[str, Any]:
    shares = _shares(corpus, config, train)
    return {
        "sha256": corpus.fingerprint(),
        "documents": len(corpus.documents),
        "train_bytes": train.bytes,
        "train_tokens": len(train),
        "val_bytes": val.bytes,
        "val_tokens": len(val),
        "sources": [
            {"name": name, "share": shares[name], "documents": len(source.text.documents), "train_bytes": stream.bytes}
            for name, source, stream in zip(shares, corpus.sources, train.streams, strict=True)
        ],
    }
