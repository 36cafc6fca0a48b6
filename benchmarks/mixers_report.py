"""The tables of docs/results/mixers.md: rivals beside their peers, along the length, and beside our mLSTM."""

from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.cpu import CASES
from benchmarks.cpu.mixers_train import PEER
from benchmarks.cpu.peers.table import NO_PEER, PEERS
from benchmarks.cpu.training import PLAIN, ROWS
from benchmarks.report import machine_lines, table, with_parts
from benchmarks.store import Record, Results, load

PAGE = ROOT / "docs" / "results" / "mixers.md"
NOTHING = "Nothing has been measured yet."


def write_report(results: Path, page: Path = PAGE) -> list[Path]:
    """Replaces the marked parts of the page, which is returned."""
    page.write_text(filled(page.read_text(), *load(results)))
    return [page]


def filled(text: str, results: Results, machines: dict[str, Any]) -> str:
    """The page with its marked parts made from these results."""
    cases = [case for case in CASES if case.startswith("mixers_") and case in results]
    parts = {
        "machine": machine_lines({case: results[case] for case in cases}, {case: machines[case] for case in cases}),
        "train": train_table(results.get("mixers_train", {})),
        "without": table([("mixer", "why it has no peer"), *((f"`{name}`", why) for name, why in NO_PEER.items())]),
        "length": length_table(results.get("mixers_length", {}), results.get("mixers_memory", {})),
        "decode": decode_table(results.get("mixers_decode", {})),
        "beside": beside_table(results.get("mixers_beside_mlstm", {})),
    }
    return with_parts(text, parts)


def train_table(measured: dict[str, Record]) -> str:
    """Tokens per second of a training step, ours in both forms and the peer's."""
    ways, rates = ("plain loop", "rows on threads"), ("ours, plain loop", "ours, rows on threads", "the peer")
    rows = [("mixer", "peer", *(f"{program}, tokens/s" for program in rates), *(f"{way} / peer" for way in ways))]
    for name, found in measured.items():
        about = PEERS[name].about if name in PEERS else ""
        if "red" in found:
            rows.append((f"`{name}`", about, f"refused: {found['red']}", "", "", "", ""))
            continue
        rates = [f"{found['derived']['tokens_per_second'][variant]:,}" for variant in (PLAIN, ROWS, PEER)]
        over = [f"{found['ratios'][ours][PEER]['of_medians']:.2f}x" for ours in (PLAIN, ROWS)]
        rows.append((f"`{name}`", about, *rates, *over))
    return table(rows) if measured else NOTHING


def length_table(times: dict[str, Record], memory: dict[str, Record]) -> str:
    """Tokens per second and memory of a training step, at both lengths."""
    rows = [
        ("mixer", "tokens/s at 512", "at 8192", "time per token, 8192 / 512", "MB at 512", "at 8192", "largest / 512")
    ]
    for name in dict.fromkeys((*times, *memory)):
        cells = [f"`{name}`"]
        found, peak = times.get(name, {}), memory.get(name, {})
        if "derived" in found:
            cells += [f"{rate:,}" for rate in found["derived"]["tokens_per_second"].values()]
            cells.append(f"{found['derived']['longest_over_shortest']:.2f}x")
        else:
            cells += [found.get("red", ""), "", ""]
        if "megabytes" in peak:
            cells += [f"{value:.0f}" for value in peak["megabytes"].values()]
            cells.append(f"{peak['largest_over_shortest']:.2f}x")
        else:
            cells += [peak.get("red", ""), "", ""]
        rows.append(tuple(cells))
    return table(rows) if times or memory else NOTHING


def decode_table(measured: dict[str, Record]) -> str:
    """Milliseconds per token of ours at two contexts and of transformers."""
    rows = [("model", "ms at 16", "ms at 64k", "transformers", "ours / transformers", "share of the bandwidth")]
    for name, found in measured.items():
        if "red" in found:
            rows.append((f"`{name}`", f"refused: {found['red']}", "", "", "", ""))
            continue
        times = [f"{ms:.2f}" for ms in found["derived"]["milliseconds_per_token"].values()]
        over = next(iter(found["ratios"]["exlstm @16"].values()))["of_medians"]
        share = f"{100 * found['derived']['share_of_stream']:.0f} %"
        rows.append((f"`{name}`: {found['about']}", *times, f"{over:.2f}x", share))
    return table(rows) if measured else NOTHING


def beside_table(measured: dict[str, Record]) -> str:
    """One row per mixer: tokens per second and the share of the machine in each of the three ways, and the state."""
    shares = {"train": "share_of_sgemm", "prefill": "share_of_sgemm", "decode": "share_of_stream"}
    if any(name not in measured or "red" in measured[name] for name in shares):
        return NOTHING
    found = {name: measured[name]["derived"] for name in shares}
    head = [cell for name in shares for cell in (f"{name}, tokens/s", "share")]
    rows = [("mixer", *head, "state of a block, KiB")]
    for label, state in found["decode"]["state_bytes"].items():
        cells = []
        for name, share in shares.items():
            cells += [f"{found[name]['tokens_per_second'][label]:,}", f"{100 * found[name][share][label]:.0f} %"]
        rows.append((f"`{label.partition(' ')[2]}`", *cells, f"{state / 1024:,.0f}"))
    return table(rows)
