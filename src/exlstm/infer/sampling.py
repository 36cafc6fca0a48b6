"""Sampling of the next token from logits: pure functions, one row of the batch per sequence.

    logits_BC -> penalize_repeats -> temperature -> keep_top_k -> keep_top_p -> keep_min_p -> one uniform draw per row

Filters set dropped logits to -inf and keep at least the most likely token. A row draws exactly one number of its own
generator per token, so a sequence samples the same tokens alone, in a batch, and after a pause.

B batch (sequences)  M rows with the same settings  C classes (vocabulary)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Generator, Tensor

from exlstm.nn.fields import check_fields


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of sampling; the defaults sample from the model's own distribution.

    temperature: divides the logits; 0 always takes the most likely token (greedy).
    top_k: keep only the k most likely tokens; None keeps all.
    top_p: keep the smallest set of most likely tokens that holds this much probability (Holtzman et al. 2020,
        "The Curious Case of Neural Text Degeneration"); 1 keeps all.
    min_p: drop tokens less likely than this fraction of the most likely one (Nguyen et al. 2024, "Turning Up the Heat:
        Min-p Sampling"); 0 keeps all.
    repetition_penalty: above 1, tokens that occur in the prompt or in the text so far become less likely (Keskar et al.
        2019, "CTRL", section 4.1); 1 changes nothing.
    frequency_penalty, presence_penalty: taken from the logit of a token for each time that it was sampled in this
        completion, and once if it was at all; 0 changes nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, not {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}; leave it out to keep every token.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}; 1 keeps every token.")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be between 0 and 1, not {self.min_p}; 0 keeps every token.")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty must be a positive number, not {self.repetition_penalty}; 1 changes nothing."
            )
        for name in ("frequency_penalty", "presence_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise ValueError(f"{name} must be from -2 to 2, not {getattr(self, name)}; 0 changes nothing.")


NUCLEUS = 512  # most likely tokens that are tried before a full sort, which takes milliseconds for a large vocabulary
GREEDY = SamplingConfig(temperature=0.0)


def penalize_repeats(logits_BC: Tensor, seen_BC: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in `seen_BC` (bool) less likely: positive logits / penalty, negative logits * penalty."""
    penalized_BC = torch.where(logits_BC > 0, logits_BC / penalty, logits_BC * penalty)
    return torch.where(seen_BC, penalized_BC, logits_BC)


def keep_top_k(logits_BC: Tensor, k: int) -> Tensor:
    """Keep exactly the k largest logits of each row (all of them if the vocabulary is smaller)."""
    values_BK, index_BK = logits_BC.topk(min(k, logits_BC.shape[-1]), dim=-1)
    return torch.full_like(logits_BC, -torch.inf).scatter(-1, index_BK, values_BK)


def keep_top_p(logits_BC: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probabilities sum to at least p; of equals, the first."""
    C = logits_BC.shape[-1]
    if C > 8 * NUCLEUS:
        total_B1 = logits_BC.double().logsumexp(dim=-1, keepdim=True)
        top_BK = logits_BC.topk(NUCLEUS, dim=-1).values
        kept_BK = below_mass((top_BK.double() - total_B1).exp(), p)
        if not kept_BK[:, -1].any():
            least_B1 = top_BK.masked_fill(~kept_BK, torch.inf).amin(dim=-1, keepdim=True)
            left_B1 = (kept_BK & (top_BK == least_B1)).sum(dim=-1, keepdim=True)
            equal_BC = logits_BC == least_B1
            kept_BC = (logits_BC > least_B1) | (equal_BC & (equal_BC.cumsum(dim=-1) <= left_B1))
            return logits_BC.masked_fill(~kept_BC, -torch.inf)
    sorted_BC, index_BC = logits_BC.sort(dim=-1, descending=True, stable=True)
    kept_BC = below_mass(sorted_BC.double().softmax(dim=-1), p)
    return torch.empty_like(logits_BC).scatter(-1, index_BC, sorted_BC.masked_fill(~kept_BC, -torch.inf))


def below_mass(probability_BK: Tensor, p: float) -> Tensor:
    """True where tokens before, sorted from the most likely, have a mass below p: always for the first."""
    return probability_BK.cumsum(dim=-1) - probability_BK < p


def keep_min_p(logits_BC: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least p times as likely as the most likely one."""
    probability_BC = logits_BC.softmax(dim=-1)
    return logits_BC.masked_fill(probability_BC < p * probability_BC.amax(dim=-1, keepdim=True), -torch.inf)


def filtered_logits(logits_BC: Tensor, config: SamplingConfig, seen_BC: Tensor | None = None) -> Tensor:
    """Logits after penalty, temperature (unless greedy), top-k, top-p and min-p; -inf for dropped tokens."""
    if config.repetition_penalty != 1.0 and seen_BC is not None:
        logits_BC = penalize_repeats(logits_BC, seen_BC, config.repetition_penalty)
    if config.temperature > 0.0:
        # shifted first: a tiny temperature must not overflow
        logits_BC = (logits_BC - logits_BC.amax(dim=-1, keepdim=True)) / config.temperature
    if config.top_k is not None:
        logits_BC = keep_top_k(logits_BC, config.top_k)
    if config.top_p < 1.0:
        logits_BC = keep_top_p(logits_BC, config.top_p)
    if config.min_p > 0.0:
        logits_BC = keep_min_p(logits_BC, config.min_p)
    return logits_BC


def sample(
    logits_BC: Tensor, config: SamplingConfig, generators: Sequence[Generator], seen_BC: Tensor | None = None
) -> Tensor:
    """The next token of every sequence: tokens_B int64, on the device of the logits.

    generators: one CPU generator per row, of which one number is drawn (none if the temperature is 0).
    seen_BC: bool, tokens that occurred in each sequence; for the repetition penalty only.
    Raises ValueError if the logits of a row are NaN or infinite.
    """
    if not logits_BC.amax(dim=-1).isfinite().all():
        raise ValueError("the model's logits are NaN or infinite, so no token can be chosen; check its weights.")
    return sample_finite(logits_BC, config, draws_of([config] * len(generators), generators), seen_BC)


def draws_of(configs: Sequence[SamplingConfig], generators: Sequence[Generator]) -> list[float]:
    """The uniform number of every row: one from its generator, or 0 where the temperature is 0 and none is drawn."""
    return [
        torch.rand((), generator=generator, dtype=torch.float64).item() if config.temperature > 0.0 else 0.0
        for config, generator in zip(configs, generators, strict=True)
    ]


def sample_finite(logits_BC: Tensor, config: SamplingConfig, draws: Sequence[float], seen_BC: Tensor | None) -> Tensor:
    """`sample` of finite logits, with the numbers that were drawn."""
    logits_BC = filtered_logits(logits_BC.float(), config, seen_BC)
    if config.temperature == 0.0:
        return logits_BC.argmax(dim=-1)
    draw_B = torch.tensor(draws, dtype=torch.float64, device=logits_BC.device)
    return draw_from(logits_BC.double().softmax(dim=-1), draw_B)


def sample_rows(
    logits_BC: Tensor,
    configs: Sequence[SamplingConfig],
    draws: Sequence[float],
    seen: Sequence[Tensor | None],
) -> list[int | None]:
    """`sample` of every row by its own settings; None for a row whose logits are NaN or infinite.

    draws: one number per row, see `draws_of`: nothing else is random, so a call that failed can be repeated.
    seen: per row the tokens that occurred, [C] bool, or None without a repetition penalty.
    """
    most_B, likely_B = logits_BC.max(dim=-1)
    tokens: list[int | None] = [
        token if isfinite(most) else None for most, token in zip(most_B.tolist(), likely_B.tolist(), strict=True)
    ]
    groups: dict[SamplingConfig, list[int]] = {}
    for row, config in enumerate(configs):
        # greedy rows without a penalty are done: filters keep the most likely token
        if tokens[row] is not None and (config.temperature > 0.0 or config.repetition_penalty != 1.0):
            groups.setdefault(config, []).append(row)
    for config, rows in groups.items():
        chosen_MC = logits_BC if len(rows) == len(logits_BC) else logits_BC[rows]
        marked = [mark for row in rows if (mark := seen[row]) is not None]
        seen_MC = torch.stack(marked) if len(marked) == len(rows) else None
        drawn_M = sample_finite(chosen_MC, config, [draws[row] for row in rows], seen_MC)
        for row, token in zip(rows, drawn_M.tolist(), strict=True):
            tokens[row] = token
    return tokens


def draw_from(probability_BC: Tensor, draw_B: Tensor) -> Tensor:
    """Inverse of the cumulative distribution at `draw_B` in [0, 1); never a token of probability zero."""
    cumulative_BC = probability_BC.cumsum(dim=-1)
    # below the total even for the largest draw, 1 - 2^-53, so that a token is always found
    target_B1 = draw_B[:, None] * cumulative_BC[:, -1:]
    return torch.searchsorted(cumulative_BC, target_B1, right=True)[:, 0]
