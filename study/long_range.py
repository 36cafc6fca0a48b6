"""Which memories reason over long rows that have a class?

The Long Range Arena where it can be made without a download, and stand-ins under names of their own: ListOps by its
grammar, paths of dashes from a generator of ours, digits pixel by pixel, the package that source text is from, and
whether two windows are from one file. CIFAR-10 takes part at the paper's size, from torchvision's files. A model reads
a row from both ends, as S5 does, and the mean of its outputs is the input of a linear map; xLSTM[1:0] is there a second
time, reading from the beginning alone with as many parameters.

Expected: xLSTM is the best on average in the paper, where the better one of [1:0] and [0:1] counts for every task. Rows
are short here, of 20 to 256 tokens, so that attention loses little.

Paper: Beck et al. 2024, appendix B, tables 5 and 6: Retrieval, ListOps, Pathfinder, grey and RGB images; without Text
and Path-X.
"""

from dataclasses import replace
from statistics import mean

from exlstm.data.long_range import CLASS_TASKS
from exlstm.study import (
    QUICK,
    Claim,
    Lesson,
    Picture,
    ReportTable,
    Training,
    body_parameters,
    compared_models,
    figures,
    with_parameters,
)

SEEDS = 3
RIVALS = ("mamba", "rwkv4", "s5", "s4d", "lru")
OURS, ONE_WAY = ("xlstm[1:0]", "xlstm[0:1]"), "xlstm[1:0], one way"
# task: lengths, and what differs in training
PLACES = {
    "quick": {"listops_small": ((8, 16), {})},
    "small": {
        "listops_small": ((20, 60), {"steps": 1200}),
        "pathfinder_own": ((144, 144), {"steps": 1000}),
        "digits": ((64, 64), {"steps": 600}),
        "stdlib_package": ((256, 256), {"steps": 400}),
        "stdlib_match": ((256, 256), {"steps": 600}),
    },
    "paper": {
        "listops": ((500, 2000), {"steps": 80_000, "batch": 32}),
        "pathfinder_own": ((1024, 1024), {"steps": 500_000, "batch": 64}),
        "cifar": ((1024, 1024), {"steps": 180_000, "batch": 64}),
        "stdlib_package": ((4096, 4096), {"steps": 100_000, "batch": 64}),
        "stdlib_match": ((8000, 8000), {"steps": 100_000, "batch": 64}),
    },
}
HOW = {
    "quick": QUICK,
    "small": {"batch": 16, "validations": 4, "validation_rows": 256, "test_rows": 1000},
    "paper": {"test_rows": 2000},
}


def runs(size):
    found = []
    for task, ((low, high), changes) in PLACES[size].items():
        lesson = Lesson(task=task, train=(low, high), test=((low, high),), both_ways=True)
        entries = [(name, model, lesson) for name, model in models(size).items()]
        entries.append((ONE_WAY, one_way(models(size)["xlstm[1:0]"]), replace(lesson, both_ways=False)))
        found += [
            Training(model=name, architecture=model, lessons=(own,), lr=rate, **{**HOW[size], **changes})
            for name, model, own in entries
            for rate in {"quick": (3e-3,), "small": (1e-3, 4e-3), "paper": (1e-3, 6e-4, 1e-4)}[size]
        ]
    return found


def models(size):
    width, heads, depth = {"quick": (16, 2, 2), "small": (48, 2, 3), "paper": (192, 4, 6)}[size]
    rivals = RIVALS if size != "quick" else ()
    found = compared_models(width=width, heads=heads, depth=depth, rivals=rivals)
    names = ("xlstm[1:0]", "xlstm[0:1]", "lstm", "attention", *rivals) if size != "quick" else ("xlstm[1:0]",)
    return {name: found[name] for name in names}


def one_way(model):
    """The model with twice the parameters, which reading from both ends takes."""
    return with_parameters(model, 2 * body_parameters(model))


def report(results):
    cells = {(cell.facets["model"], cell.facets["task"]): cell for cell in results.cells()}
    tasks, names = results.values("task"), results.values("model")
    yield from claims(cells, tasks, names)
    yield ReportTable(
        title="Scaled accuracy",
        columns=("model", *(task if CLASS_TASKS[task].is_lra else f"{task} (not LRA)" for task in tasks), "mean rank"),
        rows=[
            (name, *(cells[name, task].text() for task in tasks), mean_rank(name, cells, tasks, names))
            for name in names
        ],
        note="; ".join(f"{task}: {CLASS_TASKS[task].about}" for task in tasks) + ".",
    )
    yield results.costs()
    yield Picture(
        name="tasks",
        title="Every seed",
        size=(12, 2.8),
        draw=lambda figure: figures.strips(
            figure,
            {task: {name: cells[name, task].scores() for name in names} for task in tasks},
            columns=5,
            label="scaled accuracy",
            least=None,
        ),
    )


def ranks(cells, tasks, names):
    """The rank of every model in every task, 1 for the best; empty while runs are missing."""
    if any(cell.open for cell in cells.values()):
        return {}
    score = {key: cell.median() for key, cell in cells.items()}
    return {(name, task): 1 + sum(score[other, task] > score[name, task] for other in names)
            for name in names for task in tasks}  # fmt: skip


def mean_rank(name, cells, tasks, names):
    found = ranks(cells, tasks, names)
    return f"{mean(found[name, task] for task in tasks):.1f}" if found else ""


def claims(cells, tasks, names):
    """The paper's statement: the better one of xLSTM[1:0] and [0:1] has the best average rank."""
    found = ranks(cells, tasks, names)
    rivals = [name for name in names if not name.startswith("xlstm")]
    if not rivals or not set(OURS) <= set(names):
        return
    holds, evidence = None, ""
    if found:
        ours = mean(min(found[name, task] for name in OURS) for task in tasks)
        best = min(rivals, key=lambda name: mean(found[name, task] for task in tasks))
        theirs = mean(found[best, task] for task in tasks)
        holds, evidence = ours < theirs, f"mean rank {ours:.1f}; next, {best}, {theirs:.1f}"
    yield Claim(text="the better one of xLSTM[1:0] and [0:1] has the best mean rank", holds=holds, evidence=evidence)
    both = [(cells["xlstm[1:0]", task], cells[ONE_WAY, task]) for task in tasks]
    undecided = any(cell.open for pair in both for cell in pair)
    yield Claim(
        text="reading from both ends helps xLSTM[1:0] in most tasks",
        holds=None if undecided else 2 * sum(a.median() > b.median() for a, b in both) > len(both),
        evidence=""
        if undecided
        else ", ".join(
            f"{task} {a.median():.2f} and {b.median():.2f}" for task, (a, b) in zip(tasks, both, strict=True)
        ),
    )
