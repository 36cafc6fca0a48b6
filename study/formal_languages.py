"""Formal languages: which memories can count, track a state, and write a string anew?

Two blocks of every model learn fifteen languages on strings of 3 to 40 tokens and are tested on 40 to 256, where only
the answer is asked for. At the paper's size so it is in training; at the small size training asks for the answers to
all prefixes, where a language has them.

Expected: parity and the other regular languages need a state that is mixed at every step, so sLSTM, [1:1] and LSTM
solve parity, and models without memory mixing (mLSTM alone, attention) do not get beyond guessing.

Paper: Beck et al. 2024, section 4.1, figures 4 and 12, appendix B.1.1. The sLSTM has no convolution there, and
recurrent weights that are not zero at the start.
"""

from exlstm.data.tasks import FORMAL_LANGUAGES, TASKS
from exlstm.study import FORMAL, QUICK, Claim, Lesson, Picture, ReportTable, Training, compared_models, figures

REGULAR = ("parity", "even_pairs", "cycle_navigation", "modular_arithmetic")


def how(size, task):
    if size == "quick":
        return QUICK
    if size == "paper":
        return {"steps": 100_000, "batch": 256, "test_rows": 2048}
    # parity decides the claims, and its runs stop when they have solved it; of the rest this is a first look
    long = task in REGULAR
    return {
        "steps": 1000 if long else 250,
        "batch": 16,
        "validations": 5 if long else 2,
        "validation_rows": 64,
        "test_rows": 256 if long else 128,
        "enough": 0.999,
    }


def runs(size):
    tasks = dict.fromkeys((*REGULAR, *FORMAL_LANGUAGES)) if size != "quick" else ("parity", "reverse_string")
    rates = {"quick": (1e-2,), "small": (3e-3, 1e-2), "paper": (1e-2, 1e-3, 1e-4)}[size]
    width, heads = (128, 4) if size == "paper" else (32 if size == "small" else 16, 2)
    # in few channels the sLSTM's R is one block, as in the paper's code for parity
    mixing = FORMAL if size == "paper" else {**FORMAL, "heads": 1}
    return [
        Training(
            model=name,
            architecture=architecture,
            lessons=(
                Lesson(
                    task=task,
                    train=(3, 40),
                    test=((40, 256),),
                    dense=size == "small" and TASKS[task].labels is not None,
                ),
            ),
            lr=rate,
            **how(size, task),
        )
        for task in tasks
        for name, architecture in compared_models(width=width, heads=heads, slstm=mixing).items()
        for rate in rates
    ]


def report(results):
    models, tasks = results.values("model"), results.values("task")
    cells = {(task, model): results.cell(task=task, model=model) for task in tasks for model in models}
    yield from parity_claims(cells, models)
    yield ReportTable(
        title="Scaled accuracy at lengths 40 to 256",
        columns=("task", *models),
        rows=[(task, *(cells[task, model].text() for model in models)) for task in tasks],
    )
    yield results.costs()
    yield Picture(
        name="heat",
        title="Median scaled accuracy at lengths 40 to 256",
        size=(11, 3.6),
        draw=lambda figure: figures.heat_map(
            figure, [[cells[task, model].median() for task in tasks] for model in models], models, tasks
        ),
    )
    regular = [task for task in REGULAR if task in tasks]
    yield Picture(
        name="regular",
        title="Regular languages, every seed",
        size=(11, 2.8),
        draw=lambda figure: figures.strips(
            figure,
            {task: {model: cells[task, model].scores() for model in models} for task in regular},
            label="scaled accuracy at lengths 40 to 256; dashed: 0.99",
        ),
    )


def parity_claims(cells, models):
    solvers = [model for model in ("xlstm[0:1]", "xlstm[1:1]", "lstm", "lstm(block)") if model in models]
    for model in models:
        cell = cells["parity", model]
        solved, ran = cell.solved(), len(cell.rows)
        if model in solvers:
            holds = None if cell.open else solved >= 0.8 * cell.planned
            text = f"{model} solves parity (0.99 at lengths 40 to 256, 4 of 5 seeds)"
        else:
            holds = None if cell.open else solved == 0
            text = f"{model} does not solve parity"
        yield Claim(text=text, holds=holds, evidence=f"{solved} of {ran} seeds; median {cell.text()}")
