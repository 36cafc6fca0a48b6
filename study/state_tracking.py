"""Which memories follow the word problem of S5, and does a block of each kind suffice?

Strings of two permutations of five things, one that exchanges two of them and a cycle of all; the answer is their
product, one of 120. The products of S5 do not commute and cannot be taken apart into those of smaller groups, which
puts its word problem beyond all models whose state changes linearly and diagonally. At the small size the answers to
all prefixes are asked for in training. DeltaNets take part with corrections that turn around what is stored
(`allow_neg_eigval`): a step of theirs can exchange two things.

Expected: sLSTM, LSTM and xLSTM[1:1] solve it, as their gates see the memory; mLSTM, Mamba and attention do not; RWKV-7
and the DeltaNets may.

Paper: Beck et al. 2024, sections 2.2 and 4.1, after Merrill et al. 2024: tracking a state needs memory mixing. That S5
is hard is of Barrington 1989.
"""

from exlstm.study import FORMAL, QUICK, Claim, Lesson, Picture, ReportTable, Training, compared_models, figures

RANGES = {"40 to 256": (40, 256), "40 to 80": (40, 80), "3 to 40": (3, 40)}
BEYOND, TRAINED = 0, 2  # the tests
SOLVERS = ("xlstm[0:1]", "xlstm[1:1]", "lstm")
OTHERS = ("xlstm[1:0]", "attention", "mamba")
OPEN = {"deltanet": {"allow_neg_eigval": True}, "gated_deltanet": {"allow_neg_eigval": True}, "rwkv7": {}}


def runs(size):
    width, heads = {"quick": (16, 2), "small": (64, 2), "paper": (128, 4)}[size]
    how = {
        "quick": QUICK,
        "small": {
            "steps": 6000,
            "batch": 16,
            "validations": 10,
            "validation_rows": 64,
            "test_rows": 256,
            "enough": 0.999,
        },
        "paper": {"steps": 100_000, "batch": 256, "test_rows": 2048},
    }[size]
    rates = {"quick": (3e-3,), "small": (3e-3, 1e-2), "paper": (1e-2, 1e-3, 1e-4)}[size]
    mixing = FORMAL if size == "paper" else {**FORMAL, "heads": 1}
    rivals = {} if size == "quick" else {"mamba": {}, **OPEN}
    models = compared_models(width=width, heads=heads, slstm=mixing, rivals=rivals)
    lesson = Lesson(task="s5_generators", train=RANGES["3 to 40"], test=tuple(RANGES.values()), dense=size == "small")
    return [
        Training(model=name, architecture=models[name], lessons=(lesson,), lr=rate, **how)
        for name in (SOLVERS[:1] if size == "quick" else (*SOLVERS, *OTHERS, *OPEN))
        for rate in rates
    ]


def report(results):
    cells = {name: results.cell(model=name) for name in results.values("model")}
    for name in [name for name in (*SOLVERS, *OTHERS) if name in cells]:
        yield from claims(name, cells[name])
    yield ReportTable(
        title="Scaled accuracy, by length",
        columns=("model", *RANGES, "best seed at 40 to 256"),
        rows=[
            (name, *(cell.text(test) for test in range(len(RANGES))), f"{max(cell.scores(BEYOND), default=0):.2f}")
            for name, cell in cells.items()
        ],
    )
    yield results.costs()
    yield Picture(
        name="lengths",
        title="Every seed, at lengths of training and beyond",
        size=(11, 3.2),
        draw=lambda figure: figures.strips(
            figure,
            {where: {name: cell.scores(test) for name, cell in cells.items()} for test, where in enumerate(RANGES)},
            columns=3,
            label="scaled accuracy; dashed: 0.99",
        ),
    )


def claims(name, cell):
    """What mixes its memory solves the problem, what does not falls short at the lengths of training already."""
    if name not in SOLVERS:
        holds = None if cell.open else cell.solved(test=TRAINED) == 0
        yield Claim(text=f"{name} does not learn S5", holds=holds, evidence=by_length(cell))
        return
    for verb, test, where in (("solves", BEYOND, "40 to 256"), ("learns", TRAINED, "3 to 40")):
        yield Claim(
            text=f"{name} {verb} S5 (0.99 at lengths {where}, 4 of 5 seeds)",
            holds=None if cell.open else cell.solved(test=test) >= 0.8 * cell.planned,
            evidence=by_length(cell),
        )


def by_length(cell):
    """The accuracies that a claim stands on."""
    if not cell.rows:
        return ""
    return f"{cell.text(BEYOND)}; at 40 to 80 {cell.text(1)}; at 3 to 40 {cell.text(TRAINED)}"
