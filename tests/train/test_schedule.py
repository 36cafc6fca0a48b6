import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exlstm.train.config import TrainConfig
from exlstm.train.schedule import due, learning_rate, progress

COSINE = TrainConfig(lr=2.0, warmup=0.2, final_lr=0.1)
WSD = TrainConfig(lr=2.0, warmup=0.2, final_lr=0.1, schedule="wsd", cooldown=0.4)


@pytest.mark.parametrize(
    ("config", "fraction", "expected"),
    [
        (COSINE, 0.0, 0.02),  # one per cent of the highest, not nothing
        (COSINE, 0.1, 0.02 + 1.98 / 2),
        (COSINE, 0.2, 2.0),
        (COSINE, 0.4, 0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2),
        (COSINE, 0.6, 1.1),
        (COSINE, 1.0, 0.2),
        (WSD, 0.1, 0.02 + 1.98 / 2),
        (WSD, 0.2, 2.0),
        (WSD, 0.6, 2.0),
        (WSD, 0.8, 1.1),
        (WSD, 1.0, 0.2),
        (TrainConfig(lr=2.0, schedule="constant", warmup=0.2), 1.0, 2.0),
        (TrainConfig(lr=2.0, warmup=0.0), 0.0, 2.0),
        (TrainConfig(lr=2.0, warmup=1.0), 1.0, 0.2),
        (TrainConfig(lr=2.0, schedule="wsd", cooldown=0.0), 0.999, 2.0),
    ],
)
def test_known_points(config: TrainConfig, fraction: float, expected: float) -> None:
    assert learning_rate(config, fraction) == pytest.approx(expected, rel=1e-12)


@given(
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.floats(0, 0.5),
    cooldown=st.floats(0, 0.5),
    final_lr=st.floats(0, 1),
    fraction=st.floats(0, 1),
)
def test_never_above_the_highest_nor_below_both_ends(
    schedule: str, warmup: float, cooldown: float, final_lr: float, fraction: float
) -> None:
    config = TrainConfig(lr=1.0, schedule=schedule, warmup=warmup, cooldown=cooldown, final_lr=final_lr)  # type: ignore[arg-type]
    assert min(0.01, final_lr) - 1e-12 <= learning_rate(config, fraction) <= 1.0 + 1e-12


def test_progress_is_that_of_the_budget_that_is_used_up_most() -> None:
    config = TrainConfig(steps=100, minutes=2, tokens=10_000, batch=2, length=10, accumulate=5)  # 100 tokens per step
    assert progress(config, steps=10, seconds=0) == 0.1
    assert progress(config, steps=10, seconds=60) == 0.5
    assert progress(TrainConfig(tokens=1000, batch=2, length=10, accumulate=5), steps=3, seconds=1e9) == 0.3
    assert progress(TrainConfig(minutes=1), steps=10**9, seconds=15) == 0.25
    assert progress(TrainConfig(), steps=500, seconds=1e9) == 0.5
    assert progress(config, steps=1000, seconds=0) == 1.0


@given(steps=st.integers(1, 3000), times=st.integers(0, 40))
def test_events_come_as_often_as_asked_and_the_last_one_at_the_end(steps: int, times: int) -> None:
    config = TrainConfig(steps=steps)
    at = [progress(config, steps=step, seconds=0) for step in range(steps + 1)]
    events = [step for step in range(1, steps + 1) if due(times, at[step - 1], at[step])]
    assert len(events) == min(times, steps)
    assert not times or events[-1] == steps
