"""Equations become MathML when the site is built, so that reading it needs no script and no network.

Sources use GitHub's notation, which GitHub shows too: a fenced block ```math and inline $`...`$.
"""

import re

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`]+)`\$")
PLACE = "mathmlnumber{}end"

formulas: list[str] = []


def to_mathml(latex: str, display: str) -> str:
    """MathML of an equation. latex2mathml has no aligned, and sets `log f` without a space."""
    latex = latex.replace(r"\begin{aligned}", r"\begin{array}{rl}").replace(r"\end{aligned}", r"\end{array}")
    return convert(latex, display=display).replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replaces formulas by placeholders, so that Markdown does not read their underscores."""
    formulas.clear()

    def remember(mathml: str) -> str:
        formulas.append(mathml)
        return PLACE.format(len(formulas) - 1)

    markdown = BLOCK.sub(lambda found: remember(to_mathml(found[1], "block")), markdown)
    return INLINE.sub(lambda found: remember(to_mathml(found[1], "inline")), markdown)


def on_page_content(html: str, **_: object) -> str:
    """Replaces the placeholders by MathML."""
    for number, mathml in enumerate(formulas):
        html = html.replace(PLACE.format(number), mathml)
    return html
