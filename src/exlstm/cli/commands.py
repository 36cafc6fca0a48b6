"""The commands. Each is a frozen dataclass of options, whose comments are its help, and a function.

PyTorch is imported inside the functions, so that help and errors in options come at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from exlstm.cli.convert import Convert, convert
from exlstm.cli.export import Export, export
from exlstm.cli.forecast import Forecast, forecast
from exlstm.cli.generate import Generate, ModelPath, generate
from exlstm.cli.parse import check_at_least, checkpoint_of, similar
from exlstm.cli.presets import Presets, presets, without_weights
from exlstm.cli.runs import Runs, runs
from exlstm.cli.serve import Replay, Serve, replay, serve
from exlstm.cli.study import (
    StudyCompare,
    StudyList,
    StudyPlan,
    StudyReport,
    StudyRun,
    study_compare,
    study_list,
    study_plan,
    study_report,
    study_run,
)
from exlstm.models.weight_formats import WeightFormat
from exlstm.train.config import TrainConfig
from exlstm.train.recipes import RECIPES

if TYPE_CHECKING:
    from exlstm.data.tokenizer import Tokenizer
    from exlstm.models.lm import LM, LMConfig

PresetOrModel = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET_OR_MODEL")]

SAMPLE_PROMPT = "def "
SAMPLE_TOKENS = 200


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Options of `exlstm eval`."""

    model: ModelPath  # folder of a run, or folder or file of a model in any layout
    data: str | None = None  # text file, folder, glob or .jsonl; left out: the run's own held-out text
    binary: bool = False  # with --data: take files that do not look like text, too
    tokenizer: str | None = None  # "bytes" or a tokenizer.json; left out: the one beside the model
    part: Literal["val", "test"] = "val"  # which held-out text of the run
    context: str | None = None  # context lengths, such as 256,1024,4096,16384; left out: those of these that fit
    tokens: int = 131_072  # how many tokens the context lengths are compared on
    minutes: float = 5.0  # longest time for the pass over the whole text
    checkpoint: str = "best"  # best, last, or the number of a step
    weights: WeightFormat = "as-saved"  # compare with the weights in another precision
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    def __post_init__(self) -> None:
        check_at_least(self, tokens=1, minutes=0)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Options of `exlstm summary`."""

    model: PresetOrModel  # name of a preset, or a run or model on disk


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Options of `exlstm explain`."""

    model: PresetOrModel = "laptop-small"  # name of a preset, or a run or model on disk
    batch: int = 1  # sequences at a time
    length: int = 128  # tokens of each in training and in reading a prompt
    device: str = "auto"  # "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    def __post_init__(self) -> None:
        check_at_least(self, batch=1, length=1)


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Options of `exlstm tune`."""

    model: PresetOrModel = "laptop-small"  # name of a preset, or a run or model on disk
    batch: int = 8  # sequences at a time
    length: int = 2048  # tokens of each
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of what the kernels multiply
    device: str = "auto"  # "auto" (a GPU if there is one), "cuda", "cuda:1", ...

    def __post_init__(self) -> None:
        check_at_least(self, batch=1, length=1)


def train(options: TrainConfig) -> None:
    """`exlstm train`."""
    from exlstm.train.run import train as run_training

    run_training(options, sample=_sample)


def demo(options: TrainConfig) -> None:
    """`exlstm demo`: trains, then prints a sample."""
    from exlstm.train.run import train as run_training

    if options.run == RECIPES["demo"].run and not options.resume:
        options = options.but(overwrite=True)
    summary = run_training(options, sample=_sample)
    if summary.final is None:
        return
    folder = Path(summary.run)
    print(f"\nA sample, as `exlstm generate {folder} --prompt {SAMPLE_PROMPT!r}` gives it:\n")
    generate(Generate(model=summary.run, prompt=SAMPLE_PROMPT, device=options.device))
    print(f"\nThe learning curve is in {folder / 'loss.png'}, the report in {folder / 'report.html'}.")


def evaluate(options: Evaluate) -> None:
    """`exlstm eval`: scores the model as it was saved and, with --weights, in another precision."""
    from exlstm.infer.quantize import with_weights
    from exlstm.train.evaluate import evaluate as run_evaluation

    _check_not_quantized(options)
    run = partial(
        run_evaluation,
        options.model,
        data=options.data,
        binary=options.binary,
        tokenizer=options.tokenizer,
        part=options.part,
        context=None if options.context is None else _lengths(options.context),
        tokens=options.tokens,
        minutes=options.minutes,
        checkpoint=checkpoint_of(options.checkpoint),
        device=options.device,
    )
    saved = run()
    print(saved.table())
    if options.weights != "as-saved":
        other = run(change=partial(with_weights, weights=options.weights))
        print(f"\nWith {options.weights} weights:\n{other.table()}")
        # passes over the whole text that ran out of time have not read the same bytes
        same = saved.coverage == other.coverage == 1 or not saved.contexts
        where, (before, after) = "the whole text", (saved.whole, other.whole)
        if not same:
            context = max(saved.contexts)
            where, (before, after) = f"context {context:,}", (saved.contexts[context], other.contexts[context])
        print(
            f"{where}: bits per byte {before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f} "
            f"({after.bits_per_byte / before.bits_per_byte - 1:+.2%}), "
            f"perplexity {before.perplexity:.3f} -> {after.perplexity:.3f}"
        )


def summary(options: Summary) -> None:
    """`exlstm summary`."""
    from exlstm.models.locate import locate

    on_disk = Path(options.model).exists()
    model = locate(options.model).outline() if on_disk else without_weights(_architecture(options.model))
    print(model.summary())


def explain(options: Explain) -> None:
    """`exlstm explain`."""
    from exlstm.models.explain import explain_config
    from exlstm.runtime.machine import pick_device

    print(explain_config(_architecture(options.model), options.batch, options.length, pick_device(options.device)))


def tune(options: Tune) -> None:
    """`exlstm tune`: times the kernels of every kind of mLSTM cell in the model."""
    import torch

    from exlstm.mixers.state import leaves
    from exlstm.models.memory import check_memory
    from exlstm.ops.mlstm import MLSTMState
    from exlstm.runtime.machine import pick_device

    model = without_weights(_architecture(options.model))
    cells = sorted({tuple(cell.c_BHKV.shape[1:]) for cell in leaves(model.zero_state(1), MLSTMState)})
    if not cells:
        raise ValueError(f"{options.model!r} has no mLSTM, whose kernels are tuned; exlstm presets lists models.")
    device = pick_device(options.device)
    if device.type != "cuda":
        raise ValueError(f"the device is {device.type} and what is tuned runs on a GPU; use a machine that has one.")
    check_memory(model.config, options.batch, options.length, device)
    from exlstm.ops.mlstm.triton.tune import tune as run_tuning

    for H, K, V in cells:
        print(f"{H} heads, keys of {K}, values of {V}, {options.precision}:")
        dtype = getattr(torch, options.precision)
        file = run_tuning(options.batch, options.length, H, K, V, dtype, device, say=lambda text: print("  " + text))
        print(f"  kept in {file}" if file else "  there is no place to keep it")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command. help: its line in the overview. more: text that only its own help has."""

    help: str
    more: str = ""
    options: type
    default: Any = None  # None: the defaults of the options
    run: Callable[[Any], int | None]  # an exit code; None is 0


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A command of other software, which parses the words itself and returns the exit code."""

    help: str
    run: Callable[[list[str]], int]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Commands under one name: `exlstm study run`."""

    help: str
    commands: dict[str, Command]


def lm_eval(words: list[str]) -> int:
    """`exlstm lm-eval`."""
    from exlstm.harness import main

    return main(words)


COMMANDS: dict[str, Command] = {
    "train": Command(
        help="train a language model on text, or resume a run",
        more="The budget is whichever of --steps, --minutes and --tokens is used up first. Ctrl-C saves and stops, "
        "as a closed terminal does.\n"
        f"--recipe NAME begins with the settings of a recipe ({', '.join(RECIPES)}), and other options change it.\n"
        "--config FILE begins with the settings of a file: the config.json of a run, or settings alone as JSON.",
        options=TrainConfig,
        run=train,
    ),
    "runs": Command(
        help="the runs below a folder: state, steps, loss, bits per byte, when",
        more="A run is running (a process trains it), finished, stopped before its end, or damaged.",
        options=Runs,
        run=runs,
    ),
    "eval": Command(
        help="loss, perplexity, bits per byte of a model by context length",
        more="Memory is that of one training batch, however long the context is.",
        options=Evaluate,
        run=evaluate,
    ),
    "generate": Command(
        help="continue a text, many texts or a conversation; streams as it comes",
        more="Ctrl-C ends the text and not the program: the state is kept where that was asked for. What a prompt and "
        "its continuation leave behind is a state of constant size: --save-state keeps it, --state goes on from it.",
        options=Generate,
        run=generate,
    ),
    "serve": Command(
        help="a server with OpenAI's interface, states over HTTP and a playground",
        more="Listens on this machine alone unless there are keys. SIGTERM lets running requests complete. States of "
        "talks are kept, forked and rewound by id: see the page `Serve` of the documentation.",
        options=Serve,
        run=serve,
    ),
    "replay": Command(
        help="repeat an answer of the server from its certificate",
        more="An answer to a request with certificate: true says what the request was and of which weights. The same "
        "request to the same weights gives the same text; the exit code is 1 if it does not.",
        options=Replay,
        run=replay,
    ),
    "convert": Command(
        help="write a model in another layout, dtype, or with weights of fewer bits",
        more="Reads our own layout, those of transformers' models, xlstm-large (single and fused) and the paper's "
        "package, and writes each of them. Weights go through memory a shard at a time.",
        options=Convert,
        run=convert,
    ),
    "export": Command(
        help="write a model as a graph for ONNX Runtime, browsers or torch",
        more="The state goes in and comes out, so that the file runs without exlstm: a step at a time, in chunks, or a "
        "whole sequence in a loop inside of the graph. Weights are float32, or int8 for ONNX. A step is then compared "
        "with the model on tokens that the model draws.",
        options=Export,
        run=export,
    ),
    "forecast": Command(
        help="forecast a series of numbers from a CSV file, with quantiles and a backtest",
        more="Methods are fitted to the beginning of the series and compared on the same windows at its end: xLSTM, "
        "torch's LSTM of equal size, a linear map, the season before and the drift; and AutoETS and AutoARIMA where "
        "statsforecast is installed. MASE is the absolute error in units of the season before, CRPS that of all "
        "quantiles in units of the series; both are better lower.",
        options=Forecast,
        run=forecast,
    ),
    "demo": Command(
        help="five minutes: train on Python's own source, compare, generate",
        more="Replaces the former demo in runs/demo, and no other run. Options change the recipe, as in "
        "`exlstm train --recipe demo`.",
        options=TrainConfig,
        default=RECIPES["demo"],
        run=demo,
    ),
    "presets": Command(help="the models that have a name, with their sizes", options=Presets, run=presets),
    "summary": Command(help="blocks, parameters, FLOPs and state of a preset or a model", options=Summary, run=summary),
    "explain": Command(help="which backend each op of a model runs on here, and why", options=Explain, run=explain),
    "tune": Command(
        help="find the fastest settings of the mLSTM's GPU kernels, and keep them",
        more="Takes some minutes for each kind of cell in the model. Without it kernels run with settings that fit "
        "every GPU. What is found is kept in your cache folder, for this kind of GPU, and used from then on.",
        options=Tune,
        run=tune,
    ),
}


GROUPS: dict[str, Group] = {
    "study": Group(
        help="the questions of the paper: run them, and see what came out",
        commands={
            "list": Command(help="the studies, and how far each has run", options=StudyList, run=study_list),
            "run": Command(
                help="run a study, or what is left of it, and report",
                more="Every run that ends is a line in results/NAME/SIZE.jsonl of the folder; a kill costs the runs at "
                "hand. A run that fails does not stop the others.",
                options=StudyRun,
                run=study_run,
            ),
            "plan": Command(help="what a study will cost", options=StudyPlan, run=study_plan),
            "report": Command(help="tables and pictures of a study's results", options=StudyReport, run=study_report),
            "compare": Command(help="two sets of results side by side", options=StudyCompare, run=study_compare),
        },
    ),
}


FOREIGN: dict[str, Foreign] = {
    "lm-eval": Foreign(help="lm-evaluation-harness's own command line, with the model exlstm in it", run=lm_eval),
}


def _lengths(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"--context {text!r} is not a list of lengths; write one such as 256,1024,4096.")
    return [int(word) for word in words]


def _check_not_quantized(options: Evaluate) -> None:
    """Raises ValueError for --weights of a quantized model before the first of two evaluations, which takes minutes."""
    from exlstm.models.locate import locate

    if options.weights in ("int8", "int4"):
        found = locate(options.model, checkpoint_of(options.checkpoint))
        if bits := found.bits():
            raise ValueError(f"{found.weights} is quantised already ({bits}); leave out --weights {options.weights}.")


def _architecture(name: str) -> "LMConfig":
    """The architecture of a run or model on disk, if there is one of that name, else of a preset."""
    from exlstm.models.locate import locate
    from exlstm.models.presets import PRESETS, preset

    if Path(name).exists():
        return locate(name).config()
    if name not in PRESETS:
        raise ValueError(
            f"there is no model and no preset {name!r}{similar(name, PRESETS)}; exlstm presets lists them."
        )
    return preset(name)


def _sample(model: "LM", tokenizer: "Tokenizer") -> str:
    """A sample for the report of a training run, always with the same random numbers."""
    from exlstm.infer.generate import generate as run
    from exlstm.infer.sampling import SamplingConfig

    sampling = SamplingConfig(temperature=0.8, top_p=0.95)
    (found,) = run(model, [SAMPLE_PROMPT], tokenizer=tokenizer, max_tokens=SAMPLE_TOKENS, sampling=sampling)
    if found.error is not None:
        raise ValueError(found.error)
    return f"{SAMPLE_PROMPT}{found.text}"
