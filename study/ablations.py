"""Which parts of xLSTM make it better: what the paper took away, and what its reviewers asked for?

Language models of the study `language`'s text and tokens. The ladder goes from a plain stack of LSTMs to xLSTM[7:1], a
part at a time. Everything else changes one setting of an xLSTM. All have the same parameters without embedding and
head, by the width of up-projections and MLPs; the LSTMs have as many blocks as come nearest. What is changed: what the
gates depend on, the taps of the convolution, an up-projection around the mLSTM or an MLP behind it, the blocks of q, k
and v, the heads, where and how many sLSTM blocks there are, the activation of the sLSTM's cell, the normaliser.

Expected: every step of the ladder helps, residual connections by far the most, then exponential gates and the matrix
memory. Of the gates, both seeing the input is best, and a forget gate that does so matters more than an input gate. The
convolution helps, and the up-projection more than an MLP.

Paper: Beck et al. 2024, section 4.2, tables 2 and 8, 15 billion tokens of SlimPajama. "start" is its initial bias that
is not learned. Its row without a forget gate (a bias of plus infinity) diverged; here it is left out. A convolution of
one tap is a factor per channel. At the small size a changed model has two learning rates to choose from: the third,
0.03, is chosen by two of the 42 models of `language`, and by no xLSTM.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise

from exlstm.mixers.lstm import LSTMConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LMConfig
from exlstm.models.pattern import xlstm_pattern
from exlstm.study import Claim, Picture, ReportTable, body_parameters, figures, with_parameters
from exlstm.study.language import RATES, SHAPE, language_models, lesson, trainings

USES = ("language",)
SEEDS = 3
KEY = "bits_per_byte"
# the rows of every part that are no change, models of `language`
BASES = {
    "ladder": ("xlstm[0:1]", "xlstm[7:1]"),
    "gates": ("xlstm[1:0]",),
    "convolution": ("xlstm[1:0]",),
    "block of the mLSTM": ("xlstm[1:0]", "xlstm-7b"),
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
NO_CONV, BEHIND = "1 tap", "MLP behind, relu2"
BLOCKS = {NO_CONV: 15.41, BEHIND: 13.90}


def runs(size):
    bases = language_models(size, dict.fromkeys(name for names in BASES.values() for name in names))
    if size == "quick":  # too few channels to give all of them the same parameters
        found, bases = {"ladder": {"lstm": ladder(bases["xlstm[1:0]"])["lstm"]}}, {}
    else:
        found = settings(bases, SHAPE[size]["heads"])
    changed = (
        run
        for part, models in found.items()
        for run in trainings(size, models, varied=(("part", part),), lessons=(lesson(size),))
    )
    return [*trainings(size, bases), *(run for run in changed if run.lr in RATES[size][:2])]


def settings(bases, heads):
    """Changed architectures by part and by name."""
    mlstm, slstm = partial(altered, bases["xlstm[1:0]"]), partial(altered, bases["xlstm[0:1]"])
    gates = {gate_name(*sees): dict(zip(("forget_gate_sees", "input_gate_sees"), sees, strict=True)) for sees in GATES}
    return {
        "ladder": ladder(bases["xlstm[1:0]"]),
        "gates": {name: mlstm(**sees) for name, sees in gates.items()},
        "convolution": {f"{taps} tap{'s' * (taps > 1)}": mlstm(conv_width=taps) for taps in (1, 2, 3, 8)},
        "block of the mLSTM": {BEHIND: behind(bases["xlstm[1:0]"])},
        "blocks of q, k, v": {
            **{f"{wide} wide": mlstm(qkv_block=wide) for wide in (2, 8, 16)},
            "dense": dense(bases["xlstm[1:0]"]),
        },
        "heads": {f"{count} head{'s' * (count > 1)}": mlstm(heads=count) for count in (1, 2, 4, 8) if count != heads},
        "sLSTM blocks": {
            **{f"one, block {place + 1} of 8": placed(bases["xlstm[7:1]"], place) for place in range(7)},
            **{f"xlstm[{ratio}]": mixed(bases["xlstm[1:1]"], ratio) for ratio in ("3:1", "1:3")},
        },
        "cell of the sLSTM": {
            **{f"z by {name}": slstm(cell_activation=name) for name in ("identity", "silu", "gelu", "sin", "softsign")},
            "forget gate exp": slstm(forget_gate="exp"),
        },
        "normaliser": {"mLSTM without": mlstm(normalize=False), "sLSTM without": slstm(normalize=False)},
    }


def gate_name(forget, enter):
    return f"forget gate: {forget}, input gate: {enter}"


def altered(base, **changes):
    """The model with other settings of its mixers, which are all of one kind, and as many parameters."""
    blocks = tuple(replace(block, mixer=replace(block.mixer, **changes)) for block in base.blocks)
    return with_parameters(replace(base, blocks=blocks), body_parameters(base))


def ladder(base):
    """The first steps of Table 2, all of one width: then follow xLSTM[0:1], with exponential gates, and xLSTM[7:1].

    A plain LSTM has nothing to scale, so it has as many blocks as give it the parameters of the others.
    """
    lstm, target = BlockConfig(mixer=LSTMConfig()), body_parameters(base)
    plain = LMConfig(vocab_size=2, width=base.width, blocks=(lstm,), residual=False)
    blocks = round(target / body_parameters(plain))
    # in the paper every second LSTM makes room for an MLP
    pair = replace(lstm, mlp=MLPConfig(hidden=4 * base.width, gated=False))
    return {
        "lstm": replace(plain, blocks=(lstm,) * blocks),
        "+ residual": replace(plain, residual=True, blocks=(lstm,) * blocks),
        "+ up-projection": with_parameters(replace(plain, residual=True, blocks=(pair,) * (-(-blocks // 2))), target),
    }


def behind(base):
    """An mLSTM as wide as the model and an MLP behind it, half as many blocks with the same parameters in all."""
    mlp = MLPConfig(hidden=4 * base.width, activation="relu2", gated=False)
    block = BlockConfig(mixer=replace(base.blocks[0].mixer, up_factor=1.0), mlp=mlp)
    half = replace(base, blocks=(block,) * (len(base.blocks) // 2))
    return with_parameters(half, body_parameters(base))


def dense(base):
    """mLSTM blocks with dense maps to q, k and v, of the inner width that has the parameters nearest to the base's."""
    step = base.width // 16
    inner = range(step, 2 * base.width + 1, step)
    block, target = base.blocks[0], body_parameters(base)
    mixers = [replace(block.mixer, up_factor=each / base.width, qkv_block=each) for each in inner]
    models = [replace(base, blocks=(replace(block, mixer=mixer),) * len(base.blocks)) for mixer in mixers]
    return min(models, key=lambda config: abs(body_parameters(config) - target))


def mixed(base, ratio):
    """Blocks of xLSTM[1:1] in another ratio, with as many parameters."""
    kinds = dict(zip("ms", base.blocks[:2], strict=True))
    blocks = tuple(kinds[letter] for letter in xlstm_pattern(ratio, len(base.blocks)))
    return with_parameters(replace(base, blocks=blocks), body_parameters(base))


def placed(whole, place):
    """Seven mLSTM blocks and an sLSTM block at this place, which is last in xLSTM[7:1]; deeper models repeat them."""
    eight = whole.blocks[:8]
    order = [*eight[:place], eight[7], *eight[place:7]]
    return replace(whole, blocks=tuple(order) * (len(whole.blocks) // 8))


def report(results):
    every = {cell.facets["model"]: cell for cell in results.cells()}
    # the ladder from its first step on, every other part from what it changes
    names = {part: (*BASES[part], *names_in(results, part)) for part in results.values("part")} | {"ladder": LADDER}
    parts = {part: {name: every[name] for name in found if name in every} for part, found in names.items()}
    yield from ladder_claims([(name, every[name]) for name in LADDER if name in every])
    yield from gate_claims(every)
    yield from block_claims(every)
    published = {**LADDER, **BLOCKS, **{gate_name(*sees): value for sees, value in GATES.items()}, "xlstm[1:0]": BOTH}
    for part, cells in parts.items():
        yield ReportTable(
            title=f"Bits per byte: {part}",
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


def block_claims(cells):
    """The convolution and the up-projection around an mLSTM."""
    for name, text in ((NO_CONV, "a convolution"), (BEHIND, "an up-projection instead of an MLP")):
        if {"xlstm[1:0]", name} <= set(cells):
            with_it, without = cells["xlstm[1:0]"], cells[name]
            undecided = with_it.open or without.open
            yield Claim(
                text=f"{text} lowers the loss of xLSTM[1:0]",
                holds=None if undecided else with_it.median(key=KEY) < without.median(key=KEY),
                evidence="" if undecided else f"{without.spread(KEY)}, then {with_it.spread(KEY)}",
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
