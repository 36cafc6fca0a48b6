"""Which nets tell images apart, read pixel by pixel or patch by patch?

Handwritten digits of 8 by 8 pixels (scikit-learn's) as 64 steps of one number, and MNIST-1D, 40 steps, from the package
mnist1d: recurrent nets, which read a row from both ends, beside convolutions over time and logistic regression; a
Transformer encoder, mLSTM and Mamba take part at the paper's size. The same digits as images in patches of 1 and of 2
by 2 pixels: VisionXLSTM, two mLSTM blocks in opposite directions, beside a Transformer encoder and a convolutional net.
All but the linear map have as many parameters. The digits' parts are those of the study long_range: the test has 262
images, of which one is 0.4 %.

Expected: sLSTM and xLSTM are ahead of LSTM and GRU by more than a deviation at digits by pixels, and reach 0.97; xLSTM
reaches the published 0.91 of the GRU at MNIST-1D and perhaps the 0.94 of the CNN; VisionXLSTM is not behind the
Transformer of its size; convolutions, which know that neighbors are near, win at images.

Paper: Alkin et al. 2024 (Vision-LSTM) at ImageNet; Greydanus & Kobak 2024 (MNIST-1D), table of the README: logistic
0.32, MLP 0.68, CNN 0.94, GRU 0.91, human 0.96.
"""

from functools import partial

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.arrays import QUICK_ARRAYS, ArrayRun, decided, deviation_of, mean_of, seeds_text

ROWS = {
    "digits": ("slstm", "xlstm", "lstm", "gru", "cnn", "linear"),
    "mnist1d": ("xlstm", "lstm", "gru", "cnn", "linear"),
}
FURTHER = ("mlstm", "attention", "mamba")  # at the paper's size
IMAGES = ("vision", "vit", "cnn2d")
PATCHES = {1: "patches of 1", 2: "patches of 2 x 2"}
BY_STEP = "step by step"
PUBLISHED = {"mnist1d": "published: logistic 0.32, MLP 0.68, GRU 0.91, CNN 0.94, human 0.96"}
HOW = {
    "quick": QUICK_ARRAYS,
    "small": {"parameters": 12_000, "batch": 16, "validations": 10, "noise": 0.1},
    "paper": {"parameters": 50_000, "batch": 64, "validations": 40, "noise": 0.1},
}
STEPS = {
    "small": {"digits": 2000, "mnist1d": 3000, "images": 800},
    "paper": {"digits": 4000, "mnist1d": 10_000, "images": 4000},
}
RATES = {"small": (3e-3, 1e-2), "paper": (1e-3, 3e-3, 1e-2)}


def runs(size):
    if size == "quick":
        rows = [
            ArrayRun(model=name, task="waves", varied=reading(BY_STEP), **HOW[size]) for name in ("xlstm", "linear")
        ]
        images = [
            ArrayRun(model=name, task="digits", patch=2, varied=reading(PATCHES[2]), **HOW[size]) for name in IMAGES
        ]
        return [*rows, *images]
    steps, rates = STEPS[size], RATES[size]
    rows = [
        ArrayRun(model=name, task=task, lr=rate, steps=steps[task], varied=reading(BY_STEP), **HOW[size])
        for task, names in ROWS.items()
        for name in (*names, *(FURTHER if size == "paper" else ()))
        for rate in rates
    ]
    images = [
        ArrayRun(
            model=name, task="digits", lr=rate, steps=steps["images"], patch=patch, varied=reading(how), **HOW[size]
        )
        for patch, how in PATCHES.items()
        for name in IMAGES
        for rate in rates
    ]
    return [*rows, *images]


def reading(how):
    return (("read", how),)


def report(results):
    places = {}
    for cell in results.cells():
        places.setdefault((cell.facets["task"], cell.facets["read"]), {})[cell.facets["model"]] = cell
    yield from row_claims(places)
    yield from image_claims(places)
    for (task, how), by_model in places.items():
        yield ReportTable(
            title=f"Accuracy, {task}, {how}",
            columns=("net", "accuracy", "parameters", "seconds"),
            rows=[(name, seeds_text(cell), *costs(cell)) for name, cell in by_model.items()],
            note="Mean and deviation of the seeds, the worst in brackets."
            + (f" {PUBLISHED[task][0].upper()}{PUBLISHED[task][1:]}." if task in PUBLISHED else ""),
        )
    for name, patched in (("rows", False), ("patches", True)):
        own = {(task, how): found for (task, how), found in places.items() if (how != BY_STEP) == patched}
        yield Picture(name=name, title=f"Every seed: {name}", size=(9, 3.2), draw=partial(panels, places=own))


def costs(cell):
    if not cell.rows:
        return "", ""
    return f"{cell.median_of('parameters'):,.0f}", f"{cell.median_of('seconds'):.1f}"


def row_claims(places):
    digits, mnist1d = places.get(("digits", BY_STEP), {}), places.get(("mnist1d", BY_STEP), {})
    for name in ("slstm", "xlstm"):
        for rival in ("lstm", "gru"):
            yield ahead(digits, name, rival)
    for name in ("slstm", "xlstm"):
        yield reaches(digits, name, 0.97, "digits by pixels")
    yield reaches(mnist1d, "xlstm", 0.91, "MNIST-1D, the GRU of its table")
    yield reaches(mnist1d, "xlstm", 0.94, "MNIST-1D, the CNN of its table")


def ahead(by_model, name, rival):
    """By more than the larger of both deviations."""
    pair = [by_model[one] for one in (name, rival) if one in by_model]
    holds = None
    if len(pair) == 2 and decided(pair):
        margin = max(map(deviation_of, pair))
        holds = mean_of(pair[0]) > mean_of(pair[1]) + margin
    return Claim(
        text=f"{name} is ahead of {rival} at digits by pixels by more than a deviation",
        holds=holds,
        evidence=evidence(pair),
    )


def reaches(by_model, name, least, what):
    found = [by_model[name]] if name in by_model else []
    holds = mean_of(found[0]) >= least if decided(found) else None
    return Claim(text=f"{name} reaches {least:.2f} at {what}", holds=holds, evidence=evidence(found))


def image_claims(places):
    for how in PATCHES.values():
        by_model = places.get(("digits", how), {})
        pair = [by_model[one] for one in ("vision", "vit") if one in by_model]
        holds = mean_of(pair[0]) >= mean_of(pair[1]) if len(pair) == 2 and decided(pair) else None
        yield Claim(
            text=f"VisionXLSTM is not behind the Transformer of its size in {how}", holds=holds, evidence=evidence(pair)
        )


def evidence(cells):
    return ", ".join(f"{cell.facets['model']} {seeds_text(cell)}" for cell in cells)


def panels(figure, places):
    if not places:
        return
    (grid,) = figure.subplots(1, len(places), squeeze=False)
    for axes, ((task, how), by_model) in zip(grid, places.items(), strict=True):
        figures.strip(axes, {name: cell.scores() for name, cell in by_model.items()})
        axes.set_title(f"{task}, {how}", fontsize=9, loc="left")
        axes.set_xlabel("accuracy", fontsize=8)
