"""Results as people read them: text for a terminal, a Markdown page with pictures beside it, and one HTML page.

All of it is made from results. What was found is said by a person, in `found.md` beside them, and is part of each page.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from exlstm.study.cells import Results
from exlstm.study.figures import png
from exlstm.study.parts import Claim, Part, Picture, Table, aligned
from exlstm.study.results import Row, result_path
from exlstm.runtime.machine import clock
from exlstm.runtime.files import write_or_explain
from exlstm.train.run_folder.html import html_page, image, table

_STYLE = """
body { max-width: 72rem; } td, th { padding: .15rem 1rem .15rem 0; font-size: .9rem; white-space: nowrap; }
.holds { color: #009e73; } .fails { color: #d55e00; } .open { color: var(--quiet); }
"""


def publish(results: Results, folder: Path) -> tuple[Path, Path]:
    """Writes SIZE.md, SIZE.html and the pictures beside the results; returns the two pages.

    ValueError where there are no results yet.
    """
    path = result_path(folder, results.study.name, results.size)
    if not results.rows:
        raise ValueError(
            f"there are no results in {path}; get some with: exlstm study run {results.study.name} "
            f"--size {results.size}."
        )
    parts = list(results.study.report(results))
    found_file = path.with_name("found.md")
    found = found_file.read_text(encoding="utf-8").strip() if found_file.exists() and results.size == "small" else ""
    pictures = {part.name: png(part.draw, part.size) for part in parts if isinstance(part, Picture)}
    for name, data in pictures.items():
        write_or_explain(_picture_path(path, name), data)
    markdown, page = path.with_suffix(".md"), path.with_suffix(".html")
    write_or_explain(markdown, _markdown(results, parts, found, path))
    write_or_explain(page, _html(results, parts, found, pictures))
    return markdown, page


def terminal_text(results: Results) -> str:
    """Claims and tables in plain text."""
    blocks = [f"{results.study.question}\n{_standing(results)}"]
    for part in results.study.report(results):
        if isinstance(part, Claim):
            blocks.append(f"[{part.verdict}] {part.text}" + (f"\n  {part.evidence}" if part.evidence else ""))
        elif isinstance(part, Table):
            blocks.append(
                "\n".join([part.title, *aligned([part.columns, *part.rows]), *([part.note] * bool(part.note))])
            )
    return "\n\n".join(blocks)


def _picture_path(results: Path, name: str) -> Path:
    return results.with_name(f"{results.stem}-{name}.png")


def _standing(results: Results) -> str:
    """How many runs there are, and what they cost."""
    cells = results.cells()
    done, failed = sum(len(c.rows) for c in cells), sum(len(c.failed) for c in cells)
    missing = sum(c.missing for c in cells)
    seconds = sum(row.get("seconds", 0) for row in results.rows.values())
    return (
        f"Size {results.size}: {len(cells)} settings, {done} reported runs done, {failed} failed, {missing} not run; "
        f"{len(results.rows)} runs with those that chose a learning rate, {clock(seconds)} of training on one process."
    )


def _sources(rows: list[Row]) -> list[tuple[str, str]]:
    """Where rows come from: commits, machines, versions, each with how many rows."""
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


_FAIR = (
    "Accuracies are scaled: 0 is guessing, 1 is always right. A cell is the median over seeds of the test score, then "
    "how many seeds reach 0.99 of those that ran. A learning rate is chosen per setting on the validation score of "
    "seed 0, and the seeds that are reported had no part in it. All models of a comparison see the same rows in the "
    "same order at a seed. \"At chance\": most seeds are no better than the best constant answer, within three "
    "standard errors."
)  # fmt: skip


def _markdown(results: Results, parts: list[Part], found: str, path: Path) -> str:
    study = results.study
    blocks = [f"# {study.question}", study.text, _standing(results)]
    blocks += [f"## What was found\n\n{found}"] if found else []
    claims = [part for part in parts if isinstance(part, Claim)]
    if claims:
        blocks.append("## Claims\n\n" + _markdown_table(("claim", "", "evidence"), _claim_rows(claims)))
    for part in parts:
        if isinstance(part, Table):
            note = f"\n\n{part.note}" if part.note else ""
            blocks.append(f"## {part.title}\n\n{_markdown_table(part.columns, part.rows)}{note}")
        elif isinstance(part, Picture):
            note = f"\n\n{part.note}" if part.note else ""
            blocks.append(f"## {part.title}\n\n![{part.title}]({_picture_path(path, part.name).name}){note}")
    blocks += ["## How to read this", _FAIR, _markdown_table(("", ""), _sources(list(results.rows.values())))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *map(line, rows)])


def _claim_rows(claims: list[Claim]) -> list[tuple[str, str, str]]:
    return [(claim.text, f"**{claim.verdict}**", claim.evidence) for claim in claims]


def _html(results: Results, parts: list[Part], found: str, pictures: dict[str, bytes]) -> str:
    study = results.study
    pieces = [f"<h1>{escape(study.question)}</h1>", *(_paragraphs(study.text))]
    pieces.append(f'<p class="quiet">{escape(_standing(results))}</p>')
    pieces += ["<h2>What was found</h2>", *_paragraphs(found)] if found else []
    claims = [part for part in parts if isinstance(part, Claim)]
    if claims:
        pieces.append("<h2>Claims</h2>")
        pieces += [_claim_html(claim) for claim in claims]
    for part in parts:
        if isinstance(part, Table):
            pieces += [f"<h2>{escape(part.title)}</h2>", table(part.rows, part.columns)]
        elif isinstance(part, Picture):
            pieces += [f"<h2>{escape(part.title)}</h2>", image(pictures[part.name], part.title)]
        if not isinstance(part, Claim) and part.note:
            pieces.append(f'<p class="quiet">{escape(part.note)}</p>')
    pieces += ["<h2>How to read this</h2>", *_paragraphs(_FAIR), table(_sources(list(results.rows.values())))]
    return html_page(f"{study.name}, {results.size}", pieces, _STYLE)


def _claim_html(claim: Claim) -> str:
    kind = {True: "holds", False: "fails", None: "open"}[claim.holds]
    evidence = f'<br><span class="quiet">{escape(claim.evidence)}</span>' if claim.evidence else ""
    return f'<p><b class="{kind}">{claim.verdict}</b>: {escape(claim.text)}{evidence}</p>'


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of text, of whose Markdown names in backticks are known."""
    text = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return [f"<p>{block}</p>" for block in text.split("\n\n") if block.strip()]
