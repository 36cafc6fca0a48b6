"""Which memories predict physical systems that are seen in part and through noise?

Simulations of our own. Of Lorenz's equations x alone is seen, with noise of 5 %; of the Kuramoto-Sivashinsky equation 8
of 64 places, with noise of 1 %; of a double pendulum all, without noise. A net says how far each channel is from its
newest value 1 and 25 samples later, learns that from what is seen, and is tested by the truth. Rolled out it reads what
it has said: how many Lyapunov times it holds (error below 0.4 deviations), and how far the energy of the pendulum is
off over 500 samples, which is constant in truth. The runoff of a day from all rain so far is what hydrologists train an
LSTM for. A linear map reads the newest 32 samples. All nets but that have as many parameters, and read a row in one
direction.

Expected: sLSTM and xLSTM are not behind the LSTM in any of these, and far ahead (0.7 of its error) in none but
Lorenz's at 25; no net keeps the energy over 500 samples; the linear map is as good as any at the runoff, which is
linear but for its errors, as far as its 32 days reach.

Paper: none for xLSTM. Systems: Lorenz 1963; Cvitanović et al. 2010; runoff as in Kratzert et al. 2018.
"""

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.arrays import ArrayRun, decided, mean_of, seeds_text

MODELS = ("slstm", "xlstm", "lstm", "gru", "attention", "mamba", "linear")
TASKS = ("lorenz63", "double_pendulum", "kuramoto_sivashinsky", "runoff")
OURS = ("slstm", "xlstm")
HOW = {
    "quick": {"parameters": 6000, "steps": 3, "batch": 4, "validations": 1, "lr": 3e-3},
    "small": {"parameters": 12_000, "steps": 400, "batch": 16, "validations": 5},
    "paper": {"parameters": 200_000, "steps": 10_000, "batch": 32, "validations": 40},
}
RATES = {"small": (3e-3, 1e-2), "paper": (1e-3, 3e-3, 1e-2)}
# (title, key, whether a large number is a good one, form)
COLUMNS = {
    "error_1": ("error at 1", False, ".4f"),
    "error_25": ("error at 25", False, ".3f"),
    "valid_time": ("Lyapunov times", True, ".2f"),
    "energy_drift": ("energy drift", False, ".2f"),
}


def runs(size):
    if size == "quick":
        return [ArrayRun(model=name, task="runoff", **HOW[size]) for name in ("slstm", "linear")]
    return [
        ArrayRun(model=name, task=task, lr=rate, **HOW[size])
        for task in TASKS
        for name in (*MODELS, *(("mlstm",) if size == "paper" else ()))
        for rate in RATES[size]
    ]


def report(results):
    places = {}
    for cell in results.cells():
        places.setdefault(cell.facets["task"], {})[cell.facets["model"]] = cell
    yield from claims(places)
    for task, by_model in places.items():
        yield table(task, by_model)
    yield Picture(
        name="errors",
        title="Every seed",
        size=(12, 5.6),
        draw=lambda figure: panels(figure, places),
        note="Errors in deviations of a channel, to the left is better; valid time and efficiency, to the right.",
    )


def keys_of(task):
    if task == "runoff":
        return {"score": ("Nash-Sutcliffe efficiency", True, ".3f")}
    return {key: how for key, how in COLUMNS.items() if key != "energy_drift" or task == "double_pendulum"}


def table(task, by_model):
    keys = keys_of(task)
    return ReportTable(
        title=task,
        columns=("net", *(title for title, _, _ in keys.values()), "parameters", "seconds"),
        rows=[
            (
                name,
                *(seeds_text(cell, key, form=form, large=large) for key, (_, large, form) in keys.items()),
                *costs(cell),
            )
            for name, cell in by_model.items()
        ],
        note="Mean and deviation of the seeds, the worst in brackets. "
        + (
            "Median of 64 catchments against the runoff without noise."
            if task == "runoff"
            else "Errors are roots of mean squares in deviations of a channel, against the truth without noise."
        ),
    )


def costs(cell):
    if not cell.rows:
        return "", ""
    return f"{cell.median_of('parameters'):,.0f}", f"{cell.median_of('seconds'):.1f}"


def claims(places):
    lorenz = places.get("lorenz63", {})
    for name in OURS:
        for key in ("error_1", "error_25"):
            yield not_behind(lorenz, name, key, f"Lorenz's x, {COLUMNS[key][0]}")
            yield not_behind(lorenz, name, key, f"Lorenz's x, {COLUMNS[key][0]}", share=0.7)
    for name in OURS:
        yield not_behind(places.get("double_pendulum", {}), name, "energy_drift", "the pendulum's energy drift")
    for name in OURS:
        yield not_behind(places.get("kuramoto_sivashinsky", {}), name, "error_25", "Kuramoto-Sivashinsky, error at 25")
    yield runoff_claim(places.get("runoff", {}))


def not_behind(by_model, name, key, what, share=1.0):
    """The mean is at most so large a share of the LSTM's."""
    pair = [by_model[one] for one in (name, "lstm") if one in by_model]
    holds = None
    if len(pair) == 2 and decided(pair):
        holds = mean_of(pair[0], key) <= share * mean_of(pair[1], key)
    of = "the LSTM's" if share == 1 else f"{share:g} of the LSTM's"
    _, large, form = COLUMNS[key]
    return Claim(
        text=f"{name} is at most {of}: {what}",
        holds=holds,
        evidence=", ".join(f"{cell.facets['model']} {seeds_text(cell, key, form=form, large=large)}" for cell in pair),
    )


def runoff_claim(by_model):
    pair = [by_model[one] for one in ("slstm", "lstm") if one in by_model]
    holds = mean_of(pair[0]) >= mean_of(pair[1]) if len(pair) == 2 and decided(pair) else None
    return Claim(
        text="slstm has at least the LSTM's efficiency at the runoff",
        holds=holds,
        evidence=", ".join(f"{cell.facets['model']} {seeds_text(cell)}" for cell in pair),
    )


def panels(figure, places):
    """A panel for every task and number, a line per net."""
    found = [(task, key, how) for task in places for key, how in keys_of(task).items()]
    if not found:
        return
    columns = min(4, len(found))
    grid = figure.subplots(-(-len(found) // columns), columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes, (task, key, (title, _, _)) in zip(grid.flat, found, strict=False):
        figures.strip(axes, {name: cell.scores(key=key) for name, cell in places[task].items()})
        axes.set_title(f"{task.replace('_', ' ')}: {title}", fontsize=8, loc="left")
