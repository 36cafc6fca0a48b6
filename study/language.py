"""Which memory learns text best, at equal parameters and equal tokens?

Every rival of the paper's Table 1 and all others that are registered learn the same million tokens in the same order:
source text of Python's standard library, and documentation strings of packages that every machine with exlstm has. The
measure is bits per byte of held-out files, which does not depend on the tokenizer.

Expected: as in Table 1, xLSTM[1:0] and xLSTM[7:1] ahead of Mamba, Mamba ahead of attention; H3, Hyena, HGRN, RetNet and
GLA behind. A million tokens are 15,000 times fewer than the paper's, so a difference may not show yet.

A run's own seconds are measured beside other runs. The time axis has those of a training step measured alone.

Paper: Beck et al. 2024, section 4.2, Table 1: 15 billion tokens of SlimPajama, models of 356M to 456M parameters.
"""

from statistics import correlation, median

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.language import RATES, TABLE_1, language_models, seconds_per_token, timings, trainings

SEEDS = 3
KEY = "bits_per_byte"
BEHIND = ("h3", "hyena", "hgrn", "retention", "gla")  # rivals that are last in Table 1
SHOWN = (
    "xlstm[1:0]",
    "xlstm[7:1]",
    "llama",
    "mamba",
    "rwkv6",
    "gla",
    "hyena",
    "lstm",
)  # curves of all would hide each other


def runs(size):
    models = language_models(size, ("xlstm[1:0]", "llama", "gpt3") if size == "quick" else None)
    return [*trainings(size, models), *timings(size, models)]


def report(results):
    cells = {cell.facets["model"]: cell for cell in results.cells(lambda facets: facets["task"] != "time")}
    clocks = {cell.facets["model"]: seconds_per_token(cell) for cell in results.cells(lambda f: f["task"] == "time")}
    order = sorted(cells, key=lambda name: cells[name].median(key=KEY) or 99.0)
    yield from claims(cells)
    yield ReportTable(
        title="Bits per byte of held-out text (lower is better)",
        columns=(
            "model",
            "all",
            "code",
            "English",
            "perplexity in Table 1",
            "learning rate",
            "parameters",
            "FLOPs of training",
            "seconds per million tokens, alone",
        ),
        rows=[line(name, cells[name], clocks.get(name)) for name in order],
        note="The median over seeds, and their range. Parameters are those of the whole model; without embedding and "
        "head they are equal to 1 %. Seconds are of one CPU thread with nothing beside it. "
        + edge(cells.values(), max(RATES[results.size])),
    )
    shown = [name for name in SHOWN if name in cells]
    yield Picture(
        name="curves",
        title="Validation against tokens, FLOPs and seconds",
        size=(12, 4.2),
        draw=lambda figure: curves(figure, {name: cells[name] for name in shown}, clocks),
        note="Eight of the models. Seconds are those of a step measured alone, times the number of steps.",
    )
    yield Picture(
        name="order",
        title="Every seed of every model",
        size=(7, 0.24 * len(order) + 1),
        draw=lambda figure: dots(figure, {name: cells[name].scores(key=KEY) for name in order}),
    )


def line(name, cell, seconds):
    domains = [[entry["by_domain"].get(domain) for entry in cell.tests()] for domain in ("code", "english")]
    return (
        name,
        cell.spread(KEY),
        *(f"{median(found):.3f}" if found and None not in found else "" for found in domains),
        f"{TABLE_1[name]:.2f}" if name in TABLE_1 else "",
        f"{cell.run.lr:g}" if cell.run else "",
        f"{cell.median_of('parameters'):,.0f}" if cell.rows else "",
        f"{cell.median_of('flops'):.2e}" if cell.rows else "",
        f"{1e6 * seconds:,.0f}" if seconds else "",
    )


def edge(cells, largest):
    """Whether the grid of learning rates ends too early: how many models chose its largest."""
    chosen = [cell.run.lr for cell in cells if cell.run]
    return f"{chosen.count(largest)} of {len(chosen)} models chose the largest learning rate tried, {largest:g}."


def claims(cells):
    """The statements that the paper makes of its Table 1."""
    score = {name: cell.median(key=KEY) for name, cell in cells.items()}
    in_table = [name for name in TABLE_1 if name in cells]
    rivals = [name for name in in_table if not name.startswith("xlstm")]
    for ours in [name for name in ("xlstm[1:0]", "xlstm[7:1]") if name in cells]:
        undecided = any(cells[name].open for name in (ours, *rivals))
        better = [] if undecided else [name for name in rivals if score[name] <= score[ours]]
        yield Claim(
            text=f"{ours} has a lower loss than every rival of Table 1",
            holds=None if undecided else not better,
            evidence=f"{cells[ours].spread(KEY)}; " + (f"{', '.join(better)} not behind it" if better else "all behind")
            if not undecided
            else "",
        )
    yield pair(cells, "mamba", "llama")
    for name in BEHIND:
        if name in cells:
            yield pair(cells, "llama", name)
    open_ = any(cells[name].open for name in in_table)
    rank = (
        None
        if open_ or len(in_table) < 3
        else rank_correlation([score[name] for name in in_table], [TABLE_1[name] for name in in_table])
    )
    yield Claim(
        text="the order of the models is that of Table 1 (rank correlation of at least 0.5)",
        holds=None if rank is None else rank >= 0.5,
        evidence="" if rank is None else f"Spearman's rank correlation {rank:.2f} over {len(in_table)} models",
    )


def pair(cells, first, second):
    """The claim that one model has a lower loss than another, in the median of seeds."""
    if not {first, second} <= set(cells) or cells[first].open or cells[second].open:
        holds, evidence = None, ""
    else:
        holds = cells[first].median(key=KEY) < cells[second].median(key=KEY)
        evidence = f"{cells[first].spread(KEY)} and {cells[second].spread(KEY)}"
    return Claim(text=f"{first} has a lower loss than {second}", holds=holds, evidence=evidence)


def rank_correlation(a, b):
    """Spearman's: the correlation of ranks; equal values share the mean of theirs."""
    ranks = [[sum(y < x for y in values) + sum(y == x for y in values) / 2 for x in values] for values in (a, b)]
    return correlation(*ranks) if all(len(set(found)) > 1 for found in ranks) else 0.0


def curves(figure, cells, clocks):
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (what, factor) in zip(panels, scales(cells, clocks).items(), strict=True):
        series = {}
        for name, cell in cells.items():
            if factor.get(name) is not None:
                steps = sorted({point["step"] for row in cell.rows for point in row["curve"]})
                series[name] = [
                    (
                        step * factor[name],
                        [
                            8 * (1 - point["validation"])
                            for row in cell.rows
                            for point in row["curve"]
                            if point["step"] == step
                        ],
                    )
                    for step in steps
                ]
        figures.lines(axes, series, x_label=what, y_label="bits per byte, validation")
    figures.legend(panels[0])


def scales(cells, clocks):
    """What a step is on each axis, by model."""
    shape = {name: (cell.run.batch, cell.run.lessons[0].train[1]) for name, cell in cells.items() if cell.run}
    tokens = {name: batch * length for name, (batch, length) in shape.items()}
    return {
        "tokens": tokens,
        "FLOPs of training": {
            name: cell.rows[0]["flops"] / cell.rows[0]["steps"] for name, cell in cells.items() if cell.rows
        },
        "seconds of training, one thread": {
            name: tokens[name] * clocks[name] for name in tokens if clocks.get(name) is not None
        },
    }


def dots(figure, seeds):
    axes = figure.subplots()
    for y, (name, found) in enumerate(seeds.items()):
        own = name.startswith("xlstm")
        axes.plot(found, [y] * len(found), "D" if own else "o", color=figures.color(1 if own else 0), markersize=4)
    axes.set_yticks(range(len(seeds)), list(seeds), fontsize=8)
    axes.set_ylim(len(seeds) - 0.5, -0.5)
    axes.set_xlabel("bits per byte of held-out text; diamonds: xLSTM")
    axes.grid(axis="x", color="#e5e7eb")
