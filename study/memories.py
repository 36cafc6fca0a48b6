"""Does a matrix memory help other recurrent nets, and what do older memories of LSTMs do?

Elman nets and GRUs with a vector and with a matrix for a memory, multiplicative and associative LSTMs, beside LSTM,
sLSTM and mLSTM, at equal parameters: recall of 4 pairs in 64 tokens, parity and the navigation of a cycle at lengths
that were not trained, and text. Most of these runs are those of `recall`, `formal_languages` and `language`.

Expected: a matrix recalls whatever the net around it is; only nets whose gates or inputs see the memory track a state,
so a matrix whose update mixes does both.

Paper: asked by its reviewers. Of the nets, the multiplicative LSTM is of Krause et al. 2016, the associative one of
Danihelka et al. 2016, the matrix nets are close to M2RNN (Mishra et al. 2026).
"""

from exlstm.mixers.matrix_rnn import MatrixRNNConfig
from exlstm.models.rivals import rival
from exlstm.study import (
    FORMAL,
    QUICK,
    Claim,
    Lesson,
    ReportTable,
    Training,
    body_parameters,
    compared_models,
    narrow_rivals,
    stack,
    with_parameters,
)
from exlstm.study.language import SHAPE, language_models, trainings

USES = ("recall", "formal_languages", "language")
SEEDS = 3
OTHERS = ("lstm", "elman", "gru", "matrix_rnn", "mult_lstm", "assoc_lstm")
# beside matrix_rnn, which is the GRU with a matrix and mixing
MATRICES = {
    "matrix_rnn(elman)": {"cell": "elman"},
    "matrix_rnn(no mixing)": {"mix": "none"},
    "matrix_rnn(elman, no mixing)": {"cell": "elman", "mix": "none"},
}
RECALL, TRACK = "recall_4_of_512", ("parity", "cycle_navigation")
KINDS = {  # vector or matrix, and what mixes the memory
    "xlstm[1:0]": ("matrix", "nothing"),
    "xlstm[0:1]": ("vector", "gates"),
    "lstm": ("vector", "gates"),
    "elman": ("vector", "update"),
    "gru": ("vector", "gates"),
    "mult_lstm": ("vector", "gates, multiplied"),
    "assoc_lstm": ("vector of complex numbers, several copies", "gates"),
    "matrix_rnn": ("matrix", "update"),
    "matrix_rnn(elman)": ("matrix", "update"),
    "matrix_rnn(no mixing)": ("matrix", "nothing"),
    "matrix_rnn(elman, no mixing)": ("matrix", "nothing"),
}


def runs(size):
    if size == "quick":
        lesson = Lesson(task="parity", train=(3, 40), test=((40, 64),))
        model = stack((MatrixRNNConfig(heads=2, cell="elman"),) * 2, width=16)
        return [Training(model="matrix_rnn(elman)", architecture=model, lessons=(lesson,), lr=1e-2, **QUICK)]
    return [*recall(size), *tracking(size), *text(size)]


def recall(size):
    """As in the study `recall` at 4 pairs, and so the same runs there."""
    small = size == "small"
    width = 32 if small else 128
    lesson = Lesson(task=RECALL if small else "recall_4_of_8192", train=(64, 64), test=((64, 64),))
    how = {"steps": 64 * 100_000 // 512, "batch": 512, "test_rows": 3000}
    if small:
        how = {"steps": 2400, "batch": 16, "validations": 8, "validation_rows": 64, "test_rows": 256, "enough": 0.995}
    varied = (("context", "64"), ("pairs", "4"), ("width", str(width)))
    models = chosen(width, 2, attention={"rope_base": 100.0} if small else {})
    rates = (3e-3, 1e-2) if small else (1e-2, 2.15e-3, 4.6e-4, 1e-4)
    return [
        Training(model=name, architecture=model, lessons=(lesson,), lr=rate, varied=varied, **how)
        for name, model in models.items()
        for rate in rates
    ]


def tracking(size):
    """As in the study `formal_languages`."""
    small = size == "small"
    how = {"steps": 100_000, "batch": 256, "test_rows": 2048}
    if small:
        how = {"steps": 1000, "batch": 16, "validations": 5, "validation_rows": 64, "test_rows": 256, "enough": 0.999}
    slstm = {**FORMAL, "heads": 1} if small else FORMAL
    models = chosen(32 if small else 128, 2 if small else 4, slstm=slstm)
    return [
        Training(
            model=name,
            architecture=model,
            lessons=(Lesson(task=task, train=(3, 40), test=((40, 256),), dense=small),),
            lr=rate,
            **how,
        )
        for task in TRACK
        for name, model in models.items()
        for rate in ((3e-3, 1e-2) if small else (1e-2, 1e-3, 1e-4))
    ]


def text(size):
    """As in the study `language`."""
    found = language_models(size, ("xlstm[1:0]", "xlstm[0:1]", *OTHERS))
    shape = SHAPE[size]
    target = body_parameters(found["xlstm[1:0]"])
    for name, options in MATRICES.items():
        model = rival("matrix_rnn", shape["depth"], {"heads": shape["heads"], **options}, width=shape["width"])
        found[name] = with_parameters(model, target)
    return trainings(size, found)


def chosen(width, heads, **settings):
    """The models of a task, with the parameters that they have in the other studies."""
    found = compared_models(width=width, heads=heads, rivals=narrow_rivals(), **settings)
    target = body_parameters(found["gru"])
    found = {name: found[name] for name in ("xlstm[1:0]", "xlstm[0:1]", *OTHERS)}
    for name, options in MATRICES.items():
        model = stack((MatrixRNNConfig(heads=heads, **options),) * 2, width=width)
        found[name] = with_parameters(model, target)
    return found


def report(results):
    cells = {(cell.facets["model"], cell.facets["task"]): cell for cell in results.cells()}
    tasks = results.values("task")
    names = [name for name in KINDS if name in results.values("model")]
    for name in names:
        yield from claims(name, cells)
    yield ReportTable(
        title="What each memory learns",
        columns=("model", "memory", "what mixes it", *tasks),
        rows=[
            (name, *KINDS[name], *(entry(cells[name, task]) if (name, task) in cells else "" for task in tasks))
            for name in names
        ],
        note="Of tasks the scaled accuracy, of text bits per byte.",
    )


def entry(cell):
    return cell.spread("bits_per_byte") if "/" in cell.facets["task"] else cell.text()


def claims(name, cells):
    """A matrix recalls, a mixed memory tracks a state."""
    memory, mixed = KINDS[name]
    if (name, RECALL) in cells:
        cell = cells[name, RECALL]
        half = 2 * sum(score >= 0.5 for score in cell.scores()) > len(cell.rows)
        matrix = memory == "matrix"
        yield Claim(
            text=f"{name} {'recalls' if matrix else 'does not recall'} (half of 4 pairs in most seeds)",
            holds=None if cell.open else half == matrix,
            evidence=cell.text() if cell.rows else "",
        )
    if (name, "parity") in cells:
        cell = cells[name, "parity"]
        solved = 2 * cell.solved() > len(cell.rows)
        yield Claim(
            text=f"{name} {'does not solve' if mixed == 'nothing' else 'solves'} parity (in most seeds)",
            holds=None if cell.open else solved == (mixed != "nothing"),
            evidence=cell.text() if cell.rows else "",
        )
