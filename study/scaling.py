"""How does the loss fall with size, and what does a lower loss cost in training and in generation?

Five widths of six models, each with the tokens of the study `language`. One picture for every cost: parameters, FLOPs
of training, measured seconds of training, and for a new token behind 16, 2,048 and 16,384 others its FLOPs and its
measured seconds. Fits are power laws within the sizes that ran, with a band from the seeds.

Expected: at equal parameters and at equal FLOPs of training xLSTM is below attention and Mamba at all sizes; behind
long contexts attention costs more and more, and all others what they cost before.

All sizes see the same tokens, so the larger ones are further from having learned what they could; exponents are not
those of training to the end.

Paper: Beck et al. 2024, figure 6: 125M to 2.7B parameters, 15B tokens. Its reviewers asked for time and for the cost of
inference on the x-axis.
"""

from itertools import product
from statistics import median

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.fits import draw_fit, power_law
from exlstm.study.language import SHAPE, language_models, lesson, seconds_per_token, timings, trainings

USES = ("language",)
SEEDS = 3
KEY = "bits_per_byte"
MODELS = ("xlstm[1:0]", "xlstm[7:1]", "llama", "mamba", "rwkv4", "gla")
SHAPES = {
    "quick": ({"width": 16},),
    "small": tuple({"width": width} for width in (32, 48, 64, 96, 128)),
    # 125M, 350M, 760M and 1.3B parameters
    "paper": tuple(
        {"width": width, "depth": depth} for width, depth in ((768, 12), (1024, 24), (1536, 24), (2048, 24))
    ),
}

RATES_OF_WIDE = (1e-3, 3e-3, 1e-2)  # up to width 64 the best is mostly 1e-2; beyond it is often less

SECONDS = {
    "seconds of training": "seconds of training",
    "milliseconds of a token behind 16": "ms a token behind 16",
    "milliseconds of a token behind 16,384": "ms a token behind 16,384",
}


def runs(size):
    found = []
    for shape in SHAPES[size]:
        models = language_models(size, MODELS[:1] if size == "quick" else MODELS, **shape)
        # the width of `language` is trained there, and tested beyond the length of training
        shared = shape.items() <= SHAPE[size].items()
        how = {} if shared else {"lessons": (lesson(size),)}
        wide = size == "small" and shape["width"] >= 96
        found += [*trainings(size, models, RATES_OF_WIDE if wide else None, **how), *timings(size, models)]
    return found


def report(results):
    points = {name: points_of(results, name) for name in results.values("model")}
    axes_of = dict.fromkeys(what for found in points.values() for point in found for what in point["costs"])
    for ours, rival in product(("xlstm[1:0]", "xlstm[7:1]"), ("llama", "mamba", "rwkv4")):
        if ours in points and rival in points:
            yield claim(points, ours, rival, results)
    for rival in ("llama", "mamba"):
        if {"xlstm[1:0]", rival} <= set(points):
            yield steeper(points, "xlstm[1:0]", rival, results)
    yield ReportTable(
        title="Bits per byte by size",
        columns=(
            "model",
            "width",
            "parameters",
            "bits per byte",
            "learning rate",
            "FLOPs of training",
            *SECONDS.values(),
        ),
        rows=[line(name, point) for name, found in points.items() for point in found],
        note="The median over seeds, and their range. Seconds are those of one CPU thread with nothing beside it.",
    )
    yield ReportTable(
        title="Exponents of the power laws",
        columns=("model", *axes_of),
        rows=[(name, *(exponent(found, what) for what in axes_of)) for name, found in points.items()],
        note="Of bits per byte against a cost, with the range of 95 % of resampled seeds. An eightfold range of sizes "
        "and one number of tokens: no law for other sizes.",
    )
    for what in axes_of:
        yield Picture(
            name=what.replace(" ", "-").replace(",", ""),
            title=f"Bits per byte against {what}",
            size=(7, 4.4),
            draw=lambda figure, what=what: draw(figure, points, what),
        )


def points_of(results, model):
    """A dict per size of a model: its loss by seed, and what it costs."""
    own = results.cells(lambda facets: facets["model"] == model)
    clocks = {body(cell): cell for cell in own if cell.facets["task"] == "time"}
    found = []
    for cell in own:
        if not cell.rows or cell.facets["task"] == "time":
            continue
        costs = {"parameters": cell.median_of("parameters"), "FLOPs of training": cell.median_of("flops")}
        clock = clocks.get(body(cell))
        if clock is not None and clock.rows:
            tokens = cell.rows[0]["steps"] * cell.run.batch * cell.run.lessons[0].train[1]
            costs["seconds of training"] = seconds_per_token(clock) * tokens
            for context, entries in by_context(clock).items():
                costs[f"FLOPs of a token behind {context:,}"] = entries[0]["flops"]
                seconds = median(entry["token_seconds"] for entry in entries)
                costs[f"milliseconds of a token behind {context:,}"] = 1e3 * seconds
        found.append({"width": cell.run.architecture.width, "cell": cell, "costs": costs})
    return found


def by_context(clock):
    """Measurements of generation, one row at a time, of every seed by the tokens read before."""
    found = {}
    for row in clock.rows:
        for entry in row["metrics"]["generation"]:
            if entry["rows"] == 1:
                found.setdefault(entry["context"], []).append(entry)
    return found


def body(cell):
    """The architecture of a cell's runs, by which trainings and measurements belong together."""
    return cell.run.architecture if cell.run else None


def line(name, point):
    costs = point["costs"]
    return (
        name,
        str(point["width"]),
        f"{costs['parameters']:,.0f}",
        point["cell"].spread(KEY),
        f"{point['cell'].run.lr:g}",
        f"{costs['FLOPs of training']:.2e}",
        *(f"{costs[what]:,.3g}" if what in costs else "" for what in SECONDS),
    )


def series(found, what):
    return [(point["costs"][what], point["cell"].scores(key=KEY)) for point in found if what in point["costs"]]


def exponent(found, what):
    law = power_law(series(found, what))
    return "" if law is None else f"{law.exponent:.3f} ({law.low:.3f} to {law.high:.3f})"


def claim(points, ours, rival, results):
    """At every width the loss is lower; parameters are equal there."""
    holds, evidence = None, ""
    if not is_open(results, ours, rival):
        pairs = [
            (a["cell"].median(key=KEY), b["cell"].median(key=KEY))
            for a, b in zip(points[ours], points[rival], strict=True)
        ]
        if pairs:
            holds = all(a < b for a, b in pairs)
            evidence = "; ".join(f"{a:.3f} and {b:.3f}" for a, b in pairs)
    return Claim(text=f"{ours} has a lower loss than {rival} at every size", holds=holds, evidence=evidence)


def steeper(points, ours, rival, results):
    """Loss falls faster with size: the bands of the exponents are apart."""
    laws = [power_law(series(points[name], "parameters")) for name in (ours, rival)]
    holds, evidence = None, ""
    if None not in laws and not is_open(results, ours, rival):
        holds = laws[0].high < laws[1].low
        evidence = " and ".join(exponent(points[name], "parameters") for name in (ours, rival))
    text = f"the loss of {ours} falls faster with parameters than that of {rival}"
    return Claim(text=text, holds=holds, evidence=evidence)


def is_open(results, *names):
    return any(cell.open for cell in results.cells(lambda f: f["model"] in names and f["task"] != "time"))


def draw(figure, points, what):
    axes = figure.subplots()
    for index, (name, found) in enumerate(points.items()):
        values = series(found, what)
        for x, seeds in values:
            axes.plot([x] * len(seeds), seeds, figures.marker(index), color=figures.color(index), markersize=4)
        axes.plot([], [], figures.marker(index), color=figures.color(index), label=name)
        if (law := power_law(values)) is not None:
            draw_fit(axes, law, min(x for x, _ in values), max(x for x, _ in values), color=figures.color(index))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for plain in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        plain(lambda bits, _: f"{bits:.1f}")
    axes.set_xlabel(what)
    axes.set_ylabel("bits per byte of held-out text")
    axes.grid(color="#e5e7eb", which="both")
    figures.legend(axes)
