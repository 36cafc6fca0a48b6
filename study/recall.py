"""Associative recall: how many pairs can a memory hold, and at what width?

Pairs of keys and values, and later every key once again: what was its value? (MQAR, Arora et al. 2023.)

Expected: a matrix memory solves what attention solves at a context of 64 with 4 pairs; scalar memories (sLSTM, LSTM)
fall short.

Paper: Beck et al. 2024, section 4.1, figures 5 and 14 to 16, appendix B.1.2: contexts of 64 to 256 with 4 to 16 pairs,
of 756 to 2048 with 48 to 256, and tests of the latter at contexts up to 8192.
"""

from exlstm.study import QUICK, Claim, Lesson, Picture, Table, Training, contestants, figures

# (context, pairs) in training; the paper also tests the last three at longer contexts than they were trained at
PLACES = {
    "quick": ((32, 4),),
    "small": ((64, 4), (64, 8)),
    "paper": (
        (64, 4),
        (128, 8),
        (256, 16),
        *((context, pairs) for context in (756, 1024, 2048) for pairs in (48, 96, 256)),
    ),
}
BATCH = {64: 512, 128: 512, 256: 256, 756: 128, 1024: 96, 2048: 24}


def runs(size):
    widths = {"quick": (16,), "small": (16, 32), "paper": (32, 64, 128, 256, 512)}[size]
    found = []
    for context, pairs in PLACES[size]:
        if 4 * pairs > context:
            continue
        for width in widths:
            for name, architecture in contestants(width=width, heads=2).items():
                vocabulary = 8192 if size == "paper" else 512
                tests = [(context, context)]
                if size == "paper" and context == 2048:
                    tests += [(longer, longer) for longer in (4096, 6144, 8192)]
                lesson = Lesson(task=f"recall_{pairs}_of_{vocabulary}", train=(context, context), test=tuple(tests))
                varied = (("context", str(context)), ("pairs", str(pairs)), ("width", str(width)))
                found += [
                    Training(
                        model=name,
                        architecture=architecture,
                        lessons=(lesson,),
                        lr=rate,
                        varied=varied,
                        **how(size, context),
                    )
                    for rate in rates(size, context)
                ]
    return found


def rates(size, context):
    if size != "paper":
        return {"quick": (1e-2,), "small": (3e-3, 1e-2)}[size]
    return (1e-3, 2.2e-4, 5e-5, 1e-5) if context == 2048 else (1e-2, 2.15e-3, 4.6e-4, 1e-4)


def how(size, context):
    if size == "quick":
        return QUICK
    if size == "small":
        return {"steps": 1000, "batch": 32, "validations": 4, "validation_rows": 64, "test_rows": 256, "enough": 0.995}
    # 64 passes over 100,000 rows, as many fresh rows here
    return {"steps": 64 * 100_000 // BATCH[context], "batch": BATCH[context], "test_rows": 3000}


def report(results):
    models, widths = results.values("model"), results.values("width")
    places = list(dict.fromkeys((c.facets["context"], c.facets["pairs"]) for c in results.cells()))

    def cell(place, width, model):
        return results.cell(context=place[0], pairs=place[1], width=width, model=model)

    if "64" in results.values("context"):
        yield from claims(cell, models, widths)
    for width in widths:
        yield Table(
            title=f"Scaled accuracy at width {width}",
            columns=("context, pairs", *models),
            rows=[(f"{c}, {p}", *(cell((c, p), width, model).text() for model in models)) for c, p in places],
        )
        yield results.costs(width=width)
    yield Picture(
        name="pairs",
        title="Accuracy by pairs and width",
        size=(4.4 * len(widths), 3.6),
        draw=lambda figure: draw(figure, cell, models, widths, places),
    )


def claims(cell, models, widths):
    place, width = ("64", "4"), widths[-1]
    best = cell(place, width, "attention").median()
    for model in models:
        found = cell(place, width, model)
        if model in ("xlstm[1:0]", "xlstm[1:1]"):
            holds = None if found.open or best is None else found.median() >= min(best, 0.99) - 0.01
            text = f"{model} solves what attention solves at context 64 with 4 pairs (width {width})"
        elif model in ("xlstm[0:1]", "lstm", "lstm(block)"):
            holds = None if found.open else found.solved() == 0
            text = f"{model} falls short at context 64 with 4 pairs (width {width})"
        else:
            continue
        yield Claim(
            text=text, holds=holds, evidence=f"{found.text()}; attention {cell(place, width, 'attention').text()}"
        )


def draw(figure, cell, models, widths, places):
    for axes, width in zip(figure.subplots(1, len(widths), squeeze=False, sharey=True)[0], widths, strict=True):
        series = {model: [(int(p), cell((c, p), width, model).scores()) for c, p in places] for model in models}
        figures.lines(axes, series, x_label="pairs", y_label="scaled accuracy", log_x=True)
        axes.set_title(f"width {width}", fontsize=10, loc="left")
        axes.set_ylim(-0.05, 1.05)
    axes.legend(fontsize=8, frameon=False)
