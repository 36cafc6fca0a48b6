"""Settings of a training run, as one value: the flags of `exlstm train`, and "train" in config.json."""

import math
import os
import types
import typing
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from exlstm.data.text import Data

DEFAULT_STEPS = 1000

Config = TypeVar("Config", bound=type)


class More(float):
    """A budget on top of what a run has used, for resuming: `--minutes +10` is `minutes=More(10)`."""

    def __repr__(self) -> str:
        return f"+{float(self):g}"

    __str__ = __repr__


def keeps_given(cls: Config) -> Config:
    """A class decorator: values have the names of the fields they were given in `_given`, outside equality and JSON."""
    plain = cls.__init__  # type: ignore[misc]

    @wraps(plain)
    def init(self: Any, **given: Any) -> None:
        object.__setattr__(self, "_given", frozenset(given))
        plain(self, **given)

    cls.__init__ = init  # type: ignore[misc]
    return cls


@keeps_given
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run.

    The budget is whichever of `steps`, `minutes` and `tokens` is used up first. The learning rate follows the budget,
    so with `minutes` it follows the clock: such a run adapts to the machine but cannot be repeated bit for bit, while a
    run bounded by steps or tokens can. Raises ValueError for a value that cannot work.

    A setting that is given counts when a run is resumed, even if it equals the default. `config.but(steps=5)` changes
    settings and gives no others; `dataclasses.replace` gives them all.
    """

    run: str | None = None  # folder of the run; left out: the first free runs/PRESET-001, -002, ...
    # text file, folder, glob or .jsonl; of several, notes/:0.3 gives 30% of the tokens; left out: the source text of
    # Python's standard library
    data: Data = None
    binary: bool = False  # train on files that do not look like text, too
    tokenizer: str = "bytes"  # "bytes", "bpe:4096" (trained on the data), or the path of a tokenizer.json

    preset: str = "laptop-small"  # name of the model; an unknown name lists them all
    blocks: str | None = None  # other blocks at the preset's width, such as "mmms" (m mLSTM, s sLSTM, M of xLSTM-7B)

    from_model: str | None = None  # fine-tune this model on disk: its weights, blocks and tokenizer (short: --from)

    steps: int | More | None = None  # budget: optimiser steps (1000 if no budget is given); +N resumes for N more
    minutes: float | More | None = None  # budget: minutes of training, validations included, final evaluation not
    tokens: int | More | None = None  # budget: training tokens

    batch: int = 16  # rows that go through the model at once
    length: int = 256  # tokens per row
    accumulate: int = 1  # batches per optimiser step
    carry_state: bool = False  # rows follow on from step to step and keep their state (truncated backpropagation)

    lr: float = 2e-3  # highest learning rate
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"  # shape after the warm-up; wsd = stable, then a cool-down
    warmup: float = 0.02  # fraction of the budget in which the learning rate rises
    cooldown: float = 0.2  # fraction of the budget in which it falls, for wsd
    final_lr: float = 0.1  # learning rate at the end, as a fraction of the highest
    weight_decay: float = 0.1  # AdamW's, for weight matrices only (table in exlstm/train/optimizer.py)
    beta1: float = 0.9  # AdamW's average of gradients
    beta2: float = 0.95  # AdamW's average of squared gradients
    eps: float = 1e-8  # AdamW's guard against division by zero
    clip: float = 1.0  # largest norm of the whole gradient; longer ones are scaled down

    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16 is autocast: weights and optimiser stay float32
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    workers: int = 0  # CPU threads that share the rows of a batch; 0 is one per core (1 on a GPU or with compile)
    gradient_checkpointing: bool = False  # less memory for about a third more work: the same numbers, bit for bit
    compile: bool = False  # compile the model with torch.compile (on a CPU it needs a C++ compiler)
    seed: int = 0  # of the initial weights, the order of the data, and dropout

    validations: int = 10  # times in the run that validation loss is measured; each also saves a checkpoint
    validation_tokens: int = 32_768  # size of the slice of the validation text used for that
    samples: int = 4  # times in the run that a sample is generated for the report
    save_minutes: float = 5.0  # longest time between two checkpoints
    keep: int = 2  # newest checkpoints to keep; the best one is kept as well
    log_every: int = 1  # steps per line of metrics.jsonl
    final_minutes: float = 2.0  # longest time for the evaluation on the whole validation text at the end
    yardsticks: bool = True  # compare with a trigram model, gzip and xz at the end

    tensorboard: bool = False  # write the metrics for TensorBoard as well, in the run's folder (extra: track)

    resume: bool = False  # continue the run in `run` from its last checkpoint, with its own settings
    overwrite: bool = False  # delete the run in `run` first

    def __post_init__(self) -> None:
        for name in ("steps", "minutes", "tokens"):
            _require(
                getattr(self, name) is None or getattr(self, name) > 0, name, self, "leave it out or make it positive"
            )
            if isinstance(getattr(self, name), More) and not self.resume:
                raise ValueError(
                    f"--{name} {getattr(self, name)} adds to a run; add --run FOLDER --resume, or leave out the +."
                )
        _require(self.minutes is None or self.minutes < math.inf, "minutes", self, "leave it out or make it finite")
        _require(self.seed < 2**64, "seed", self, "use a whole number of 64 bits")
        for name in ("batch", "length", "accumulate", "validation_tokens", "keep", "log_every"):
            _require(getattr(self, name) >= 1, name, self, "use at least 1")
        for name in ("lr", "eps", "clip", "save_minutes"):
            _require(0 < getattr(self, name) < math.inf, name, self, "use a positive number")
        for name in ("warmup", "cooldown", "final_lr"):
            _require(0 <= getattr(self, name) <= 1, name, self, "use a fraction between 0 and 1")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, self, "use a number from 0 up to, but not including, 1")
        for name in ("weight_decay", "validations", "samples", "final_minutes", "seed", "workers"):
            _require(0 <= getattr(self, name) < math.inf, name, self, "use 0 or more")
        for name, choices in (("schedule", ("cosine", "wsd", "constant")), ("dtype", ("float32", "bfloat16"))):
            _require(getattr(self, name) in choices, name, self, f"use one of {', '.join(choices)}")
        if self.schedule == "wsd" and self.warmup + self.cooldown > 1:
            raise ValueError(
                f"--warmup {self.warmup} and --cooldown {self.cooldown} are more than the whole run; make one smaller."
            )
        if self.workers > self.batch or (self.workers > 1 and self.compile):
            raise ValueError(
                f"--workers {self.workers} cannot share a batch of {self.batch}{' with --compile' * self.compile}; "
                "leave --workers out."
            )
        if self.gradient_checkpointing and self.compile:
            raise ValueError(
                "--gradient-checkpointing and --compile were both given; leave one out, for a compiled backward "
                "decides by itself what to compute again."
            )
        if self.resume and self.overwrite:
            raise ValueError(
                "resume and overwrite were both given; --resume continues the run, --overwrite deletes it."
            )
        if self.run is None and (self.resume or self.overwrite):
            raise ValueError("resume and overwrite need the name of a run; add --run FOLDER.")

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that were given, rather than left at their defaults."""
        return self.__dict__["_given"]  # type: ignore[no-any-return]

    def but(self, **changes: Any) -> "TrainConfig":
        """These settings with others changed; what is not given in either stays so.

        A change to a model to start from takes the place of an architecture, and the other way round.
        """
        kept = {name: getattr(self, name) for name in self.given}
        if not changes.keys().isdisjoint(ARCHITECTURE):
            kept.pop("from_model", None)
        if {**kept, **changes}.get("from_model") is not None:
            kept = {name: value for name, value in kept.items() if name not in ARCHITECTURE}
        return TrainConfig(**{**kept, **changes})

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one optimizer step."""
        return self.batch * self.length * self.accumulate


# about one invocation, not about the run
INVOCATION = ("run", "resume", "overwrite")
BUDGET = ("steps", "minutes", "tokens")
PATHS = ("data", "tokenizer", "from_model")
# what a model to start from decides
ARCHITECTURE = ("preset", "blocks", "tokenizer")
# may be changed when a run is resumed: none of these touches the numbers of the steps already taken
CHANGEABLE = (
    *BUDGET,
    "device",
    "gradient_checkpointing",
    "save_minutes",
    "keep",
    "final_minutes",
    "yardsticks",
    "tensorboard",
)


def _require(ok: bool, name: str, config: TrainConfig, remedy: str) -> None:
    if not ok:
        raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)!r} cannot work; {remedy}.")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain JSON, without the three that are about one invocation (run, resume, overwrite)."""
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name not in INVOCATION}


def from_json(data: dict[str, Any], *, where: str = "the run") -> TrainConfig:
    """The inverse of `to_json`. where: the origin of the settings, for messages.

    Raises ValueError for a setting that this version does not know, and for a value of another type.
    """
    hints = typing.get_type_hints(TrainConfig)
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
    }
    for name, value in settings.items():
        if name not in hints:
            raise ValueError(
                f"{where} has a setting {name!r} that this version of exlstm lacks; use the one that wrote it."
            )
        if not _fits(value, hints[name]):
            raise ValueError(f"{where} has {value!r} as the setting {name!r}, which is of another type; correct it.")
    return TrainConfig(**settings)


def _fits(value: Any, hint: Any) -> bool:
    """True if a value from JSON has the type of a field."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    return type(value) in ((int, float) if hint is float else (origin or hint,))


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The settings with absolute paths."""
    return replace(config, **{name: _comparable(name, config) for name in PATHS})


def resumed(asked: TrainConfig, saved: TrainConfig, *, steps: int, seconds: float) -> TrainConfig:
    """The settings of a resumed run: the saved ones, with the budget and others of `CHANGEABLE` taken from `asked`.

    steps, seconds: used so far, to which a budget of `More` is added. A budget of any kind that is asked for replaces
    the saved one, and the learning rate follows it from then on.
    Raises ValueError if a given setting differs from the saved one and a run cannot change it.
    """
    given = [field.name for field in fields(TrainConfig) if field.name in asked.given - {*INVOCATION}]
    for name in given:
        if name not in CHANGEABLE and _comparable(name, asked) != _comparable(name, saved):
            if name == "workers" and asked.workers == 0:  # 0 leaves the number to the run, which has one
                continue
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} {getattr(asked, name)!r} differs from the {getattr(saved, name)!r} of the run to resume; "
                f"leave {flag} out, or start a new run."
            )
    kept = {name: getattr(asked, name) for name in given if name in CHANGEABLE}
    if any(kept.get(name) is not None for name in BUDGET):
        used = {"steps": steps, "minutes": seconds / 60, "tokens": steps * saved.tokens_per_step}
        kept |= {name: _in_all(getattr(asked, name), used[name]) for name in BUDGET}
    return replace(saved, **kept, run=asked.run, resume=True)


def _in_all(asked: float | None, used: float) -> float | None:
    return type(used)(used + asked) if isinstance(asked, More) else asked


def _comparable(name: str, config: TrainConfig) -> Any:
    """The value of a setting; a path is absolute, and so is each of several."""
    value = getattr(config, name)
    spec = name == "tokenizer" and (value == "bytes" or value.startswith("bpe:"))
    if name not in PATHS or value is None or spec:
        return value
    return tuple(map(_absolute, value)) if isinstance(value, tuple) else _absolute(value)


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())
