"""Which memories predict rare tokens?

The same text as in the study `language`, in 8,192 tokens instead of 1,024, so that some are rare. The loss of held-out
tokens is reported by how often each token occurs in the training text.

Expected: the difference between xLSTM and the others is largest where tokens are rare.

Paper: Beck et al. 2024, figure 2 (right): perplexity on Wikitext-103 by the frequency of tokens, models of 125M
parameters.
"""

from dataclasses import replace
from math import log
from statistics import median

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.language import language_models, lesson, trainings

SEEDS = 3
TEXT = {"quick": "email/600", "small": "mixed/8192", "paper": "mixed/50304"}
MODELS = ("xlstm[1:0]", "xlstm[7:1]", "llama", "mamba", "rwkv6", "gla", "lstm")


def runs(size):
    lessons = (replace(lesson(size), task=TEXT[size]),)
    names = ("xlstm[1:0]", "llama") if size == "quick" else MODELS
    return trainings(size, language_models(size, names), lessons=lessons)


def report(results):
    cells = {cell.facets["model"]: cell for cell in results.cells()}
    bins = borders(cells.values())
    for ours in ("xlstm[1:0]", "xlstm[7:1]"):
        yield claim(ours, cells, bins)
    yield ReportTable(
        title="Nats per token, by occurrences of the token in the training text",
        columns=("model", *(f"{low:,} to {high - 1:,}" for low, high in bins), "all"),
        rows=[(name, *(text(nats(cell, each)) for each in bins), cell.spread("loss")) for name, cell in cells.items()],
        note=f"The median over seeds. A guess among all tokens has {log(vocabulary(results.size)):.2f} nats.",
    )
    yield Picture(
        name="frequency",
        title="Loss by the frequency of the token, relative to attention",
        size=(8, 4.2),
        draw=lambda figure: draw(figure, cells, bins),
        note="Below zero: better than llama. Tokens further left are rarer. The shades are the range of seeds.",
    )


def vocabulary(size):
    """The number of tokens of the text."""
    return int(TEXT[size].partition("/")[2])


def borders(cells):
    """The bins of occurrences that every seed of every model has, as the held-out text is the same."""
    rows = [entry["by_count"] for cell in cells for entry in cell.tests()]
    return [tuple(row[:2]) for row in rows[0]] if rows else []


def nats(cell, bin_):
    """Nats per token in a bin, for every seed."""
    found = [row for entry in cell.tests() for row in entry["by_count"] if tuple(row[:2]) == bin_]
    return [row[3] / row[2] for row in found]


def text(values):
    return f"{median(values):.3f}" if values else ""


def claim(ours, cells, bins):
    """The advantage over the best rival is larger among the rarest tokens than among the most frequent ones."""
    rivals = [name for name in cells if not name.startswith("xlstm")]
    holds, evidence = None, ""
    if ours in cells and rivals and len(bins) > 1 and not any(cells[name].open for name in (ours, *rivals)):
        rare, common = (
            min(median(nats(cells[name], each)) for name in rivals) - median(nats(cells[ours], each))
            for each in (bins[0], bins[-1])
        )
        holds, evidence = (
            rare > max(common, 0.0),
            f"ahead by {rare:.3f} nats for the rarest, {common:.3f} for the commonest",
        )
    return Claim(text=f"{ours} is ahead of all rivals most where tokens are rare", holds=holds, evidence=evidence)


def draw(figure, cells, bins):
    axes = figure.subplots()
    base = {each: median(found) for each in bins if (found := nats(cells["llama"], each))} if "llama" in cells else {}
    series = {
        name: [(each[1], [value - base[each] for value in nats(cell, each)]) for each in bins if each in base]
        for name, cell in cells.items()
    }
    figures.lines(axes, series, x_label="occurrences in the training text, below", y_label="nats more than llama")
    axes.set_xscale("log")
    figures.legend(axes)
