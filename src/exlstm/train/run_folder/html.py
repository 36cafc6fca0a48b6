"""HTML of one self-contained file: no scripts, nothing loaded from elsewhere, light and dark."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #d8dce3; --quiet: #667085; --card: #f6f7f9;
  --bar: #2f6db3; --other: #b6bdc9; }
@media (prefers-color-scheme: dark) { :root { --line: #3a3f49; --quiet: #9aa3b2; --card: #1e2127; --other: #525a68; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; overflow-wrap: anywhere; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.quiet { color: var(--quiet); }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem 1.1rem; }
.tiles b { display: block; font-size: 1.5rem; }
img { width: 100%; border-radius: .5rem; background: white; }
pre { background: var(--card); border-radius: .5rem; padding: 1rem; overflow-x: auto; font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .8rem; border-radius: .2rem; background: var(--other); }
.mine .bar { background: var(--bar); } .mine td { font-weight: 600; }
"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """A whole page of these pieces of HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def image(png: bytes, text: str) -> str:
    """A picture inside the page, in base64. text: its alternative text."""
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def wide_table(rows: str) -> str:
    """A table of these rows of HTML, which scrolls by itself on a narrow screen."""
    return f'<div class="scroll"><table>{rows}</table></div>'


def table(rows: Iterable[Sequence[str]]) -> str:
    """A table of these rows of text."""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return wide_table(body)
