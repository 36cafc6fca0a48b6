"""What do models cost to run: training, reading a text, and a new token behind it?

The models of the study `language`, measured one at a time on a machine that does nothing else, on one CPU thread: a
training step, the time to read 16, 2,048 and 16,384 tokens, the time of a token behind them, that of 8 and of 64 rows
behind 16 tokens, and the bytes of state. Random weights, as time does not depend on them.

Expected: a token costs the same behind any context, but for attention, whose cost and state grow.

Beside the software of others, and with all cores, models of other sizes are measured in `make bench-cpu`, as is the
memory that a training step needs. These measurements are taken from there.

Paper: Beck et al. 2024, section 4.3, figure 9: time of generation and throughput of 1.3B models on a GPU.
"""

from statistics import median

from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.language import language_models, timings

USES = ("language",)
SOFTWARE = ("train_step", "train_llama", "mixers_train", "decode", "mixers_decode")
MEMORY = ("memory", "mixers_memory")
BENCHMARKS = (*SOFTWARE, *MEMORY)
SEEDS = 3
FLAT = 1.25  # times the cost behind 16 tokens; measurements of one machine spread by a tenth
SHOWN = ("xlstm[1:0]", "xlstm[7:1]", "xlstm-7b", "llama", "mamba", "gla", "hyena", "rwkv4")


def runs(size):
    return timings(size, language_models(size, ("xlstm[1:0]", "llama") if size == "quick" else None))


def report(results):
    cells = {cell.facets["model"]: cell for cell in results.cells()}
    found = {name: generation(cell) for name, cell in cells.items()}
    for name in ("xlstm[1:0]", "xlstm[7:1]", "mamba", "llama"):
        if name in cells:
            yield claim(name, cells[name], found[name])
    for rival in ("llama", "mamba"):
        if {rival, "xlstm[1:0]"} <= set(cells):
            yield throughput("xlstm[1:0]", rival, cells, found)
    places = sorted({place for entries in found.values() for place in entries})
    single = [place for place in places if place[1] == 1]
    yield ReportTable(
        title="Training and reading",
        columns=("model", "parameters", "tokens/s in training", *(f"ms to read {T:,}" for T, _ in single)),
        rows=[
            (name, *begin(cells[name]), *(number(found[name], place, "reading_seconds", 1e3) for place in single))
            for name in cells
        ],
        note="One row. The median over seeds; one CPU thread, nothing beside it.",
    )
    yield ReportTable(
        title="Milliseconds per step of generation",
        columns=("model", *(f"behind {T:,}, {rows} row{'s' * (rows > 1)}" for T, rows in places)),
        rows=[
            (
                name,
                *(
                    number(found[name], place, "token_seconds", 1e3) + called(found[name].get(place, ()))
                    for place in places
                ),
            )
            for name in cells
        ],
        note="A step is one token of every row. Steps are replayed without the interpreter. *: steps that are calls of "
        "torch, which count in models as small as these.",
    )
    yield ReportTable(
        title="Bytes of state and FLOPs of a token, by tokens read",
        columns=("model", *(f"{what} after {T:,}" for what in ("state", "FLOPs") for T, _ in single)),
        rows=[
            (name, *(number(found[name], place, key, 1.0) for key in ("state_bytes", "flops") for place in single))
            for name in cells
        ],
        note="One row.",
    )
    yield from from_benchmarks(results.benchmarks)
    yield Picture(
        name="context",
        title="A token behind a context",
        size=(8, 4.2),
        draw=lambda figure: draw(figure, {name: found[name] for name in SHOWN if name in found}),
        note="One row.",
    )


def from_benchmarks(measured):
    """Tables of what `make bench-cpu` measured: time beside the software of others, and memory of training."""
    both = [
        line for case in SOFTWARE for name, record in measured.get(case, {}).items() for line in beside(name, record)
    ]
    if both:
        yield ReportTable(
            title="Beside the software of others",
            columns=("what", "measured", "the other", "ours, ms", "the other's, ms", "times as fast"),
            rows=both,
            note="All cores, both in one run, medians; the commit and the machine are in benchmarks/results.",
        )
    found = {name: record["megabytes"] for case in MEMORY for name, record in measured.get(case, {}).items()}
    lengths = sorted({int(length) for sizes in found.values() for length in sizes})
    if found:
        yield ReportTable(
            title="Megabytes that a training step needs at its peak, by the length of sequences",
            columns=("mixer", *(f"{length:,}" for length in lengths)),
            rows=[
                (name, *(f"{sizes[str(T)]:,.0f}" if str(T) in sizes else "" for T in lengths))
                for name, sizes in found.items()
            ],
            note="8,192 tokens a step, width 256, beyond the model and its optimizer; two blocks, four of xLSTM's and "
            "Llama's.",
        )


def beside(name, record):
    """A line for each other software of a measurement, beside our time with the usual call."""
    what, _, peer = record["about"].partition("; peer: ")
    times = {label: spread["median"] for label, spread in record.get("milliseconds", {}).items()}
    ours = next((label for label in times if label.startswith("exlstm")), None)
    for label, other in times.items():
        if ours and not label.startswith("exlstm") and "int" not in name:
            yield (
                name,
                what,
                peer if label == "peer" else label,
                f"{times[ours]:,.1f}",
                f"{other:,.1f}",
                f"{other / times[ours]:.2f}",
            )


def generation(cell):
    """Measurements of every seed by (context, rows)."""
    found = {}
    for row in cell.rows:
        for entry in row["metrics"]["generation"]:
            found.setdefault((entry["context"], entry["rows"]), []).append(entry)
    return found


def called(entries):
    """The mark of steps that were not replayed."""
    return "" if all(entry["replayed"] for entry in entries) else "*"


def begin(cell):
    if not cell.rows:
        return cell.status(), ""
    return f"{cell.median_of('parameters'):,.0f}", f"{cell.median():,.0f}"


def number(found, place, key, factor):
    if place not in found:
        return ""
    value = factor * median(entry[key] for entry in found[place])
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def claim(name, cell, found):
    """A token behind the longest context costs what it costs behind the shortest."""
    places = sorted(place for place in found if place[1] == 1)
    holds, evidence = None, ""
    if not cell.open and len(places) > 1:
        short, long = (
            1e3 * median(entry["token_seconds"] for entry in found[place]) for place in (places[0], places[-1])
        )
        flat = long <= FLAT * short
        holds = flat != (name == "llama")
        evidence = f"{short:.3f} ms behind {places[0][0]:,} tokens, {long:.3f} ms behind {places[-1][0]:,}"
    text = "costs more behind a long context" if name == "llama" else "costs the same behind any context"
    return Claim(text=f"a token of {name} {text}", holds=holds, evidence=evidence)


def throughput(ours, rival, cells, found):
    """Figure 9, right: at the largest number of rows that was measured."""
    holds, evidence = None, ""
    if not any(cells[name].open for name in (ours, rival)):
        place = max(found[ours], key=lambda place: place[1])
        seconds = [median(entry["token_seconds"] for entry in found[name][place]) for name in (ours, rival)]
        first, second = (place[1] / value for value in seconds)
        holds, evidence = first > second, f"{first:,.0f} and {second:,.0f}, with {place[1]} rows"
    return Claim(text=f"{ours} generates more tokens per second than {rival}", holds=holds, evidence=evidence)


def draw(figure, models):
    axes = figure.subplots()
    series = {
        name: [
            (T, [1e3 * entry["token_seconds"] for entry in entries])
            for (T, rows), entries in sorted(found.items())
            if rows == 1
        ]
        for name, found in models.items()
    }
    figures.lines(
        axes,
        series,
        x_label="tokens read before",
        y_label="milliseconds per token",
        log_x=True,
        log_y=any(series.values()),
    )
    figures.legend(axes)
