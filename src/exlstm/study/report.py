"""Reports of a study's results: text for a terminal, and a Markdown page with pictures beside it, as PNG and PDF.

All of it is made from results, but for the section "What was found": that is the text of `found.md` beside them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from exlstm.models.explain import aligned
from exlstm.runtime.files import write_or_explain
from exlstm.runtime.machine import clock
from exlstm.study.aggregate import Results
from exlstm.study.contract import Row
from exlstm.study.figures import pdf, png
from exlstm.study.report_items import Claim, Picture, ReportItem, ReportTable
from exlstm.study.results import report_path, result_path


def write_report(results: Results, folder: Path) -> Path:
    """Writes SIZE.md and the pictures beside the results; returns the page. ValueError without results."""
    path = result_path(folder, results.study.name, results.size)
    if not results.ended():
        raise ValueError(
            f"there are no results in {path}; get some with: exlstm study run {results.study.name} "
            f"--size {results.size}."
        )
    items = list(results.study.report(results))
    found_file = path.with_name("found.md")
    found = found_file.read_text(encoding="utf-8").strip() if found_file.exists() and results.size == "small" else ""
    path.parent.mkdir(parents=True, exist_ok=True)  # a study may have the runs of others alone
    for item in items:
        if isinstance(item, Picture):
            picture = _picture_path(path, item.name)
            write_or_explain(picture, png(item.draw, item.size))
            write_or_explain(picture.with_suffix(".pdf"), pdf(item.draw, item.size))
    page = report_path(folder, results.study.name, results.size)
    write_or_explain(page, _markdown(results, items, found, path))
    return page


def write_summary(studies: Sequence[Results], folder: Path) -> Path:
    """Writes results/SIZE.md: every claim of every study with its verdict, and all pictures. Returns the page.

    studies: of one size, with results each.
    """
    rows, blocks = [], []
    for results in studies:
        name, size = results.study.name, results.size
        items = list(results.study.report(results))
        page = f"{name}/{size}.md"
        rows += [
            (f"[{name}]({page})", item.text, f"**{item.verdict}**", item.evidence)
            for item in items
            if isinstance(item, Claim)
        ]
        pictures = [f"![{item.title}]({name}/{size}-{item.name}.png)" for item in items if isinstance(item, Picture)]
        blocks.append(
            "\n\n".join([f"## {results.study.question}", f"[{name}]({page}). {_progress(results)}", *pictures])
        )
    count = Counter(verdict for _, _, verdict, _ in rows)
    counted = ", ".join(f"{number} {verdict.strip('*')}" for verdict, number in count.most_common())
    table = _markdown_table(("study", "claim", "what was found", "evidence"), rows)
    path = folder / "results" / f"{studies[0].size}.md"
    head = f"# Claims of the paper and of its reviewers\n\nSize {studies[0].size}: {counted}."
    write_or_explain(path, "\n\n".join([head, table, *blocks]) + "\n")
    return path


def terminal_text(results: Results) -> str:
    """Claims and tables in plain text."""
    blocks = [f"{results.study.question}\n{_progress(results)}"]
    for item in results.study.report(results):
        if isinstance(item, Claim):
            blocks.append(f"[{item.verdict}] {item.text}" + (f"\n  {item.evidence}" if item.evidence else ""))
        elif isinstance(item, ReportTable):
            blocks.append(
                "\n".join([item.title, *aligned([item.columns, *item.rows]), *([item.note] * bool(item.note))])
            )
    return "\n\n".join(blocks)


def _picture_path(results: Path, name: str) -> Path:
    return results.with_name(f"{results.stem}-{name}.png")


def _progress(results: Results) -> str:
    """How many runs have ended, and what they cost."""
    cells = results.cells()
    done, failed = sum(len(c.rows) for c in cells), sum(len(c.failed) for c in cells)
    missing = sum(c.missing for c in cells)
    ended = results.ended()
    seconds = sum(row.get("seconds", 0) for row in ended)
    return (
        f"Size {results.size}: {len(cells)} settings, {done} reported runs done, {failed} failed, {missing} not run; "
        f"{len(ended)} runs with those that chose a learning rate, {clock(seconds)} of training on one process."
    )


def _sources(rows: list[Row]) -> list[tuple[str, str]]:
    """Commits, machines and versions that the rows come from, each with its number of rows."""
    commits = Counter(str(row["commit"]) for row in rows)
    machines = Counter(
        f"{row['machine']['cores']} cores of {row['machine']['cpu']}"
        + (f", {row['machine']['gpu']}" if row["machine"]["gpu"] else "")
        for row in rows
    )
    versions = Counter(", ".join(f"{name} {version}" for name, version in row["versions"].items()) for row in rows)
    return [
        (what, f"{value} ({count} runs)")
        for what, counter in (("commit", commits), ("machine", machines), ("versions", versions))
        for value, count in counter.items()
    ]


_HOW_TO_READ = (
    "Accuracies are scaled: 0 is guessing, 1 is always right. A cell is the median over seeds of the test score, then "
    "how many seeds reach 0.99 of those that ran. A learning rate is chosen per setting on the validation score of "
    "seed 0, and the seeds that are reported had no part in it. All models of a comparison see the same rows in the "
    "same order at a seed. \"At chance\": most seeds are no better than the best constant answer, within three "
    "standard errors."
)  # fmt: skip


def _markdown(results: Results, items: list[ReportItem], found: str, path: Path) -> str:
    study = results.study
    blocks = [f"# {study.question}", study.text, _progress(results)]
    blocks += [f"## What was found\n\n{found}"] if found else []
    claims = [item for item in items if isinstance(item, Claim)]
    if claims:
        blocks.append("## Claims\n\n" + _markdown_table(("claim", "", "evidence"), _claim_rows(claims)))
    for item in items:
        if isinstance(item, ReportTable):
            note = f"\n\n{item.note}" if item.note else ""
            blocks.append(f"## {item.title}\n\n{_markdown_table(item.columns, item.rows)}{note}")
        elif isinstance(item, Picture):
            note = f"\n\n{item.note}" if item.note else ""
            blocks.append(f"## {item.title}\n\n![{item.title}]({_picture_path(path, item.name).name}){note}")
    blocks += ["## How to read this", _HOW_TO_READ, _markdown_table(("", ""), _sources(results.ended()))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)])


def _claim_rows(claims: list[Claim]) -> list[tuple[str, str, str]]:
    return [(claim.text, f"**{claim.verdict}**", claim.evidence) for claim in claims]
