"""The targets on a CPU, and how each number is found in the results. Ratios are speed, ours over the peer's.

What limits a number that is not reached is written by hand in `limits.md`, under the target's key.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.cpu.mixers_train import PEER
from benchmarks.cpu.training import PLAIN, ROWS
from benchmarks.harness import mean_ratio
from benchmarks.store import Record, Results

LIMITS = Path(__file__).parent / "limits.md"
Find = Callable[[Results], float | None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table. unit "x" is a ratio, "%" a share, others are of time; at_most: smaller is better."""

    key: str
    work: str
    bound: float
    find: Find
    unit: str = "x"
    at_most: bool = False

    def reached(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def margin(self, value: float) -> float:
        """The number over its bound, or the inverse if smaller is better; below 1 the target is missed."""
        return self.bound / value if self.at_most else value / self.bound

    def shown(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.0f} %"
        digits = 2 if value < 10 else 1
        return f"{value:.{digits}f}{self.ending}"

    @property
    def ending(self) -> str:
        return "x" if self.unit == "x" else f" {self.unit}"

    @property
    def goal(self) -> str:
        bound = f"{100 * self.bound:g} %" if self.unit == "%" else f"{self.bound:g}{self.ending}"
        return f"{'≤' if self.at_most else '≥'} {bound}"


def record(results: Results, case: str, name: str) -> Record | None:
    """The measurement, None if it is missing or was refused."""
    found = results.get(case, {}).get(name)
    return None if found is None or "red" in found else found


def records(results: Results, case: str, ending: str = "", beginning: str = "") -> list[Record]:
    """Measurements by pattern of names; none if one of them was refused, since the rest alone would flatter."""
    found = [x for name, x in results.get(case, {}).items() if name.endswith(ending) and name.startswith(beginning)]
    return [] if any("red" in x for x in found) else found


def ratio(case: str, name: str, ours: str, peer: str) -> Find:
    def find(results: Results) -> float | None:
        found = record(results, case, name)
        return None if found is None or ours not in found["ratios"] else found["ratios"][ours][peer]["of_medians"]

    return find


def ratios(case: str, ending: str, ours: str, peer: str, fold: Callable[[list[float]], float]) -> Find:
    """The ratio over all measurements of a case whose names have this ending."""

    def find(results: Results) -> float | None:
        values = [x["ratios"][ours][peer]["of_medians"] for x in records(results, case, ending)]
        return fold(values) if values else None

    return find


def derived(case: str, ending: str, fold: Callable[[list[float]], float], *path: str) -> Find:
    """A derived number over all measurements of a case whose names have this ending."""

    def find(results: Results) -> float | None:
        values = []
        for value in records(results, case, ending):
            for step in ("derived", *path):
                value = value[step]
            values.append(value)
        return fold(values) if values else None

    return find


def decode_over(peer: str, shortest: int = 0) -> Find:
    """The smallest ratio over sizes, dtypes and those of the peer's contexts that are long enough, ours at the same."""

    def find(results: Results) -> float | None:
        values = []
        for dtype in ("float32", "bfloat16"):
            for found in records(results, "decode", dtype):
                for ours, peers in found["ratios"].items():
                    context = ours.partition("@")[2]  # the loop of calls has no target
                    if context and int(context) >= shortest:
                        same = peer if peer in peers else f"{peer} @{context}"
                        values += [peers[same]["of_medians"]] if same in peers else []
        return min(values, default=None)

    return find


def int8_over_bf16(results: Results) -> float | None:
    values = [x["ratios"]["exlstm int8"]["bfloat16"]["of_medians"] for x in records(results, "decode", "int8")]
    return min(values, default=None)


def longest_over_shortest(results: Results) -> float | None:
    key = "longest_over_shortest_context"
    values = [x["derived"][key] for x in records(results, "decode") if key in x.get("derived", {})]
    return max(values, default=None)


def memory_growth(results: Results) -> float | None:
    """The largest ratio of our models; Llama is for comparison."""
    names = [name for name in results.get("memory", {}) if name != "llama"]
    values = [found["largest_over_shortest"] for name in names if (found := record(results, "memory", name))]
    return max(values, default=None)


def import_over_torch(results: Results) -> float | None:
    found = record(results, "startup", "import")
    return None if found is None else found["over_torch"]


def slowest_first_use(results: Results) -> float | None:
    return max((found["seconds"]["cached"] for found in records(results, "startup", beginning="first_")), default=None)


def train_targets() -> Iterator[Target]:
    """Each step as a plain loop and as the trainer does it."""
    ways = {"plain": (PLAIN, "plain loop"), "rows": (ROWS, "rows on threads")}
    mixes = {
        "mlstm": ("4 mLSTM blocks", 2.0),
        "one_slstm": ("one sLSTM block of four", 5.0),
        "all_slstm": ("4 sLSTM blocks", 12.0),
    }
    for way, (ours, told) in ways.items():
        for mix, (blocks, bound) in mixes.items():
            yield Target(
                key=f"train-{mix}-{way}", bound=bound, find=ratio("train_step", f"{mix}_float32", ours, "xlstm"),
                work=f"train step, {blocks}, float32, {told}, vs xlstm",
            )  # fmt: skip
        yield Target(
            key=f"train-bf16-{way}", bound=3.0,
            find=ratio("train_step", "mlstm_bfloat16", f"{ours}, bfloat16", "xlstm"),
            work=f"train step, 4 mLSTM blocks, bfloat16 products, {told}, vs xlstm in float32",
        )  # fmt: skip
    for T, bound in ((512, 1.0), (2048, 2.0), (8192, 4.0)):
        yield Target(key=f"llama-{T}", bound=bound, find=ratio("train_llama", f"t{T}", PLAIN, "Llama"),
                     work=f"train step at T = {T}, float32, plain loop, vs Llama of equal size")  # fmt: skip


def rivals_memory_growth(results: Results) -> float | None:
    return max((x["largest_over_shortest"] for x in records(results, "mixers_memory")), default=None)


DECODED = {"mamba": "Mamba", "mamba2": "Mamba-2", "rwkv4": "RWKV", "recurrent_gemma": "RecurrentGemma"}
BESIDE_MLSTM = {
    "train": ("share_of_sgemm", "train step, share of sgemm"),
    "prefill": ("share_of_sgemm", "prefill, share of sgemm"),
    "decode": ("share_of_stream", "decode, share of the stream bandwidth"),
}


def least_of_mlstm(name: str, share: str, results: Results) -> float | None:
    """The smallest share of the machine that a rival reaches, over that of the better one of our mLSTMs."""
    found = record(results, "mixers_beside_mlstm", name)
    if found is None:
        return None
    shares = found["derived"][share]
    ours = [label for label in shares if "mlstm" in label]
    rivals = [value for label, value in shares.items() if label not in ours]
    return min(rivals) / max(shares[label] for label in ours)


def mixer_targets() -> Iterator[Target]:
    """Mixers beside their peers; "nowhere less" is judged at the worst mixer."""
    for way, (ours, told) in {"plain": (PLAIN, "plain loop"), "rows": (ROWS, "rows on threads")}.items():
        over = partial(ratios, "mixers_train", "", ours, PEER)
        work = f"train step, 4 blocks of a rival, float32, {told}, vs the best that a CPU had"
        yield Target(key=f"mixers-train-{way}-mean", bound=2.0, find=over(mean_ratio), work=f"{work}, geometric mean")
        yield Target(key=f"mixers-train-{way}-min", bound=1.0, find=over(min), work=f"{work}, worst mixer")
    yield Target(
        key="mixers-length",
        bound=1.15,
        at_most=True,
        find=derived("mixers_length", "", max, "longest_over_shortest"),
        work="train step, time per token at T = 8192 over that at 512, worst mixer of constant state",
    )
    yield Target(
        key="mixers-memory",
        bound=1.1,
        at_most=True,
        find=rivals_memory_growth,
        work="memory of a training step at T = 8192 over that at 512, equal tokens, worst mixer of constant state",
    )
    for name, told in DECODED.items():
        over = ratio("mixers_decode", name, "exlstm @16", "transformers")
        work = f"decode of a 160M model, float32, vs transformers' {told}"
        yield Target(key=f"mixers-decode-{name}", bound=2.0, find=over, work=work)
    yield Target(
        key="mixers-decode-context",
        bound=1.05,
        at_most=True,
        find=derived("mixers_decode", "", max, "longest_over_shortest_context"),
        work="decode of a 160M rival, time per token at 64k over that at 16, worst",
    )
    for name, (share, told) in BESIDE_MLSTM.items():
        work = f"{told}: GLA, RetNet, Mamba-2 and both DeltaNets over our mLSTM, worst"
        find = partial(least_of_mlstm, name, share)
        yield Target(key=f"mixers-beside-{name}", bound=0.5, unit="%", find=find, work=work)


def op_targets() -> Iterator[Target]:
    """Targets for both directions of both ops; "nowhere less" is judged at the worst size."""
    for ending, told in {"forward": "forward", "forward_backward": "forward + backward"}.items():
        over = partial(ratios, "slstm_op", f"_{ending}", "exlstm", "nn.LSTM")
        work = f"sLSTM with its input projection vs nn.LSTM, {told}"
        yield Target(key=f"slstm-{ending}-mean", bound=2.0, find=over(mean_ratio), work=f"{work}, geometric mean")
        yield Target(key=f"slstm-{ending}-min", bound=1.0, find=over(min), work=f"{work}, worst size")
    for ending, told in {"forward": "forward", "forward_backward": "forward + backward"}.items():
        over = partial(ratios, "mlstm_op", f"_{ending}", "exlstm", "mlstm_kernels")
        work = f"mLSTM op vs the fastest of mlstm_kernels, {told}"
        yield Target(key=f"mlstm-{ending}-mean", bound=1.5, find=over(mean_ratio), work=f"{work}, geometric mean")
        yield Target(key=f"mlstm-{ending}-min", bound=1.5, find=over(min), work=f"{work}, worst size")
        yield Target(
            key=f"mlstm-{ending}-sgemm", bound=0.5, unit="%",
            find=derived("mlstm_op", f"_{ending}", min, "share_of_sgemm", "exlstm"),
            work=f"mLSTM op, useful FLOPs over sgemm, {told}, worst size",
        )  # fmt: skip


FORMS = {
    "packed, 3/4 of the steps": ("packed rows of 3/4 of the steps", 1.15),
    "resets at 1 %": ("1 % of the steps begin anew", 1.05),
    "both directions": ("both directions", 2.1),
    "3 layers": ("3 layers", 3.1),
}


def form_cost(form: str, results: Results) -> float | None:
    """Time of a form of a call over that of the plain call of the same net, the worst of ours."""
    names = [f"forms_exlstm_{kind}" for kind in ("slstm", "mlstm", "lstm")]
    found = [measured for name in names if (measured := record(results, "drop_in", name))]
    times = [x["milliseconds"][f"exlstm form, {form}"]["median"] / x["milliseconds"]["plain"]["median"] for x in found]
    return max(times) if len(times) == len(names) else None


def drop_in_targets() -> Iterator[Target]:
    """Nets in the place of nn.LSTM; "nowhere less" is judged at the worst size."""
    for ending, told in {"forward": "forward", "forward_backward": "forward + backward"}.items():
        for ours in ("SLSTM", "LSTM"):
            over = partial(ratios, "drop_in", f"_{ending}", f"exlstm.{ours}", "nn.LSTM")
            key, work = f"drop-in-{ours.lower()}-{ending}", f"exlstm.{ours} vs nn.LSTM, {told}"
            yield Target(key=f"{key}-mean", bound=2.0, find=over(mean_ratio), work=f"{work}, geometric mean")
            yield Target(key=f"{key}-min", bound=1.0, find=over(min), work=f"{work}, worst size")
    loop = "exlstm.SLSTM in a StepLoop"
    yield Target(key="drop-in-step", bound=2.0, find=ratio("drop_in", "t1_w128_b16_forward", loop, "nn.LSTM"),
                 work=f"{loop} vs nn.LSTM, one step of 16 rows, width 128")  # fmt: skip
    for form, (told, bound) in FORMS.items():
        yield Target(key=f"drop-in-{told.replace(' ', '-')}", bound=bound, at_most=True, find=partial(form_cost, form),
                     work=f"a call with {told} over the plain call, worst of our nets")  # fmt: skip
    for peer, told, bound in (("nn.LSTM, loop", "the loop of Stable-Baselines3", 5.0),
                              ("nn.LSTM, no starts", "one call of nn.LSTM without starts", 1.5)):  # fmt: skip
        yield Target(key=f"replay-{told.split()[1]}", bound=bound,
                     find=ratios("control_replay", "", "exlstm.SLSTM", peer, min),
                     work=f"replay of rollouts with exlstm.SLSTM vs {told}, worst width")  # fmt: skip


TARGETS: tuple[Target, ...] = (
    *train_targets(),
    *op_targets(),
    *drop_in_targets(),
    *mixer_targets(),
    Target(key="decode-context", work="decode, time per token at 64k over that at 16, worst", bound=1.05, at_most=True,
           find=longest_over_shortest),
    Target(key="decode-bandwidth", work="decode in bfloat16, share of the stream bandwidth, worst size", bound=0.6,
           unit="%", find=derived("decode", "bfloat16", min, "share_of_stream")),
    Target(key="decode-int8", work="decode, int8 weights vs bfloat16, worst size", bound=1.6, find=int8_over_bf16),
    Target(key="decode-transformers", work="decode vs transformers' xLSTM, worst of sizes and dtypes", bound=3.0,
           find=decode_over("transformers xLSTM")),
    Target(key="decode-llama", work="decode vs Llama of equal size, contexts from 1k on, worst", bound=1.0,
           find=decode_over("Llama", 1024)),
    Target(key="memory", work="memory of a training step, T 512 to 8192 at equal tokens, largest over that at 512",
           bound=1.1, at_most=True, find=memory_growth),
    Target(key="import", work="import exlstm over import torch", bound=1.3, at_most=True, find=import_over_torch),
    Target(key="first-use", work="first use of a kernel that is on disk, slowest", bound=1.0, unit="s", at_most=True,
           find=slowest_first_use),
)  # fmt: skip


def limits(path: Path = LIMITS) -> dict[str, str]:
    """Limits by key of a target: the paragraphs under `## key` of limits.md, on one line each."""
    sections = path.read_text().split("\n## ")[1:]
    return {key.strip(): " ".join(text.split()) for key, _, text in (section.partition("\n") for section in sections)}
