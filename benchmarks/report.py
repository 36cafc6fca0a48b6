"""The tables of docs/results/cpu.md and its picture, made from the results alone."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.cpu import CASES
from benchmarks.store import Record, Results, load
from benchmarks.targets import TARGETS, Target, limits

PAGE = ROOT / "docs" / "results" / "cpu.md"
PICTURE = ROOT / "docs" / "results" / "cpu.png"
BEGIN, END = "<!-- begin {} -->", "<!-- end {} -->"


def write_report(results: Path, page: Path = PAGE, picture: Path = PICTURE) -> list[Path]:
    """Replaces the marked parts of the page and draws the picture; both are returned."""
    page.write_text(filled(page.read_text(), *load(results)))
    draw(load(results)[0], picture)
    return [page, picture]


def filled(text: str, results: Results, machines: dict[str, Any]) -> str:
    """The page with its marked parts made from these results."""
    parts = {"machine": machine_lines(results, machines), "targets": target_table(results), "all": tables(results)}
    return with_parts(text, parts)


def with_parts(text: str, parts: Mapping[str, str]) -> str:
    """The page with other content between the marks of each part."""
    for name, content in parts.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"the page has no part between {begin} and {end}"
        text = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return text


def target_table(results: Results, targets: Iterable[Target] = TARGETS, texts: dict[str, str] | None = None) -> str:
    """One row per target; what was not measured says so. texts: what limits a number, by the target's key."""
    texts = limits() if texts is None else texts
    rows = [("work", "must reach", "measured", "reached", "what limits it")]
    for target in targets:
        value = target.find(results)
        if value is None:
            rows.append((target.work, target.goal, "not measured", "", texts.get(target.key, "")))
        else:
            reached = "yes" if target.reached(value) else "**no**"
            rows.append((target.work, target.goal, target.shown(value), reached, texts.get(target.key, "")))
    return table(rows)


def machine_lines(results: Results, machines: dict[str, Any]) -> str:
    """The machines of the results, a line for each machine and commit."""
    if not results:
        return "Nothing has been measured yet."
    found: dict[str, list[str]] = {}
    for case, machine in machines.items():
        records = list(results[case].values())
        versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
        instructions = ", ".join(machine["instructions"]) or "no vector instructions told"
        commits = ", ".join(sorted({short(str(record["commit"])) for record in records}))
        dates = sorted(record["date"][:10] for record in records)
        when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
        line = (
            f"{machine['threads']} threads on {machine['cores']} cores of an {machine['cpu']} ({instructions}; "
            f"{machine['memory_gib']:.0f} GiB), {machine['system']}, Python {machine['python']}, "
            f"torch {machine['torch']}, {versions}; commit {commits}; {when}"
        )
        found.setdefault(line, []).append(case)
    speeds = [record["machine_speed"] for records in results.values() for record in records.values()
              if "machine_speed" in record]  # fmt: skip
    spans = [f"{label} {span([speed[name] for speed in speeds])}" for name, label in named_speeds(speeds).items()]
    machines_told = [line if len(found) == 1 else f"{', '.join(cases)}: {line}" for line, cases in found.items()]
    return "\n\n".join([*(f"{line}." for line in machines_told), "Measured beside: " + "; ".join(spans) + "."])


def short(commit: str) -> str:
    sha, plus, changes = commit.partition("+")
    return sha[:12] + plus + changes


def named_speeds(speeds: list[dict[str, float]]) -> dict[str, str]:
    names = speeds[0] if speeds else {}
    threads = {name: name.rpartition("_")[2] for name in names if name.startswith("stream")}
    streams = {name: f"reading memory with {n} thread{'s' * (n != '1')} (GB/s)" for name, n in threads.items()}
    return {"sgemm_gflops": "float32 matrix products (GFLOP/s)"} | streams if names else {}


def span(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


# the cases of rivals have a page of their own
OF_XLSTM = tuple(case for case in CASES if not case.startswith("mixers_"))


def tables(results: Results, cases: Sequence[str] = OF_XLSTM) -> str:
    """Every measurement, case by case: milliseconds by variant, or what the case measures itself."""
    return "\n\n".join(f"### {case}\n\n{case_table(results[case])}" for case in cases if results.get(case))


def case_table(measured: dict[str, Record]) -> str:
    rows = [("measurement", "result", "speed, ours over theirs")]
    for name, found in measured.items():
        if "red" in found:
            rows.append((f"`{name}`", f"refused: {found['red']}", ""))
            continue
        results = [f"{variant} {x['median']:.4g} ms" for variant, x in found.get("milliseconds", {}).items()]
        results += [f"{key} {plain(found[key])}" for key in OWN if key in found]
        results += [f"{key} {plain(value)}" for key, value in found.get("derived", {}).items() if key in DERIVED]
        pairs = [f"{ours} / {peer}: {x['of_medians']:.2f}x"
                 for ours, peers in found.get("ratios", {}).items() for peer, x in peers.items()]  # fmt: skip
        rows.append((f"`{name}`: {found['about']}", "<br>".join(results), "<br>".join(pairs)))
    return table(rows)


OWN = ("seconds", "megabytes")
DERIVED = ("share_of_sgemm", "share_of_stream", "slowdown", "longest_over_shortest_context")


def plain(value: Any) -> str:
    return ", ".join(f"{key}: {x}" for key, x in value.items()) if isinstance(value, dict) else str(value)


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown, the first row on top."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def draw(results: Results, path: Path, targets: Iterable[Target] = TARGETS, place: str = "a CPU") -> None:
    """A bar per target: how many times better than asked, on a log scale; right of the line is reached."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    found = [(target, value) for target in targets if (value := target.find(results)) is not None]
    figure, axes = plt.subplots(figsize=(11, 0.32 * max(len(found), 3) + 1.4), layout="constrained")
    for row, (target, value) in enumerate(found):
        margin = target.margin(value)
        colour = "#2a7f62" if target.reached(value) else "#d1662b"
        axes.barh(row, margin - 1, left=1, color=colour, height=0.7)
        side = {"ha": "left", "x": margin * 1.03} if margin >= 1 else {"ha": "right", "x": margin / 1.03}
        told = f"{target.shown(value)} ({target.goal})"
        axes.text(side["x"], row, told, va="center", ha=side["ha"], fontsize=8.5)
    axes.set_yticks(range(len(found)), [label(target) for target, _ in found], fontsize=9)
    axes.set_ylim(max(len(found), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    margins = [target.margin(value) for target, value in found] or [1.0]
    axes.set_xlim(min(0.5, *margins) / 2, max(2.0, *margins) * 2)
    ticks = [
        tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if axes.get_xlim()[0] < tick < axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_xlabel("times better than asked (log scale); beside each bar what was measured (and asked)")
    axes.set_title(f"Speed on {place}: green is reached, orange is not", fontsize=12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for side_name in ("top", "right", "left"):
        axes.spines[side_name].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def label(target: Target) -> str:
    return "\n".join(textwrap.wrap(target.work.replace("`", ""), 72))
