"""Which memories forecast a series, and where does a simpler method win?

Series that packages carry, of 100 to 2,284 points. A network is the forecaster of `exlstm forecast`: patches in,
quantiles of the next patch out, relative to the season before. In the place of its blocks stand mLSTM and sLSTM blocks,
torch's LSTM and GRU, all with as many parameters, or nothing; at the paper's size also attention. Beside them are the
seasonal naive forecast, the drift, a linear map in closed form, and for short series AutoETS and AutoARIMA of
statsforecast, which are fitted anew to every past. All others are fitted once, to the points before the first window,
and forecast the same 20 windows at the end of a series. A network's rate is chosen on windows before these.

Expected: networks are ahead where there are thousands of points, and behind a linear map or ETS where there are a
hundred; the flow of the Nile cannot be known, so that nothing is much better there than its last value. Instance
normalization decides more than the memory, as in the literature on long horizons. TiRex has sLSTM blocks alone, so that
[s] is not behind [m].

Paper: none for xLSTM. TiRex: Auer et al. 2025; instance normalization: Kim et al. 2022 (RevIN).
"""

from statistics import mean, median

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.forecasting import TASKS, BaselineRun, ETTRun, NetworkRun
from exlstm.study.forecasting.ett import FILES

NAIVE, LINEAR, OURS = "seasonal naive", "linear map", "xlstm[ms]"
MEMORIES = (OURS, "xlstm[s]", "xlstm[m]", "lstm", "gru")
SIMPLE = (NAIVE, "drift", LINEAR)
STATISTICAL = ("AutoETS", "AutoARIMA")
SEEDS = 3
BRIEF, LONG = ("airline", "nile", "gdp", "sunspots"), ("co2", "seattle_days")  # at the size small
ABLATED = ("airline",)
COMPARED = ("no memory", "lstm", OURS)
FLAT = {"linear map, not centered": "instance norm", "linear map, no season": "season",
        "linear map, neither": "instance norm and season"}  # fmt: skip
WITHOUT = ("nothing", "instance norm", "season", "instance norm and season")


def runs(size):
    if size == "quick":
        made = {"series": "waves", "windows": 2}
        trained = [NetworkRun(model=name, lr=5e-3, steps=2, **made) for name in (OURS, "lstm")]
        bare = NetworkRun(model="no memory", lr=5e-3, steps=2, instance_norm=False, relative=False, **made)
        return [*trained, bare, *(BaselineRun(model=name, **made) for name in (NAIVE, LINEAR))]
    paper = size == "paper"
    rates = (1e-3, 2e-3, 4e-3, 8e-3) if paper else (2e-3, 8e-3)
    steps = dict.fromkeys(TASKS, 2000) if paper else dict.fromkeys(BRIEF, 60) | dict.fromkeys(LONG, 150)
    ablated = tuple(steps) if paper else ABLATED
    compared = (*MEMORIES, *(["attention"] if paper else []), "no memory")
    trained = [
        NetworkRun(model=name, series=series, lr=rate, steps=steps[series])
        for series in steps
        for name in compared
        for rate in rates
    ]
    bare = [
        NetworkRun(model=name, series=series, lr=rate, steps=steps[series], instance_norm=norm, relative=relative)
        for series in ablated
        for name in COMPARED
        for norm, relative in ((False, True), (True, False), (False, False))
        for rate in rates
    ]
    simple = [BaselineRun(model=name, series=series) for series in steps for name in SIMPLE]
    fitted = [
        BaselineRun(model=name, series=series)
        for name in STATISTICAL
        for series in steps
        if series in BRIEF  # twenty fits to thousands of points take longer than all networks
    ]
    flat = [BaselineRun(model=name, series=series) for series in ablated for name in FLAT]
    long = [
        ETTRun(model=name, series=file, lr=rate)
        for file in (FILES if paper else ())
        for name in compared
        for rate in (5e-4, 2e-3)
    ]
    return [*trained, *bare, *simple, *fitted, *flat, *long]


def report(results):
    cells = {(cell.facets["task"], cell.facets["model"], cell.facets["without"]): cell for cell in results.cells()}
    series = [task for task in results.values("task") if task in TASKS]
    known = results.values("model")
    names = [name for name in (*MEMORIES, "attention", "no memory", *SIMPLE, *STATISTICAL) if name in known]
    full = {name: {task: cells.get((task, name, "nothing")) for task in series} for name in names}
    yield from claims(full, cells)
    for key, title, note in (
        ("mase", "Error of the median (MASE)", "In units of the seasonal naive error in the history, one step ahead."),
        ("wql", "CRPS as a share of the series' size", "The weighted quantile loss over nine quantiles."),
        ("covered", "Share of points in the 80 % band", "0.80 is right; more is too wide, less too narrow."),
    ):
        yield table(title, full, key, note)
    yield ReportTable(
        title="Mean rank by CRPS, and what a method costs",
        columns=("method", "mean rank", "parameters", "seconds"),
        rows=[(name, *cost(name, full)) for name in names],
        note="Ranks are over all series, but those of AutoETS and AutoARIMA, which are over the series where they run. "
        "Seconds are of fitting and of forecasting, the median over series.",
    )
    yield ablation(cells)
    if long := [cell for cell in results.cells() if cell.facets["task"] not in TASKS]:
        yield ett(long)
    yield Picture(
        name="saved",
        title="Share of the seasonal naive CRPS that a method saves, median of seeds",
        size=(10, 5.2),
        draw=lambda figure: saved(figure, full),
        note="Below 0 the season before is better. Grey: left out, for the series is long.",
    )
    yield Picture(
        name="fans",
        title="The last window: xLSTM[ms] with its 80 % band, and the season before",
        size=(11, 2.3 * max(1, -(-len(series) // 3))),
        draw=lambda figure: fans(figure, full),
        note="The first reported seed of each series, whatever its score.",
    )


def claims(full, cells):
    yield majority(f"{OURS} has a lower CRPS than the seasonal naive forecast in most series", full, [OURS], [NAIVE])
    for rival in (name for name in ("lstm", "gru", "attention") if name in full):
        yield majority(f"{OURS} is ahead of {rival} in most series, at equal parameters", full, [OURS], [rival])
    yield majority("xlstm[s] is ahead of xlstm[m] in most series", full, ["xlstm[s]"], ["xlstm[m]"])
    for text, short in (("short series, of 100 to 309 points", True), ("long series, of a thousand and more", False)):
        yield majority(f"a linear map is ahead of every network in most {text}", full, [LINEAR], MEMORIES, short=short)
    yield normalization(cells)


def majority(text, full, ones, others, *, short=None):
    """The claim that the best of some methods has a lower CRPS than the best of others in most series.

    short: series that are in BRIEF, or those that are not; None: all.
    """
    names = (*ones, *others)
    if not full.keys() >= set(names) or not decided([cell for name in names for cell in full[name].values()]):
        return Claim(text=text, holds=None)
    tasks = [task for task in full[ones[0]] if short in (None, task in BRIEF)]
    lowest = {task: [min(full[n][task].median(key="crps") for n in side) for side in (ones, others)] for task in tasks}
    ahead = [task for task, (one, other) in lowest.items() if one < other]
    return Claim(
        text=text,
        holds=2 * len(ahead) > len(tasks),
        evidence=f"in {len(ahead)} of {len(tasks)}: {', '.join(ahead) or 'none'}",
    )


def decided(cells):
    """True if all of these have ended, and none failed."""
    return bool(cells) and not any(cell is None or cell.open for cell in cells)


def normalization(cells):
    """The claim on the ablation: what instance normalization changes, and what a memory is worth beside it."""
    tasks = dict.fromkeys(task for task, name, without in cells if name == OURS and without == "instance norm")
    grid = {(task, name, w): cells.get((task, name, w)) for task in tasks for name in COMPARED for w in WITHOUT[:2]}
    ready, parts, larger = decided(list(grid.values())), [], 0
    for task in tasks if ready else ():
        usual, bare = ([grid[task, name, w].median(key="mase") for name in COMPARED] for w in WITHOUT[:2])
        memory, norm = max(usual) - min(usual), mean(abs(x - y) for x, y in zip(usual, bare, strict=True))
        larger += norm > memory
        parts.append(f"{task}: norm {norm:.2f}, memory {memory:.2f}")
    return Claim(
        text="instance normalization changes the MASE more than the memory does, in most series that it is left out of",
        holds=2 * larger > len(tasks) if ready else None,
        evidence="; ".join(parts),
    )


def number(cell, key):
    """Median and range over seeds; of a method that has no seed its number alone."""
    if cell is None:
        return "–"
    if not cell.rows:
        return cell.status()
    scores = cell.scores(key=key)
    middle = f"{median(scores):.3f}"
    missing = f", {len(scores)} of {cell.planned} seeds" if cell.open else ""
    spread = f" ({min(scores):.3f} to {max(scores):.3f}{missing})" if max(scores) > min(scores) or missing else ""
    return middle + spread


def table(title, full, key, note):
    series = list(next(iter(full.values()), {}))
    return ReportTable(
        title=title,
        columns=("series", "points", "horizon", "season", *full),
        rows=[
            (task, points(full, task), *known_of(task), *(number(full[name][task], key) for name in full))
            for task in series
        ],
        note=f"{note} Median over seeds and their range; methods without a range have no seed.",
    )


def known_of(task):
    return str(TASKS[task].horizon), str(TASKS[task].season)


def points(full, task):
    found = [full[name][task].median_of("points") for name in full if full[name][task] and full[name][task].rows]
    return f"{found[0]:,.0f}" if found else ""


def cost(name, full):
    """Mean rank, parameters and seconds of a method."""
    ranks = []
    for task, cell in full[name].items():
        others = [full[other][task] for other in full if other == name or other not in STATISTICAL]
        if cell is not None and all(other is not None and other.rows for other in others):
            ranks.append(1 + sum(other.median(key="crps") < cell.median(key="crps") for other in others))
    ended = [cell for cell in full[name].values() if cell is not None and cell.rows]
    if not ended:
        return "", "", ""
    sizes = [cell.median_of("parameters") for cell in ended]
    size = f"{min(sizes):,.0f}" + (f" to {max(sizes):,.0f}" if max(sizes) > min(sizes) else "")
    seconds = median(cell.median_of("seconds") for cell in ended)
    return f"{mean(ranks):.1f}" if ranks else "", size, f"{seconds:.2f}"


def ablation(cells):
    """MASE without instance normalization, without the season before, and without both."""
    rows = []
    flat = {without: name for name, without in FLAT.items()}
    for task in dict.fromkeys(task for task, _, without in cells if without != "nothing"):
        line = [cells.get((task, flat.get(w, LINEAR), "nothing")) for w in WITHOUT]
        rows.append((task, LINEAR, *(number(cell, "mase") for cell in line)))
        rows += [(task, name, *(number(cells.get((task, name, w)), "mase") for w in WITHOUT)) for name in COMPARED]
    return ReportTable(
        title="What decides: the MASE without instance normalization, and without the season before",
        columns=("series", "model", *(f"without {w}" for w in WITHOUT)),
        rows=rows,
        note="Without instance normalization points are in units of the whole history, and the linear map sees them as "
        "they are. Without the season the output is not relative to the value one season before. No memory: the head "
        "sees the last patch alone.",
    )


def ett(cells):
    """Errors on the ETT files, beside published ones."""
    return ReportTable(
        title="ETT: 96 hours of all channels behind 512, standardized",
        columns=("file", "model", "mean squared error", "mean absolute error"),
        rows=[
            (cell.facets["task"], cell.facets["model"], *(number(cell, key) for key in ("mse", "mae")))
            for cell in cells
        ],
        note="All windows of the test. Published with a context of the authors' choice: ETTh1 PatchTST/64 0.370 and "
        "0.400, a linear map 0.373 and 0.395, DLinear 0.375 and 0.399; ETTh2 NLinear 0.277 and 0.338, DLinear 0.289 "
        "and 0.353.",
    )


def saved(figure, full):
    series = list(next(iter(full.values()), {}))
    values = [[None if cell is None else cell.median() for cell in by_task.values()] for by_task in full.values()]
    figures.heat_map(figure, values, list(full), series, label="saved CRPS", low=-0.5, high=0.7)


def fans(figure, full):
    if OURS not in full:
        return
    series = list(full[OURS])
    columns = min(3, len(series))
    grid = figure.subplots(-(-len(series) // columns), columns, squeeze=False)
    for axes in grid.flat[len(series) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, series, strict=False):
        ours, naive = full[OURS][task], full.get(NAIVE, {}).get(task)
        axes.set_title(f"{task.replace('_', ' ')}, {TASKS[task].horizon} steps", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        if not (ours.rows and naive is not None and naive.rows):
            continue
        fan(axes, ours.rows[0]["last"], naive.rows[0]["last"])
    figures.legend(grid.flat[0])


def fan(axes, ours, naive):
    """One window. Steps count from its beginning."""
    past, ahead = range(-len(naive["past"]) + 1, 1), range(1, len(naive["truth"]) + 1)
    axes.plot([*past, *ahead], naive["past"] + naive["truth"], color="#4d4d4d", lw=1, label="the series")
    axes.fill_between(ahead, ours["low"], ours["high"], color=figures.color(0), alpha=0.25, lw=0)
    axes.plot(ahead, ours["middle"], color=figures.color(0), lw=1.6, label=OURS)
    axes.plot(ahead, naive["middle"], color=figures.color(1), lw=1.1, ls=(0, (4, 2)), label="season before")
    axes.axvline(0.5, color="#9ca3af", lw=0.8, ls=":")
