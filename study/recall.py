"""Associative recall: how many pairs can a memory hold, and at what width?

Pairs of keys and values, and later every key once again: what was its value? (MQAR, Arora et al. 2023.)

Expected: a matrix memory solves what attention solves at a context of 64 with 4 pairs; scalar memories (sLSTM, LSTM)
fall short. Of the rivals RWKV-4, H3 and Hyena fall short in the paper. All rivals learn the first place of the small
size only.

At the small size all see the same 38,400 rows. Attention first has to find out that a key's value is the token behind
it, which takes more; so it is there a second time, with three times the rows. The base of its rotary positions is 100:
with the usual 10,000 most of a head of 16 channels hardly turns within a context of 64.

Paper: Beck et al. 2024, section 4.1, figures 5 and 14 to 16, appendix B.1.2: contexts of 64 to 256 with 4 to 16 pairs,
of 756 to 2048 with 48 to 256, and tests of the latter at contexts up to 8192.
"""

from exlstm.study import (
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

# (context, pairs) in training, and the widths; the paper also tests the last three at longer contexts
PLACES = {
    "quick": ((32, 4, (16,)),),
    "small": ((64, 4, (16, 32)), (64, 8, (32,))),
    "paper": tuple(
        (context, pairs, (32, 64, 128, 256, 512))
        for context, pairs in (
            (64, 4),
            (128, 8),
            (256, 16),
            *((context, pairs) for context in (756, 1024, 2048) for pairs in (48, 96, 256) if 4 * pairs <= context),
        )
    ),
}
BATCH = {64: 512, 128: 512, 256: 256, 756: 128, 1024: 96, 2048: 24}
LONGER = "attention, 3 x the rows"
OF_RIVALS = ("small", 4, 32)  # size, pairs, width
SHORT_IN_THE_PAPER = ("rwkv4", "h3", "hyena")


def runs(size):
    return [
        Training(
            model=name,
            architecture=architecture,
            lessons=(lesson(size, context, pairs),),
            lr=rate,
            varied=(("context", str(context)), ("pairs", str(pairs)), ("width", str(width))),
            **how(size, context, times),
        )
        for context, pairs, widths in PLACES[size]
        for width in widths
        for name, architecture, times in models(size, pairs, width)
        for rate in rates(size, context)
    ]


def models(size, pairs, width):
    """Name, architecture, and how many times the rows of the others it learns from."""
    positions = {} if size == "paper" else {"rope_base": 100.0}
    place = (size, pairs, width)
    rivals = narrow_rivals() if place == OF_RIVALS else ["gla"] if size == "quick" else []
    found = compared_models(width=width, heads=2, attention=positions, rivals=rivals)
    longer = [(LONGER, found["attention"], 3)] if place == ("small", 4, 32) else []
    return [(name, architecture, 1) for name, architecture in found.items()] + longer


def lesson(size, context, pairs):
    vocabulary = 8192 if size == "paper" else 512
    longer = (4096, 6144, 8192) if (size, context) == ("paper", 2048) else ()
    tests = tuple((length, length) for length in (context, *longer))
    return Lesson(task=f"recall_{pairs}_of_{vocabulary}", train=(context, context), test=tests)


def rates(size, context):
    if size != "paper":
        return {"quick": (1e-2,), "small": (3e-3, 1e-2)}[size]
    return (1e-3, 2.2e-4, 5e-5, 1e-5) if context == 2048 else (1e-2, 2.15e-3, 4.6e-4, 1e-4)


def how(size, context, times):
    if size == "quick":
        return QUICK
    if size == "small":
        return {
            "steps": 2400 * times, "batch": 16, "validations": 8, "validation_rows": 64, "test_rows": 256,
            "enough": 0.995,
        }  # fmt: skip
    # 64 passes over 100,000 rows, as many fresh rows here
    return {"steps": 64 * 100_000 // BATCH[context], "batch": BATCH[context], "test_rows": 3000}


def report(results):
    everyone = results.values("model")
    models = [model for model in everyone if model not in rival_names()]
    places = {}  # what each model reached at a context, pairs and width
    for cell in results.cells(lambda facets: facets["model"] in models):
        place = tuple(cell.facets[name] for name in ("context", "pairs", "width"))
        places.setdefault(place, {})[cell.facets["model"]] = cell
    shortest = [place for place in places if place[:2] == ("64", "4")]
    if shortest:
        widest = max(shortest, key=lambda place: int(place[2]))
        yield from claims(places[widest], widest[2])
    rivals = results.cells(lambda facets: facets["model"] not in models)
    if rivals:
        yield from rivals_part({cell.facets["model"]: cell for cell in rivals})
    yield ReportTable(
        title="Scaled accuracy",
        columns=("context", "pairs", "width", *models),
        rows=[
            (*place, *(cells[model].text() if model in cells else "" for model in models))
            for place, cells in places.items()
        ],
    )
    for width in results.values("width"):
        yield results.costs(width=width)
    yield Picture(
        name="recall",
        title="Every seed, by context, pairs and width",
        size=(10, 3.2 * -(-len(places) // 3)),
        draw=lambda figure: figures.strips(
            figure,
            {
                f"{pairs} pairs in {context}, width {width}": {model: cell.scores() for model, cell in cells.items()}
                for (context, pairs, width), cells in places.items()
            },
            columns=3,
            label="scaled accuracy; dashed: 0.99",
        ),
    )


def rivals_part(cells):
    """The paper's claims, and a line per rival, the best first."""
    for name in SHORT_IN_THE_PAPER:
        if name in cells:
            cell = cells[name]
            holds = None if cell.open else cell.solved() == 0
            yield Claim(text=f"{name} falls short at context 64 with 4 pairs", holds=holds, evidence=cell.text())
    order = sorted(cells, key=lambda name: -(cells[name].median() or 0.0))
    yield ReportTable(
        title="Rivals: scaled accuracy at context 64 with 4 pairs",
        columns=("rival", "scaled accuracy"),
        rows=[(name, cells[name].text()) for name in order],
    )


def claims(cells, width):
    """What the paper has of the shortest context; attention stands for all that it could do, longer or not."""
    reached = [cell.median() for name, cell in cells.items() if name in ("attention", LONGER)]
    reached = [score for score in reached if score is not None]
    evidence = ", ".join(f"{name} {cell.text()}" for name, cell in cells.items() if name in ("attention", LONGER))
    for name, cell in cells.items():
        if name in ("xlstm[1:0]", "xlstm[1:1]"):
            holds = None if cell.open or not reached else cell.median() >= min(max(reached), 0.99) - 0.01
            text = f"{name} solves what attention solves at context 64 with 4 pairs (width {width})"
        elif name in ("xlstm[0:1]", "lstm", "lstm(block)"):
            holds = None if cell.open else cell.solved() == 0
            text = f"{name} falls short at context 64 with 4 pairs (width {width})"
        else:
            continue
        yield Claim(text=text, holds=holds, evidence=f"{cell.text()}; {evidence}")
