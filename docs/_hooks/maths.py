"""Equations as MathML, made when the site is built: no script and no network when it is read.

Sources use GitHub's notation, so the pages read well there too: a fenced block ```math and inline $`...`$.
"""

import re

from latex2mathml.converter import convert

BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`]+)`\$")
PLACE = "mathmlnumber{}end"

formulas: list[str] = []


def to_mathml(latex: str, display: str) -> str:
    """latex2mathml knows array but not aligned, and sets `log f` without a space."""
    latex = latex.replace(r"\begin{aligned}", r"\begin{array}{rl}").replace(r"\end{aligned}", r"\end{array}")
    return convert(latex, display=display).replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')


def on_page_markdown(markdown: str, **_: object) -> str:
    """Takes the formulas out before Markdown sees their underscores."""
    formulas.clear()

    def remember(mathml: str) -> str:
        formulas.append(mathml)
        return PLACE.format(len(formulas) - 1)

    markdown = BLOCK.sub(lambda found: remember(to_mathml(found[1], "block")), markdown)
    return INLINE.sub(lambda found: remember(to_mathml(found[1], "inline")), markdown)


def on_page_content(html: str, **_: object) -> str:
    """Puts them back as MathML."""
    for number, mathml in enumerate(formulas):
        html = html.replace(PLACE.format(number), mathml)
    return html
