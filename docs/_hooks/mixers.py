"""The table and the picture of all mixers, made from the code when the site is built.

What only a reader of papers knows stands in FACTS; sizes and costs are computed, on the meta device.
"""

import io
import re
from importlib import import_module
from typing import Any, NamedTuple

import torch
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from exlstm.mixers import MIXERS

WIDTH, LENGTH = 1024, 2048
MARK, PICTURE = "<!-- table of all mixers -->", "mixers-state.png"
PAPER = re.compile(r"\(([^()]*?), arXiv:(\d{4}\.\d{5})")


class Fact(NamedTuple):
    """recurrence: in symbols. parallel: how whole sequences are computed. elsewhere: other packages that have it."""

    family: str
    recurrence: str
    parallel: str
    elsewhere: str


DENSE, SCAN = "none: one step after another", "scan over time, per channel"
CHUNKS = "matrix products within chunks, states between"
FACTS: dict[str, Fact] = {
    "mlstm": Fact("xLSTM", "C = f C + i k vᵀ, h = Cᵀq / max(|nᵀq|, 1)", CHUNKS, "xlstm, mlstm_kernels"),
    "mlstm_large": Fact("xLSTM", "C = f C + i k vᵀ, h = Cᵀq / max(|nᵀq|, 1)", CHUNKS, "xlstm, transformers"),
    "slstm": Fact("xLSTM", "c = f c + i z, h = o c / n, gates see h", DENSE, "xlstm, flashrnn"),
    "lstm": Fact("recurrent nets", "c = f c + i z, h = o tanh(c), gates see h", DENSE, "torch"),
    "attention": Fact("attention", "softmax(q Kᵀ) V", "matrix products", "torch, transformers"),
    "hgrn": Fact("linear recurrences", "h = λ h + (1 − λ) b, λ of each step and channel", SCAN, "fla"),
    "mingru": Fact("linear recurrences", "h = (1 − z) h + z n, z of each step and channel", SCAN, "minGRU-pytorch"),
}


class Numbers(NamedTuple):
    """Parameters, bytes of the state after LENGTH steps, FLOPs per token in prefill and in decoding."""

    parameters: int
    state: int
    prefill: float
    decode: float


def built(name: str) -> Any:
    """The mixer with its defaults at WIDTH, on the meta device."""
    with torch.device("meta"):
        return MIXERS[name]().build(WIDTH, depth=24, index=1)


def numbers(name: str) -> Numbers:
    """The mixer's sizes and costs."""
    mixer = built(name)
    count = sum(p.numel() for p in mixer.parameters())
    flops = [2 * count + mixer.cell_flops(mode, LENGTH) for mode in ("prefill", "decode")]
    return Numbers(count, mixer.state_bytes(LENGTH), *flops)


def paper(name: str) -> str:
    """The link to the paper that the mixer's module names first."""
    cls = MIXERS[name]
    found = PAPER.search(import_module(cls.__module__).__doc__ or "")
    return f"[{found[1]}](https://arxiv.org/abs/{found[2]})" if found else ""


def table() -> str:
    """All mixers, one row each, by family."""
    head = "| mixer | recurrence | whole sequences | parameters / d² | state KiB | train | decode | paper | elsewhere |"
    rows = []
    for family in dict.fromkeys(fact.family for fact in FACTS.values()):
        rows += ["", f"**{family}**", "", head, "|---|---|---|---|---|---|---|---|---|"]
        for name, fact in FACTS.items():
            if fact.family != family:
                continue
            n = numbers(name)
            sizes = f"{n.parameters / WIDTH**2:.2f} | {n.state / 1024:,.0f}"
            costs = f"{3 * n.prefill / 1e6:.1f} | {n.decode / 1e6:.1f}"
            recurrence = fact.recurrence.replace("|", "\\|")
            cells = f"`{name}` | {recurrence} | {fact.parallel} | {sizes} | {costs} | {paper(name)} | {fact.elsewhere}"
            rows.append(f"| {cells} |")
    return "\n".join(rows)


def picture() -> bytes:
    """Bytes of the state against the length, one line per mixer, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    lengths = [2**n for n in range(4, 17)]
    figure, axes = plt.subplots(figsize=(9, 7), layout="constrained")
    ends = []
    for name in FACTS:
        mixer = built(name)
        kib = [mixer.state_bytes(length) / 1024 for length in lengths]
        (line,) = axes.loglog(lengths, kib, lw=1.6)
        ends.append((kib[-1], name, line.get_color()))
    low = 0.0
    for height, name, color in sorted(ends):  # labels at the right, moved up where they would overlap
        low = max(height, low * 1.12)
        axes.text(lengths[-1] * 1.15, low, name, color=color, va="center", fontsize=8)
    axes.set_xlabel("tokens read")
    axes.set_ylabel("KiB of state, one layer, width 1,024")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the picture."""
    files.append(File.generated(config, PICTURE, content=picture()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the table in the place of its mark."""
    return markdown.replace(MARK, table()) if MARK in markdown else markdown
