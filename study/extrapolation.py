"""Trained on short text, read on long text: which memories go on, and does what they carry help?

The models of the study `language` were trained on windows of 256 tokens. Here they read 16,384 tokens, and 65,536 where
their state has one size, as one sequence: the loss by position, and over the same tokens the loss in windows of the
length of training. A model of carried state that has learned to forget gains from a longer past, or loses nothing.

Expected: xLSTM, Mamba and RWKV keep their loss at any length; attention with rotary positions does not.

Paper: Beck et al. 2024, section 4.3, figure 7: trained on 2,048 tokens, read to 16,384.
"""

from itertools import pairwise
from statistics import median

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.language import language_models, trainings
from exlstm.train.loss import bits_per_byte

USES = ("language",)
SEEDS = 3
KEY = "bits_per_byte"
BORDERS = (0, 64, 256, 1024, 4096, 16_384, 65_536)
CARRY_ON = ("xlstm[1:0]", "xlstm[7:1]", "mamba", "rwkv4")
SHOWN = (*CARRY_ON, "llama", "gla", "hyena", "lstm")
TOLERANCE = 0.02  # of the loss: a longer past that costs more is no extrapolation


def runs(size):
    return trainings(size, language_models(size, ("xlstm[1:0]",) if size == "quick" else None))


def report(results):
    cells = {cell.facets["model"]: cell for cell in results.cells()}
    for name in (*CARRY_ON, "llama"):
        if name in cells:
            yield claim(name, cells[name])
    order = sorted(cells, key=lambda name: long_score(cells[name]) or 99.0)
    yield ReportTable(
        title="Bits per byte by position, read as one sequence",
        columns=("model", *(f"{low:,} to {high:,}" for low, high in pairwise(BORDERS))),
        rows=[(name, *buckets(cells[name])) for name in order],
        note="The median over seeds. A position is of the shortest test that reaches it: windows of 256, of 16,384 and "
        "of 65,536 tokens of one text. Empty: the model did not read that far.",
    )
    yield ReportTable(
        title="The same text in windows of the length of training, and with the state carried on",
        columns=("model", *(f"{length:,}" for length in lengths(cells.values()))),
        rows=[(name, *(at(cells[name], length) for length in lengths(cells.values()))) for name in order],
        note="Bits per byte, the median over seeds and their range.",
    )
    yield Picture(
        name="positions",
        title="Loss by position",
        size=(8, 4.5),
        draw=lambda figure: draw(figure, {name: cells[name] for name in SHOWN if name in cells}),
        note="Up to 256 is the length of training. Lines are medians over seeds, shades their range.",
    )


def lengths(cells):
    """The lengths of all tests, the shortest first."""
    return sorted({high for cell in cells if cell.run for lesson in cell.run.lessons for _, high in lesson.test})


def test_of(cell, length):
    """The number of the test of this length, or None."""
    found = [high for _, high in cell.run.lessons[0].test] if cell.run else []
    return found.index(length) if length in found else None


def at(cell, length):
    test = test_of(cell, length)
    return "" if test is None else cell.spread(KEY, test)


def long_score(cell):
    """Bits per byte at the second length, the first beyond training."""
    return cell.median(1, KEY) if cell.rows and len(cell.run.lessons[0].test) > 1 else None


def claim(name, cell):
    """What the paper says: attention loses beyond the length of training, and the others do not."""
    loses = name == "llama"
    text = f"the loss of {name} {'rises' if loses else 'does not rise'} at 64 times the length of training"
    if cell.open or len(cell.run.lessons[0].test) < 2:
        return Claim(text=text, holds=None)
    short, long = cell.median(0, KEY), cell.median(1, KEY)
    evidence = f"{short:.3f} in windows, {long:.3f} with 64 times the length"
    return Claim(text=text, holds=(long > short * (1 + TOLERANCE)) == loses, evidence=evidence)


def positions(cell):
    """(low, high, [(nats, bytes) of every seed]) of each bucket, from the shortest test that reaches it.

    So all models are compared on the same text, and positions near the start are of many windows.
    """
    found, reached = [], 0
    for test, (_, length) in enumerate(cell.run.lessons[0].test if cell.rows else ()):
        seeds = [entry["by_position"] for entry in cell.tests(test)]
        for bucket in zip(*seeds, strict=True):
            low, high = bucket[0][:2]
            if low >= reached:
                found.append((low, high, [(nats, size) for *_, nats, size in bucket]))
        reached = length
    return found


def buckets(cell):
    """The table's line: the median over seeds of the mean over finer buckets, weighted by their bytes."""
    if not cell.rows:
        return [cell.status(), *([""] * (len(BORDERS) - 2))]
    found = []
    for low, high in pairwise(BORDERS):
        inside = [seeds for start, end, seeds in positions(cell) if low <= start and end <= high]
        bits = [bits_per_byte(*map(sum, zip(*parts, strict=True))) for parts in zip(*inside, strict=True)]
        found.append(f"{median(bits):.3f}" if bits else "")
    return found


def draw(figure, cells):
    axes = figure.subplots()
    series = {
        name: [(high, [bits_per_byte(*parts) for parts in seeds]) for _, high, seeds in positions(cell)]
        for name, cell in cells.items()
    }
    figures.lines(axes, series, x_label="position", y_label="bits per byte", log_x=True)
    axes.axvline(256, color="#6b7280", linewidth=0.8, linestyle=(0, (4, 4)))
    figures.legend(axes)
