"""What do language models get right that were only trained to go on with a text?

Models of the study `language`, trained as there, answer tasks of lm-evaluation-harness. At the small size these are
three tasks made of held-out text: which of four endings follows, which word is last, and which half comes first. At the
paper's size they are the tasks of its table 3 and PALOMA by their names, for which the harness needs their data.

Expected: accuracy follows the loss, so xLSTM is ahead by a little; models of this size are not far above guessing.

Paper: Beck et al. 2024, section 4.3, tables 3 and 4: 300 billion tokens, models of 125M to 1.3B parameters.
"""

from statistics import mean, median

from exlstm.study import Claim, ReportTable
from exlstm.study.downstream import CHANCE, LOCAL, PALOMA, PAPER, Downstream
from exlstm.study.language import language_models, trainings

SEEDS = 3
MODELS = ("xlstm[1:0]", "xlstm[7:1]", "llama", "mamba", "rwkv4")
ASKED = {"quick": ("order",), "small": LOCAL, "paper": (*PAPER, PALOMA)}
METRICS = ("acc", "acc_norm", "perplexity", "word_perplexity", "bits_per_byte")
# averages of the six tasks in the paper's table 3, for models of 350M parameters
PAPER_350M = {"rwkv4": 46.60, "llama": 48.32, "mamba": 50.14, "xlstm[1:0]": 50.62, "xlstm[7:1]": 50.75}


def runs(size):
    models = language_models(size, ("xlstm[1:0]",) if size == "quick" else MODELS)
    extra = {"questions": 4 if size == "quick" else 400 if size == "small" else 10**6}
    return [
        Downstream(**{name: getattr(run, name) for name in run.__dataclass_fields__}, asked=ASKED[size], **extra)
        for run in trainings(size, models)
    ]


def report(results):
    cells = {cell.facets["model"]: cell for cell in results.cells()}
    found = {name: answers(cell) for name, cell in cells.items()}
    columns = list(dict.fromkeys(column for entries in found.values() for column in entries))
    yield from claims(cells, found, results.size)
    yield ReportTable(
        title="Answers (accuracy in percent), as in the paper's table 3",
        columns=(
            "model",
            "bits per byte",
            *(f"{task}, {metric}" for task, metric in columns),
            "mean accuracy",
            "mean in the paper, 350M",
        ),
        rows=[
            (
                name,
                cell.spread("bits_per_byte"),
                *(number(found[name], column) for column in columns),
                percent(average(found[name])),
                f"{PAPER_350M[name]:.2f}" if name in PAPER_350M else "",
            )
            for name, cell in cells.items()
        ],
        note="The median over seeds. Guessing: "
        + ", ".join(f"{task} {100 * CHANCE[task]:.0f}" for task in ASKED[results.size] if task in CHANCE)
        + ".",
    )
    yield results.costs()


def answers(cell):
    """(task, metric): its value for every seed."""
    found = {}
    for row in cell.rows:
        for task, metrics in row["metrics"]["downstream"].items():
            for metric in METRICS:
                if metric in metrics:
                    found.setdefault((task, metric), []).append(metrics[metric])
    return found


def average(found):
    """The mean accuracy over tasks, as the paper takes it: acc_norm for tasks with endings, else acc."""
    best = {task: values for (task, metric), values in found.items() if metric == "acc"}
    best |= {task: values for (task, metric), values in found.items() if metric == "acc_norm"}
    return mean(median(values) for values in best.values()) if best else None


def number(found, column):
    if column not in found:
        return ""
    value = median(found[column])
    return percent(value) if column[1].startswith("acc") else f"{value:.2f}"


def percent(value):
    return "" if value is None else f"{100 * value:.1f}"


def claims(cells, found, size):
    """An xLSTM has the highest mean accuracy, and the lowest loss on the texts of PALOMA."""
    ready = len(cells) > 1 and not any(cell.open for cell in cells.values())
    accuracy = {name: average(entries) for name, entries in found.items()} if ready else {}
    yield Claim(
        text="an xLSTM has the highest mean accuracy",
        holds=max(accuracy, key=accuracy.get).startswith("xlstm") if ready else None,
        evidence=", ".join(f"{name} {percent(value)}" for name, value in accuracy.items()),
    )
    asked = PALOMA in ASKED[size]
    loss = {name: mean_loss(entries) for name, entries in found.items()} if ready and asked else {}
    yield Claim(
        text="an xLSTM has the lowest mean loss on the texts of PALOMA",
        holds=min(loss, key=loss.get).startswith("xlstm") if loss else None,
        evidence=", ".join(f"{name} {value:.3f} bits per byte" for name, value in loss.items())
        if asked
        else "its texts are asked for at the paper's size",
    )


def mean_loss(found):
    """Bits per byte on PALOMA, the mean over its sources."""
    return mean(
        median(values)
        for (task, metric), values in found.items()
        if task.startswith(PALOMA) and metric == "bits_per_byte"
    )
