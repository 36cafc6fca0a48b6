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
from exlstm.models.pattern import configured

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
CHUNKS, TOEPLITZ = "matrix products within chunks, states between", "Toeplitz products within chunks, states between"
TRIANGULAR = "triangular solve and matrix products within chunks, states between"
XLSTM, NETS, SCANS, SPACES = "xLSTM", "recurrent nets", "gated linear recurrences", "state spaces and long convolutions"
LINEAR, DELTA, SOFTMAX = "linear attention", "delta rules", "attention"
SLOTS = "softmax over slots"
FACTS: dict[str, Fact] = {
    "mlstm": Fact(XLSTM, "C = f C + i k vᵀ, h = Cᵀq / max(|nᵀq|, 1)", CHUNKS, "xlstm, mlstm_kernels"),
    "mlstm_large": Fact(XLSTM, "C = f C + i k vᵀ, h = Cᵀq / max(|nᵀq|, 1)", CHUNKS, "xlstm, transformers"),
    "slstm": Fact(XLSTM, "c = f c + i z, h = o c / n, gates see h", DENSE, "xlstm, flashrnn"),
    "lstm": Fact(NETS, "c = f c + i z, h = o tanh(c), gates see h", DENSE, "torch"),
    "gru": Fact(NETS, "h = z h + (1 − z) n, gates and n see h", DENSE, "torch"),
    "elman": Fact(NETS, "h = tanh(W x + R h)", DENSE, "torch"),
    "mult_lstm": Fact(NETS, "an LSTM whose gates see (W x) ⊙ (R h)", DENSE, ""),
    "assoc_lstm": Fact(NETS, "complex c = f c + r u, several permuted copies", DENSE, ""),
    "matrix_rnn": Fact(NETS, "H = f H + (1 − f) tanh(H W + k vᵀ)", DENSE, ""),
    "hgrn": Fact(SCANS, "h = λ h + (1 − λ) b, λ of each step and channel", SCAN, "fla"),
    "mingru": Fact(SCANS, "h = (1 − z) h + z n, z of each step and channel", SCAN, "minGRU-pytorch"),
    "minlstm": Fact(SCANS, "h = f h + i n with f + i = 1", SCAN, "minGRU-pytorch"),
    "rglru": Fact(SCANS, "h = a h + √(1 − a²) i u, a of each step and channel", SCAN, "recurrentgemma, transformers"),
    "lru": Fact(SPACES, "h = λ h + B x, λ complex and constant", SCAN, "lru-pytorch"),
    "s5": Fact(SPACES, "h = Λ h + B x, one system for all channels", SCAN, "s5-pytorch"),
    "s4d": Fact(SPACES, "h = Λ h + u for each channel, y = 2 Re(C h)", TOEPLITZ, ""),
    "gss": Fact(SPACES, "h = Λ h + u with poles shared by all channels", TOEPLITZ, ""),
    "bigs": Fact(SPACES, "h = Λ h + u, one system for all channels (forward half)", TOEPLITZ, ""),
    "h3": Fact(SPACES, "q ⊙ SSM(shift(k) ⊙ v)", TOEPLITZ, ""),
    "mamba": Fact(
        SPACES,
        "h = exp(Δ A) h + Δ B x, Δ, B and C of each step",
        "scan over time, 16 states per channel",
        "mamba-ssm, transformers, mambapy",
    ),
    "hyena": Fact(SPACES, "x ⊙ (filter ∗ (v ⊙ z))", "FFT or Toeplitz products", ""),
    "linear_attention": Fact(LINEAR, "S = S + φ(k) vᵀ, y = Sᵀφ(q) / nᵀφ(q)", CHUNKS, "fla"),
    "performer": Fact(LINEAR, "as linear attention, φ random features of softmax", CHUNKS, "performer-pytorch"),
    "based": Fact(LINEAR, "as linear attention, φ a Taylor series of exp", CHUNKS, "fla"),
    "retention": Fact(LINEAR, "S = γ S + k vᵀ, γ a constant of each head", CHUNKS, "fla, torchscale"),
    "mamba2": Fact(LINEAR, "S = a S + B (Δ x)ᵀ, a of each step and head", CHUNKS, "mamba-ssm, transformers, fla"),
    "mamba3": Fact(LINEAR, "as Mamba-2, rotated B and C, two inputs a step", CHUNKS, "mamba-ssm, fla"),
    "gla": Fact(LINEAR, "S = diag(α) S + k vᵀ, α of each step and key channel", CHUNKS, "fla"),
    "hgrn2": Fact(LINEAR, "S = diag(λ) S + (1 − λ) vᵀ", CHUNKS, "fla"),
    "rwkv4": Fact(LINEAR, "num = e^w num + e^k v, den likewise, per channel", SCAN, "rwkv, transformers"),
    "rwkv5": Fact(LINEAR, "S = diag(w) S + k vᵀ, w constant, a bonus for the present step", CHUNKS, "rwkv"),
    "rwkv6": Fact(LINEAR, "S = diag(w) S + k vᵀ, w of each step and key channel, a bonus", CHUNKS, "rwkv, fla"),
    "rwkv_channel": Fact(LINEAR, "an MLP that sees the step before", "matrix products", "rwkv"),
    "deltanet": Fact(DELTA, "S = S + β k (v − Sᵀk)ᵀ", TRIANGULAR, "fla"),
    "gated_deltanet": Fact(DELTA, "S = α S + β k (v − α Sᵀk)ᵀ", TRIANGULAR, "fla, transformers"),
    "rwkv7": Fact(DELTA, "S = diag(w) S − (κ a)(κᵀS) + k vᵀ", TRIANGULAR, "rwkv, fla"),
    "abc": Fact(SLOTS, "slots average k and v by weights eˢ, y = Ṽᵀ softmax(K̃ᵀq)", CHUNKS, "fla"),
    "gsa": Fact(SLOTS, "K̃ = K̃ diag(α) + k (1 − α)ᵀ, Ṽ likewise, y = Ṽᵀ softmax(K̃ᵀq)", CHUNKS, "fla"),
    "linformer": Fact(SLOTS, "K̃ = K̃ + k eᵀ, Ṽ = Ṽ + f vᵀ, e and f learned for each position (causal form)", CHUNKS, ""),
    "attention": Fact(SOFTMAX, "softmax(q Kᵀ) V", "matrix products", "torch, transformers"),
    "mega": Fact(
        SOFTMAX,
        "h = a h + x, a constant, several per channel; softmax(q Kᵀ) V of h within chunks",
        "Toeplitz and matrix products within chunks",
        "mega-pytorch",
    ),
}


class Numbers(NamedTuple):
    """Parameters, bytes of the state after LENGTH steps, FLOPs per token in prefill and in decoding."""

    parameters: int
    state: int
    prefill: float
    decode: float


def built(name: str) -> Any:
    """The mixer with its defaults at WIDTH, on the meta device; a Performer with heads of 64, the usual ones."""
    with torch.device("meta"):
        return configured(name, {"heads": 16} if name == "performer" else {}).build(WIDTH, depth=24, index=1)


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
