"""One cell for both: can one model track a state and recall what it has read, in so many bytes?

One model of every kind learns parity and associative recall at once; rows of the two take turns. All have about the
same bytes of state where recall is tested, so a wide vector stands beside a small matrix, and attention sees a short
window. Attention without a window stands beside them, with the state that it needs. At the small size a matrix of these
bytes leaves a model 12 channels, so recall has 64 tokens and not 512, and parity asks for the answers to all prefixes.

Expected: [1:1] does both, [1:0] recalls and does not count, [0:1] and LSTM count and recall little.

Paper: Beck et al. 2024, section 4.1, which has the two tasks in separate runs at equal widths.
"""

from exlstm.mixers.attention import AttentionConfig
from exlstm.study import (
    QUICK,
    Claim,
    Lesson,
    Picture,
    ReportTable,
    Training,
    builders,
    figures,
    stack,
    with_state_bytes,
)

COUNT, RECALL = 0, 1  # the tests
STATE = {"quick": 1024, "small": 3072, "paper": 32_768}  # bytes of one sequence's state
CONTEXT = {"quick": 16, "small": 32, "paper": 256}  # of recall
WINDOW, UNBOUNDED = "attention, window 8", "attention, no window"


def models(size):
    """Every model at its width. The sLSTM mixes from the start; up-projections are not rounded to 64 channels."""
    heads = 4 if size == "paper" else 2
    mixing = {"recurrent_init": "uniform", "heads": heads if size == "paper" else 1}
    positions = {} if size == "paper" else {"rope_base": 100.0}  # they fit the context, as in the study `recall`
    made = builders(heads=heads, slstm=mixing, mlstm={"up_multiple": 8}, attention=positions)
    del made["lstm(block)"]  # of its kind the LSTM is there
    made[WINDOW] = lambda width: stack((AttentionConfig(heads=heads, window=8, **positions),) * 2, width=width)
    unbounded = made.pop("attention")
    found = {name: with_state_bytes(make, STATE[size], CONTEXT[size], step=2 * heads) for name, make in made.items()}
    return {**found, UNBOUNDED: unbounded(found[WINDOW].width)}


def runs(size):
    how = {
        "quick": QUICK,
        "small": {
            "steps": 2000,
            "batch": 32,
            "validations": 5,
            "validation_rows": 256,  # of fewer, noise in a task that is only guessed at would choose the rate
            "test_rows": 256,
            "enough": 0.995,
        },
        "paper": {"steps": 100_000, "batch": 256, "test_rows": 2048},
    }[size]
    context = CONTEXT[size]
    pairs, vocabulary = (4, 64) if size != "paper" else (16, 8192)
    lessons = (
        Lesson(task="parity", train=(3, 40), test=((40, 256),), dense=size == "small"),
        Lesson(task=f"recall_{pairs}_of_{vocabulary}", train=(context, context), test=((context, context),)),
    )
    rates = {"quick": (1e-2,), "small": (5e-3, 1e-2), "paper": (1e-2, 3e-3, 1e-3, 3e-4)}[size]
    return [
        Training(
            model=name,
            architecture=architecture,
            lessons=lessons,
            lr=rate,
            varied=(("width", str(architecture.width)),),
            **how,
        )
        for name, architecture in models(size).items()
        for rate in rates
    ]


def report(results):
    names = results.values("model")
    cells = {name: results.cell(model=name) for name in names}
    yield from claims(cells)
    yield ReportTable(
        title="Both tasks by one model",
        columns=("model", "width", "state bytes", "parameters", "parity, 40 to 256", "recall", "both, of seeds"),
        rows=[(name, *line(cell)) for name, cell in cells.items()],
        note="Scaled accuracy. Both: seeds that reach 0.99 in parity and 0.9 in recall.",
    )
    yield Picture(
        name="both",
        title="Every seed",
        size=(8, 3),
        draw=lambda figure: figures.strips(
            figure,
            {
                "parity at lengths 40 to 256": {name: cell.scores(COUNT) for name, cell in cells.items()},
                "recall": {name: cell.scores(RECALL) for name, cell in cells.items()},
            },
            label="scaled accuracy",
        ),
    )


def line(cell):
    values = [cell.median_of(key) for key in ("state_bytes", "parameters")]
    numbers = ["not run" if value is None else f"{value:,.0f}" for value in values]
    return (cell.facets["width"], *numbers, cell.text(COUNT), cell.text(RECALL, least=0.9), str(both(cell)))


def both(cell):
    return sum(a >= 0.99 and b >= 0.9 for a, b in zip(cell.scores(COUNT), cell.scores(RECALL), strict=True))


def claims(cells):
    expected = {
        "xlstm[1:1]": (True, True),
        "xlstm[1:0]": (False, True),
        "xlstm[0:1]": (True, False),
        "lstm": (True, False),
        WINDOW: (False, False),
    }
    words = {True: "learns", False: "does not learn"}
    for name, (counts, recalls) in expected.items():
        cell = cells[name]
        found = cell.solved(0.99, COUNT) > cell.planned / 2, cell.solved(0.9, RECALL) > cell.planned / 2
        yield Claim(
            text=f"{name} {words[counts]} parity and {words[recalls]} recall (most seeds)",
            holds=None if cell.open else found == (counts, recalls),
            evidence=f"parity {cell.text(COUNT)}, recall {cell.text(RECALL, least=0.9)}, both {both(cell)} seeds",
        )
