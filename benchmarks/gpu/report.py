"""The tables of docs/results/gpu.md and a picture for each GPU, made from the results alone."""

from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu import CASES
from benchmarks.gpu.targets import LIMITS, TARGETS
from benchmarks.report import BEGIN, END, draw, short, span, table, target_table
from benchmarks.store import Record, Results, load
from benchmarks.targets import limits

PAGE = ROOT / "docs" / "results" / "gpu.md"
NOTHING = (
    "**Nothing has been timed on a GPU yet, so this page has no numbers.** On a machine with an NVIDIA GPU,\n"
    "`make bench-gpu` times everything named below beside the peers and fills it in;\n"
    "`python -m benchmarks gpu --resume` goes on where a run was stopped."
)


def write_report(results: Path, page: Path = PAGE) -> list[Path]:
    """Replaces the marked part of the page and draws a picture beside it for each GPU; all are returned.

    results: the folder that holds a folder for each kind of GPU, and one for CPUs.
    """
    page.write_text(filled(page.read_text(), results))
    pictures = []
    for folder in gpu_folders(results):
        pictures.append(page.parent / picture(folder))
        draw(load(folder)[0], pictures[-1], TARGETS, f"an {card(folder)}")
    return [page, *pictures]


def gpu_folders(results: Path) -> list[Path]:
    """The folders with results, sorted by name."""
    return [folder for folder in sorted(results.iterdir()) if folder.name != "cpu" and any(folder.glob("*.json"))]


def filled(text: str, results: Path) -> str:
    """The page with its marked part made from these results."""
    begin, end = BEGIN.format("gpus"), END.format("gpus")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"the page has no part between {begin} and {end}"
    content = "\n\n".join(section(folder) for folder in gpu_folders(results)) or NOTHING
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def section(folder: Path) -> str:
    """The section of one kind of GPU."""
    results, machines = load(folder)
    parts = [
        f"## {card(folder)}",
        *machine_lines(results, machines),
        f"![Each target as a bar: how many times better than asked]({picture(folder)})",
        target_table(results, TARGETS, limits(LIMITS)),
        "### Every measurement",
        "\n\n".join(f"#### {case}\n\n{case_table(results[case])}" for case in CASES if results.get(case)),
    ]
    return "\n\n".join(parts)


def picture(folder: Path) -> str:
    return f"gpu-{folder.name}.png"


def card(folder: Path) -> str:
    """The name of a card in its driver."""
    return next(iter(load(folder)[1].values()))["gpu"]


def machine_lines(results: Results, machines: dict[str, Any]) -> list[str]:
    """The machines of the results, a line for each machine and commit, and the ceilings measured beside them."""
    found: dict[str, list[str]] = {}
    for case, machine in machines.items():
        records = list(results[case].values())
        versions = ", ".join(f"{name} {value or 'is not installed'}" for name, value in machine["versions"].items())
        commits = ", ".join(sorted({short(str(record["commit"])) for record in records}))
        dates = sorted(record["date"][:10] for record in records)
        line = (
            f"{machine['gpu']} ({machine['multiprocessors']} multiprocessors, capability {machine['capability']}, "
            f"{machine['memory_gib']:.0f} GiB), {machine['cpu']}, {machine['system']}, Python {machine['python']}, "
            f"torch {machine['torch']} (CUDA {machine['cuda']}, cuDNN {machine['cudnn']}), {versions}; commit "
            f"{commits}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."
        )
        found.setdefault(line, []).append(case)
    told = [line if len(found) == 1 else f"{', '.join(cases)}: {line}" for line, cases in found.items()]
    rates = [record["machine_speed"] for x in results.values() for record in x.values() if "machine_speed" in record]
    if rates:
        copies, products = ([rate[name] for rate in rates] for name in ("copy_gb_s", "gemm_tflops"))
        told.append(
            f"Measured beside: copying (GB/s, read and written) {span(copies)}; products of bfloat16 matrices of "
            f"8192 x 8192 (TFLOP/s) {span(products)}."
        )
    return told


def case_table(measured: dict[str, Record]) -> str:
    """Every variant with its time, share of the roofline and ratios; then the missing peers with their reasons."""
    rows = [("measurement", "result", "speed, ours over theirs", "absent")]
    for name, found in measured.items():
        absent = "<br>".join(f"{variant}: {reason}" for variant, reason in found.get("absent", {}).items())
        if "red" in found:
            rows.append((f"`{name}`", f"refused: {found['red']}", "", absent))
            continue
        pairs = [f"{ours} / {peer}: {x['of_medians']:.2f}x"
                 for ours, peers in found["ratios"].items() for peer, x in peers.items()]  # fmt: skip
        lines = [line(variant, found) for variant in found["milliseconds"]]
        rows.append((f"`{name}`: {found['about']}", "<br>".join(lines), "<br>".join(pairs), absent))
    return table(rows)


def line(variant: str, found: Record) -> str:
    """The numbers of a variant."""
    derived, parts = found["derived"], [f"{found['milliseconds'][variant]['median']:.4g} ms"]
    for key, unit in {"us_per_step": "us a step", "milliseconds_per_token": "ms a token"}.items():
        if variant in derived.get(key, {}):
            parts.append(f"{derived[key][variant]:.4g} {unit}")
    if variant in derived["share_of_roofline"]:
        parts.append(f"{100 * derived['share_of_roofline'][variant]:.0f} % of the roofline")
    return f"{variant}: {', '.join(parts)}"
