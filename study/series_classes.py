"""Which nets tell multivariate series of any lengths apart, on the data sets that packages carry?

JapaneseVowels (12 channels, 7 to 29 steps) and five sets of the UCR archive, in the archive's own split, from the wheel
of aeon: `pip download --no-deps aeon`, unzip it into a folder `data` of the working directory; an installed aeon or
sktime does as well. One recipe for all sets: channels in units of training, noise of 0.1 in training, steps in patches
of as many as make at most 64 of a row. A quarter of the training rows chooses the learning rate and the number of
steps; then a net is trained anew on all of them, and tested once. Nets read a row from both ends, and their outputs'
mean over its steps is mapped to the classes; all but the linear map have as many parameters.

Expected: xLSTM reaches 0.978 at JapaneseVowels, and is ahead of the LSTM there and in the mean of the five. It does not
reach InceptionTime's mean of the five: rows are few and long, and outlines of leaves and arrows are what convolutions
see.

Paper: published accuracies of the archive's split (resample 0): InceptionTime, HIVE-COTE 2, WEASEL 2.0, FreshPRINCE
from the tables that aeon 1.6.0 carries (testing/example_results_files/classification/accuracy); JapaneseVowels: KSig
0.986, RFSF 0.978, GAK 0.981 (Tóth et al. 2023, arXiv:2311.12214, README of KSig).
"""

from statistics import mean, stdev

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.arrays import QUICK_ARRAYS, ArrayRun, decided, mean_of, seeds_text

MODELS = ("slstm", "xlstm", "lstm", "gru", "cnn", "linear")
FURTHER = ("mlstm", "attention", "mamba")  # at the paper's size
VOWELS = "JapaneseVowels"
# the most steps of a row
FIVE = {"ArrowHead": 251, "GunPoint": 150, "ItalyPowerDemand": 24, "OSULeaf": 427, "ACSF1": 1460}
MOST = 64
PUBLISHED = {
    "InceptionTime": {
        "ArrowHead": 0.8629,
        "GunPoint": 1.0,
        "ItalyPowerDemand": 0.966,
        "OSULeaf": 0.9215,
        "ACSF1": 0.91,
    },
    "HIVE-COTE 2": {"ArrowHead": 0.8686, "GunPoint": 1.0, "ItalyPowerDemand": 0.9699, "OSULeaf": 0.9669, "ACSF1": 0.91},
    "WEASEL 2.0": {"ArrowHead": 0.8629, "GunPoint": 1.0, "ItalyPowerDemand": 0.9534, "OSULeaf": 0.9752, "ACSF1": 0.93},
    "FreshPRINCE": {"ArrowHead": 0.6286, "GunPoint": 0.94, "ItalyPowerDemand": 0.898, "OSULeaf": 0.8678, "ACSF1": 0.89},
    "KSig": {VOWELS: 0.986},
    "GAK": {VOWELS: 0.981},
    "RFSF": {VOWELS: 0.978},
}
HOW = {
    "quick": {**QUICK_ARRAYS, "refit": True},
    "small": {"parameters": 12_000, "batch": 16, "validations": 10, "noise": 0.1, "refit": True},
    "paper": {"parameters": 100_000, "batch": 32, "validations": 40, "noise": 0.1, "refit": True},
}
STEPS = {"small": 400, "paper": 3000}
RATES = {"small": (3e-3, 1e-2), "paper": (1e-3, 3e-3, 1e-2)}


def runs(size):
    if size == "quick":
        return [ArrayRun(model=name, task="waves", patch=2, **HOW[size]) for name in ("slstm", "lstm")]
    return [
        ArrayRun(model=name, task=f"archive/{task}", lr=rate, patch=patch, steps=STEPS[size], **HOW[size])
        for task, patch in ((VOWELS, 1), *((name, -(-steps // MOST)) for name, steps in FIVE.items()))
        for name in (*MODELS, *(FURTHER if size == "paper" else ()))
        for rate in RATES[size]
    ]


def report(results):
    places = {}
    for cell in results.cells():
        places.setdefault(cell.facets["task"], {})[cell.facets["model"]] = cell
    yield from vowel_claims(places.get(VOWELS, {}))
    yield from five_claims(places)
    names = results.values("model")
    tasks = list(places)
    yield ReportTable(
        title="Accuracy",
        columns=("net", *tasks, "mean of the five"),
        rows=[
            *((name, *(seeds_text(places[task][name]) for task in tasks), five_text(places, name)) for name in names),
            *(
                (name, *(f"{found[task]:.3f}" if task in found else "" for task in tasks), published_mean(found))
                for name, found in PUBLISHED.items()
            ),
        ],
        note="Ours: mean and deviation of the seeds, the worst in brackets. Below them published numbers of the same "
        "split, of one run each, from aeon's tables and KSig's README.",
    )
    yield ReportTable(
        title="What a run costs",
        columns=("net", "parameters", *(f"seconds, {task}" for task in tasks)),
        rows=[(name, *costs([places[task][name] for task in tasks])) for name in names],
        note="With the second net, which is trained on all rows; medians. Runs shared the machine.",
    )
    yield Picture(name="accuracy", title="Every seed", size=(12, 5.4), draw=lambda figure: panels(figure, places))


def costs(cells):
    if not any(cell.rows for cell in cells):
        return ("",) * (1 + len(cells))
    sizes = [cell.median_of("parameters") for cell in cells if cell.rows]
    seconds = [f"{cell.median_of('seconds'):.1f}" if cell.rows else cell.status() for cell in cells]
    return f"{min(sizes):,.0f} to {max(sizes):,.0f}", *seconds


def five_of(places, name):
    """The net's settings in the five sets; none while runs are missing."""
    cells = [places[task][name] for task in FIVE if name in places.get(task, {})]
    return cells if len(cells) == len(FIVE) and decided(cells) else []


def five_means(places, name):
    """The mean over the five sets, of every seed."""
    return [mean(scores) for scores in zip(*(cell.scores() for cell in five_of(places, name)), strict=True)]


def five_text(places, name):
    found = five_means(places, name)
    spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
    return f"{mean(found):.3f}{spread} ({min(found):.3f})" if found else "not run"


def published_mean(found):
    return f"{mean(found[task] for task in FIVE):.3f}" if FIVE.keys() <= found.keys() else ""


def vowel_claims(by_model):
    for least, who in ((0.978, "RFSF"), (0.986, "KSig")):
        found = [by_model["xlstm"]] if "xlstm" in by_model else []
        holds = mean_of(found[0]) >= least if decided(found) else None
        yield Claim(
            text=f"xlstm reaches {least} at JapaneseVowels, which {who} has",
            holds=holds,
            evidence="".join(seeds_text(cell) for cell in found),
        )
    for name in ("slstm", "xlstm"):
        pair = [by_model[one] for one in (name, "lstm") if one in by_model]
        holds = mean_of(pair[0]) > mean_of(pair[1]) if len(pair) == 2 and decided(pair) else None
        evidence = ", ".join(f"{cell.facets['model']} {seeds_text(cell)}" for cell in pair)
        yield Claim(text=f"{name} is ahead of the LSTM at JapaneseVowels", holds=holds, evidence=evidence)


def five_claims(places):
    ours = five_means(places, "xlstm")
    for least, who in ((0.8449, "FreshPRINCE"), (0.9321, "InceptionTime")):
        yield Claim(
            text=f"xlstm reaches a mean of {least} over the five sets, which {who} has",
            holds=mean(ours) >= least if ours else None,
            evidence=five_text(places, "xlstm") if ours else "",
        )
    for name in ("slstm", "xlstm"):
        pair = [five_means(places, one) for one in (name, "lstm")]
        yield Claim(
            text=f"{name} is ahead of the LSTM in the mean of the five sets",
            holds=mean(pair[0]) > mean(pair[1]) if all(pair) else None,
            evidence=f"{name} {five_text(places, name)}, LSTM {five_text(places, 'lstm')}" if all(pair) else "",
        )


def panels(figure, places):
    if not places:
        return
    grid = figure.subplots(-(-len(places) // 3), min(3, len(places)), squeeze=False, sharey=True)
    for axes in grid.flat[len(places) :]:
        axes.set_visible(False)
    for axes, (task, by_model) in zip(grid.flat, places.items(), strict=False):
        figures.strip(axes, {name: cell.scores() for name, cell in by_model.items()})
        for style, name in (("--", "InceptionTime"), (":", "FreshPRINCE"), ("--", "KSig"), (":", "RFSF")):
            if task in PUBLISHED[name]:
                axes.axvline(PUBLISHED[name][task], color="#6b7280", linewidth=0.9, linestyle=style, label=name)
        axes.set_title(task, fontsize=9, loc="left")
        figures.legend(axes)
