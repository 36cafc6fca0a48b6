"""Formal languages: which memories can count, track a state, and write a string anew?

Two blocks of every model learn fifteen languages on strings of 3 to 40 tokens and are tested on 40 to 256, where only
the answer is asked for. At the paper's size so it is in training; at the small size training asks for the answers to
all prefixes, where a language has them. Every rival learns the three of them that tell memories apart. Of the languages
that are not regular strings of the training lengths are tested too: few models get far beyond these at the small size.

Expected: parity and the other regular languages need a state that is mixed at every step, so sLSTM, [1:1] and LSTM
solve parity, and models without memory mixing (mLSTM alone, attention) do not get beyond guessing. Of the rivals only
recurrent nets mix their memory; a delta rule may reflect it, where its rate of writing can be above 1.

Paper: Beck et al. 2024, section 4.1, figures 4 and 12, appendix B.1.1. The sLSTM has no convolution there, and
recurrent weights that are not zero at the start.
"""

from exlstm.data.tasks import FORMAL_LANGUAGES, TASKS
from exlstm.study import (
    FORMAL,
    QUICK,
    Claim,
    Lesson,
    Picture,
    ReportTable,
    Training,
    compared_models,
    figures,
    narrow_rivals,
    rival_names,
)

REGULAR = ("parity", "even_pairs", "cycle_navigation", "modular_arithmetic")
BEYOND, TRAINED = (40, 256), (3, 40)
OF_RIVALS = ("parity", "even_pairs", "cycle_navigation")
MIXED = ("gru", "elman", "mult_lstm", "assoc_lstm", "matrix_rnn")  # gates or inputs that see the memory


def how(size, task):
    if size == "quick":
        return QUICK
    if size == "paper":
        return {"steps": 100_000, "batch": 256, "test_rows": 2048}
    # strings written anew take longer to learn than an answer of one letter; runs stop when they have solved their task
    return {
        "steps": 1000 if task in REGULAR else 3000,
        "batch": 16,
        "validations": 5,
        "validation_rows": 64,
        "test_rows": 256,
        "enough": 0.999,
    }


def tests(size, task):
    """Ranges of lengths. At the small size the regular languages have that of the claims alone."""
    return (BEYOND,) if size == "small" and task in REGULAR else (BEYOND, TRAINED)


def rivals(size, task):
    if size == "quick":
        return ["gla"] if task == "parity" else []
    return narrow_rivals() if task in OF_RIVALS else []


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
                    train=TRAINED,
                    test=tests(size, task),
                    dense=size == "small" and TASKS[task].labels is not None,
                ),
            ),
            lr=rate,
            **how(size, task),
        )
        for task in tasks
        for name, architecture in compared_models(
            width=width, heads=heads, slstm=mixing, rivals=rivals(size, task)
        ).items()
        for rate in rates
    ]


def report(results):
    tasks, everyone = results.values("task"), results.values("model")
    models = [model for model in everyone if model not in rival_names()]
    others = [model for model in everyone if model in rival_names()]
    cells = {(task, model): results.cell(task=task, model=model) for task in tasks for model in models}
    yield from parity_claims(cells, models)
    yield from rivals_part(results, others)
    yield ReportTable(
        title="Scaled accuracy at lengths 40 to 256",
        columns=("task", *models),
        rows=[(task, *(cells[task, model].text() for model in models)) for task in tasks],
    )
    both = [task for task in tasks if len(tests(results.size, task)) > 1]
    yield ReportTable(
        title="Scaled accuracy at lengths 3 to 40, those of training",
        columns=("task", *models),
        rows=[(task, *(cells[task, model].text(1) for model in models)) for task in both],
    )
    yield results.costs()
    for test, (where, shown) in enumerate((("40 to 256", tasks), ("3 to 40", both))):
        yield Picture(
            name="heat" if test == 0 else "heat-trained",
            title=f"Median scaled accuracy at lengths {where}",
            size=(11, 3.6),
            draw=lambda figure, test=test, shown=shown: figures.heat_map(
                figure, [[cells[task, model].median(test) for task in shown] for model in models], models, shown
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


def rivals_part(results, names):
    """Parity by kind of memory, and a table with a line per rival."""
    tasks = [task for task in OF_RIVALS if task in results.values("task")]
    cells = {(task, name): results.cell(task=task, model=name) for task in tasks for name in names}
    unmixed = [name for name in names if name not in MIXED]
    if unmixed:
        solved = {name: cells["parity", name].solved() for name in unmixed}
        yield Claim(
            text="no rival without memory mixing solves parity",
            holds=None if any(cells["parity", name].open for name in unmixed) else not any(solved.values()),
            evidence=", ".join(f"{name} in {seeds} seeds" for name, seeds in solved.items() if seeds) or "none does",
        )
    if names:
        yield ReportTable(
            title="Rivals: scaled accuracy at lengths 40 to 256",
            columns=("rival", "memory mixing", *tasks),
            rows=[
                (name, "yes" if name in MIXED else "", *(cells[task, name].text() for task in tasks)) for name in names
            ],
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
