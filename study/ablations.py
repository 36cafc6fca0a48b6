"""Which parts of xLSTM make it better: what the paper took away, and what its reviewers asked for?

Language models of the study `language`'s text and tokens. The ladder goes from a plain stack of LSTMs to xLSTM[7:1], a
part at a time. Everything else changes one setting of xLSTM[1:0] or xLSTM[7:1], at equal parameters where the part has
few and without a change of width: what the gates depend on, the taps of the convolution, the blocks of q, k and v, the
heads, where and how many sLSTM blocks there are, the activation of the sLSTM's cell, the normaliser.

Expected: every step of the ladder helps, residual connections by far the most, then exponential gates and the matrix
memory. Of the gates, both seeing the input is best, and a forget gate that does so matters more than an input gate.

Paper: Beck et al. 2024, section 4.2, tables 2 and 8, 15 billion tokens of SlimPajama. "start" is its initial bias that
is not learned. Its row without a forget gate (a bias of plus infinity) diverged; here it is left out. At the small size
a changed model has two learning rates to choose from: the third, 0.03, is chosen by two of the 42 models of `language`,
and by no xLSTM.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise

from exlstm.mixers.lstm import LSTMConfig
from exlstm.models.lm import BlockConfig, LMConfig, MLPConfig
from exlstm.study import Claim, Picture, ReportTable, body_parameters, figures, xlstm
from exlstm.study.language import RATES, SHAPE, language_models, lesson, trainings

USES = ("language",)
SEEDS = 3
KEY = "bits_per_byte"
# the rows of every part that are no change, models of `language`
BASES = {
    "ladder": ("xlstm[0:1]", "xlstm[7:1]"),
    "gates": ("xlstm[1:0]",),
    "convolution": ("xlstm[1:0]",),
    "blocks of q, k, v": ("xlstm[1:0]",),
    "heads": ("xlstm[1:0]",),
    "sLSTM blocks": ("xlstm[1:0]", "xlstm[7:1]", "xlstm[1:1]", "xlstm[0:1]"),
    "cell of the sLSTM": ("xlstm[0:1]",),
    "normaliser": ("xlstm[1:0]", "xlstm[0:1]"),
}
# perplexities in the paper
LADDER = {"lstm": 2417.86, "+ residual": 35.46, "+ up-projection": 26.01, "xlstm[0:1]": 17.70, "xlstm[7:1]": 13.48}
GATES = {  # (what the forget gate sees, what the input gate sees)
    ("input", "bias"): 13.55,
    ("input", "start"): 13.58,
    ("bias", "bias"): 13.73,
    ("bias", "start"): 13.76,
    ("start", "input"): 13.69,
    ("start", "start"): 13.95,
}
BOTH = 13.43  # xLSTM[1:0], where both gates see the input


def runs(size):
    found = settings(size)
    bases = language_models(size, ("xlstm[1:0]", "xlstm[7:1]", "xlstm[1:1]", "xlstm[0:1]"))
    if size == "quick":
        found, bases = {"ladder": {"lstm": found["ladder"]["lstm"]}}, {}
    changed = (
        run
        for part, models in found.items()
        for run in trainings(size, models, varied=(("part", part),), lessons=(lesson(size),))
    )
    return [*trainings(size, bases), *(run for run in changed if run.lr in RATES[size][:2])]


def settings(size):
    """Changed architectures by part and by name."""
    shape = SHAPE[size]
    width, heads, blocks = shape["width"], shape["heads"], 2 * shape["depth"]
    ours = partial(xlstm, width=width, heads=heads, depth=blocks)
    gates = {gate_name(*sees): dict(zip(("forget_gate_sees", "input_gate_sees"), sees, strict=True)) for sees in GATES}
    return {
        "ladder": ladder(width, blocks),
        "gates": {name: ours("1:0", mlstm=sees) for name, sees in gates.items()},
        "convolution": {f"{taps} taps": ours("1:0", mlstm={"conv_width": taps}) for taps in (1, 2, 3, 8)},
        "blocks of q, k, v": {f"{wide} wide": ours("1:0", mlstm={"qkv_block": wide}) for wide in (2, 16, 2 * width)},
        "heads": {f"{count} heads": ours("1:0", mlstm={"heads": count}) for count in (1, 2, 4, 8) if count != heads},
        "sLSTM blocks": {
            **{f"one, block {place + 1} of 8": placed(ours("7:1"), place) for place in range(7)},
            **{f"xlstm[{ratio}]": ours(ratio) for ratio in ("3:1", "1:3")},
        },
        "cell of the sLSTM": {
            **{
                f"z by {name}": ours("0:1", slstm={"cell_activation": name})
                for name in ("identity", "silu", "gelu", "sin", "softsign")
            },
            "forget gate exp": ours("0:1", slstm={"forget_gate": "exp"}),
        },
        "normaliser": {
            "mLSTM without": ours("1:0", mlstm={"normalize": False}),
            "sLSTM without": ours("0:1", slstm={"normalize": False}),
        },
    }


def gate_name(forget, enter):
    return f"forget gate: {forget}, input gate: {enter}"


def ladder(width, blocks):
    """The first steps of Table 2, all of one width: then follow xLSTM[0:1], with exponential gates, and xLSTM[7:1]."""
    lstm = BlockConfig(mixer=LSTMConfig())
    plain = LMConfig(vocab_size=2, width=width, blocks=(lstm,) * blocks, residual=False)
    # in the paper every second LSTM makes room for an MLP
    pair = replace(lstm, mlp=MLPConfig(hidden=4 * width, gated=False))
    return {
        "lstm": plain,
        "+ residual": replace(plain, residual=True),
        "+ up-projection": replace(plain, residual=True, blocks=(pair,) * (blocks // 2)),
    }


def placed(whole, place):
    """Seven mLSTM blocks and an sLSTM block at this place, which is last in xLSTM[7:1]; deeper models repeat them."""
    eight = whole.blocks[:8]
    order = [*eight[:place], eight[7], *eight[place:7]]
    return replace(whole, blocks=tuple(order) * (len(whole.blocks) // 8))


def report(results):
    every = {cell.facets["model"]: cell for cell in results.cells()}
    parts = {
        part: {name: every[name] for name in (*BASES[part], *names_in(results, part)) if name in every}
        for part in results.values("part")
    }
    yield from ladder_claims([(name, every[name]) for name in LADDER if name in every])
    yield from gate_claims(every)
    published = {**LADDER, **{gate_name(*sees): value for sees, value in GATES.items()}, "xlstm[1:0]": BOTH}
    for part, cells in parts.items():
        yield ReportTable(
            title=part[0].upper() + part[1:],
            columns=("setting", "bits per byte", "parameters of the blocks", "perplexity in the paper"),
            rows=[
                (
                    name,
                    cell.spread(KEY),
                    f"{body_parameters(cell.run.architecture):,}" if cell.run else "",
                    f"{published[name]:,.2f}" if name in published else "",
                )
                for name, cell in cells.items()
            ],
            note="The median over seeds, and their range.",
        )
    yield Picture(
        name="parts",
        title="Every seed of every setting",
        size=(11, 9),
        draw=lambda figure: draw(figure, parts),
        note="Bits per byte of held-out text; lower is better.",
    )


def names_in(results, part):
    return [cell.facets["model"] for cell in results.cells(lambda facets: facets.get("part") == part)]


def ladder_claims(steps):
    """Every step of the ladder lowers the loss."""
    for (_, before), (name, after) in pairwise(steps):
        undecided = before.open or after.open
        yield Claim(
            text=f'the step to "{name}" lowers the loss',
            holds=None if undecided else after.median(key=KEY) < before.median(key=KEY),
            evidence="" if undecided else f"{before.spread(KEY)}, then {after.spread(KEY)}",
        )


def gate_claims(cells):
    """Both gates seeing the input is best; the forget gate matters more."""
    names = {("input", "input"): "xlstm[1:0]", **{sees: gate_name(*sees) for sees in GATES}}
    if not set(names.values()) <= set(cells):
        return
    undecided = any(cells[name].open for name in names.values())
    score = {sees: cells[name].median(key=KEY) for sees, name in names.items()}
    best = None if undecided else min(score, key=score.get)
    yield Claim(
        text="the loss is lowest where both gates see the input",
        holds=None if undecided else best == ("input", "input"),
        evidence="" if undecided else f"lowest: {names[best]}, {score[best]:.3f}",
    )
    forget, enter = score["input", "start"], score["start", "input"]
    yield Claim(
        text="a forget gate that sees the input helps more than such an input gate",
        holds=None if undecided else forget < enter,
        evidence="" if undecided else f"{forget:.3f} and {enter:.3f}",
    )


def draw(figure, parts):
    grid = figure.subplots(-(-len(parts) // 2), 2, squeeze=False)
    for axes in grid.flat[len(parts) :]:
        axes.set_visible(False)
    for axes, (part, found) in zip(grid.flat, parts.items(), strict=False):
        for y, cell in enumerate(found.values()):
            axes.plot(cell.scores(key=KEY), [y] * len(cell.rows), "o", color=figures.color(0), markersize=4)
        axes.set_yticks(range(len(found)), list(found), fontsize=7)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_title(part, fontsize=9, loc="left")
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", color="#e5e7eb")
