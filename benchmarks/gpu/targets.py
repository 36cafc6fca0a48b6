"""The targets on a GPU, and how each number is found in its results.

Ratios are speed, ours over the peer's. Times are asked of an H100 or H200. Ours is the fastest of our variants, unless
a target names one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu.attention import BACKENDS, LENGTHS
from benchmarks.gpu.calls import DIRECTIONS
from benchmarks.harness import OURS
from benchmarks.store import Record, Results
from benchmarks.targets import Find, Target, record

LIMITS = Path(__file__).parent / "limits.md"
CELLS = {
    "mlstm": ("b8h16k128v256", "mLSTM, B 8, H 16, T 8192, K 128, V 256", {"forward": 1.6, "forward_backward": 6.0}),
    "7b": (
        "b8h8k256v512",
        "xLSTM-7B's cell, B 8, H 8, T 8192, K 256, V 512",
        {"forward": 2.5, "forward_backward": 9.0},
    ),
}
STEPS = {"forward": 1.0, "forward_backward": 2.5}  # microseconds
HEADS = {"h12v64": "12 heads of 64", "h6v128": "6 heads of 128"}


def milliseconds(case: str, name: str) -> Find:
    """The time of our fastest variant."""

    def find(results: Results) -> float | None:
        found = record(results, case, name)
        times = {} if found is None else found["milliseconds"]
        return min((x["median"] for variant, x in times.items() if variant.startswith(OURS)), default=None)

    return find


def over(case: str, names: list[str], chosen: Callable[[str], bool], ours: str | None = None) -> Find:
    """The smallest ratio over some measurements and the peers chosen; None unless each has such a peer."""

    def find(results: Results) -> float | None:
        worst = [worst_ratio(record(results, case, name), chosen, ours) for name in names]
        known = [x for x in worst if x is not None]
        return min(known) if len(known) == len(names) else None

    return find


def worst_ratio(found: Record | None, chosen: Callable[[str], bool], ours: str | None) -> float | None:
    """The worst ratio of our best variant in one measurement."""
    by_variant = {} if found is None else found["ratios"]
    worst = [
        min(x["of_medians"] for peer, x in peers.items() if chosen(peer))
        for variant, peers in by_variant.items()
        if ours in (None, variant) and any(map(chosen, peers))
    ]
    return max(worst, default=None)


def derived(case: str, name: str, key: str, variant: str | None = None, fold: Callable[..., float] = min) -> Find:
    """A derived number: as it is, of one variant, or the `fold` of those that read a context."""

    def find(results: Results) -> float | None:
        value = (record(results, case, name) or {}).get("derived", {}).get(key)
        if not isinstance(value, dict):
            return value
        if variant is not None:
            return value.get(variant)
        read = [number for what, number in value.items() if "@" in what]
        return fold(read) if read else None

    return find


def named(beginning: str) -> Callable[[str], bool]:
    return lambda peer: peer.startswith(beginning)


def mlstm_targets() -> Iterator[Target]:
    """Times, and FLA and every variant of mlstm_kernels in the same run."""
    for key, (shape, told, times) in CELLS.items():
        for direction, bound in times.items():
            name, work = f"{shape}_{direction}", f"{told}, {direction.replace('_', ' and ')}"
            yield Target(key=f"{key}-{direction}-ms", work=work, bound=bound, unit="ms", at_most=True,
                         find=milliseconds("mlstm_op", name))  # fmt: skip
            for peer in ("fla", "mlstm_kernels"):
                against = {"fla": "FLA's simple GLA", "mlstm_kernels": "the fastest of mlstm_kernels"}[peer]
                yield Target(key=f"{key}-{direction}-{peer}", work=f"{work}, vs {against}", bound=1.0,
                             find=over("mlstm_op", [name], named(peer)))  # fmt: skip


def attention_targets() -> Iterator[Target]:
    long = [T for T in LENGTHS if T >= 2048]
    for direction in DIRECTIONS:
        told = f"mLSTM vs attention of its width, T from {long[0]} on, worst of lengths and backends"
        yield Target(key=f"attention-{direction}", work=f"{told}, {direction.replace('_', ' and ')}", bound=1.0,
                     find=over("attention", [f"t{T}_{direction}" for T in long], BACKENDS.__contains__))  # fmt: skip


def slstm_targets() -> Iterator[Target]:
    """Time per step, and both peers; nn.LSTM projects its input itself, so beside it does ours."""
    for shape, heads in HEADS.items():
        for direction, bound in STEPS.items():
            name, work = f"{shape}_{direction}", f"sLSTM, B 16, T 1024, {heads}, {direction.replace('_', ' and ')}"
            key, case = f"slstm-{shape}-{direction}", "slstm_op"
            yield Target(key=f"{key}-us", work=f"{work}, a step", bound=bound, unit="us", at_most=True,
                         find=derived(case, name, "us_per_step", "exlstm"))  # fmt: skip
            yield Target(key=f"{key}-lstm", work=f"{work}, with projection, vs cuDNN's nn.LSTM", bound=1.0,
                         find=over(case, [name], named("nn.LSTM"), "exlstm with projection"))  # fmt: skip
            yield Target(key=f"{key}-flashrnn", work=f"{work}, vs flashrnn's triton_fused", bound=1.0,
                         find=over(case, [name], named("flashrnn"), "exlstm"))  # fmt: skip


TARGETS: tuple[Target, ...] = (
    *mlstm_targets(),
    *attention_targets(),
    *slstm_targets(),
    Target(key="decode-bandwidth", work="decode, xLSTM-7B, batch 1, bfloat16, share of the copy bandwidth, worst",
           bound=0.8, unit="%", find=derived("decode", "7b", "share_of_roofline")),
    Target(key="decode-context", work="decode, xLSTM-7B, time per token after 64k of context over that after none",
           bound=1.05, at_most=True, find=derived("decode", "7b", "longest_over_shortest_context")),
)  # fmt: skip
