"""Progress of a run, and the learning rate at that point: pure functions."""

import math

from exlstm.train.config import DEFAULT_STEPS, TrainConfig

_FIRST_LR = 0.01  # of the highest; a first step at exactly 0 would be wasted


def progress(config: TrainConfig, *, steps: int, seconds: float) -> float:
    """Fraction of the budget that is used up, in [0, 1], after `steps` steps and `seconds` of training.

    With several budgets, the one that is used up most counts. Without `minutes` this depends on `steps` alone.
    """
    used = []
    if config.steps is not None:
        used.append(steps / config.steps)
    if config.minutes is not None:
        used.append(seconds / (60 * config.minutes))
    if config.tokens is not None:
        used.append(steps * config.tokens_per_step / config.tokens)
    return min(1.0, max(used or [steps / DEFAULT_STEPS]))


def learning_rate(config: TrainConfig, fraction: float) -> float:
    """Learning rate at this fraction of the budget, in [0, 1]: a linear warm-up, then `config.schedule`.

    cosine falls from the end of the warm-up to the end of the run; wsd (warm-up, stable, decay) stays at the highest
    learning rate and falls linearly in the last `cooldown` of the budget. Both end at `final_lr` of the highest.
    """
    if fraction < config.warmup:
        return config.lr * (_FIRST_LR + (1 - _FIRST_LR) * fraction / config.warmup)
    if config.schedule == "constant":
        return config.lr
    fall = 1 - config.warmup if config.schedule == "cosine" else config.cooldown
    fallen = 1 - (1 - fraction) / fall if fall > 0 else float(fraction >= 1)
    if fallen <= 0:
        return config.lr
    shape = (1 + math.cos(math.pi * fallen)) / 2 if config.schedule == "cosine" else 1 - fallen
    return config.lr * (config.final_lr + (1 - config.final_lr) * shape)


def due(times: int, before: float, after: float) -> bool:
    """True if one of `times` evenly spaced events of a run falls into the progress from `before` to `after`.

    The last event is at the end of the run. A small tolerance keeps 3 * (1 / 3) from missing an event by rounding.
    """
    return math.floor(after * times + 1e-9) > math.floor(before * times + 1e-9)
