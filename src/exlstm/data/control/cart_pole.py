"""The cart and pole of Barto, Sutton and Anderson 1983 (IEEE SMC 13), of which the velocities are not seen.

B rows  D width of an observation  K numbers of a state
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exlstm.data.control.contract import Flags, Floats
from exlstm.data.packing import IGNORE
from exlstm.data.tasks.contract import Ints, Numbers

GRAVITY, CART, POLE, HALF_LENGTH = 9.8, 1.0, 0.1, 0.5  # m/s^2, kg, kg, m
TRACK_FRICTION, HINGE_FRICTION = 0.0005, 0.000002
FORCE, STEP = 10.0, 0.02  # N, s
TRACK, ANGLE = 2.4, 12 * math.pi / 180  # where the cart and the pole fail
_SPREAD = 0.05


class CartPoleState(NamedTuple):
    """Place and speed of the cart, angle and speed of the pole, and the number of actions so far."""

    x_B: NDArray[np.float64]
    speed_B: NDArray[np.float64]
    angle_B: NDArray[np.float64]
    turning_B: NDArray[np.float64]
    time_B: Ints


def accelerations(state: CartPoleState, force_B: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Those of the cart and of the pole, the paper's equations with friction."""
    sine_B, cosine_B, total = np.sin(state.angle_B), np.cos(state.angle_B), CART + POLE
    drag_B = TRACK_FRICTION * np.sign(state.speed_B)
    push_B = POLE * HALF_LENGTH * state.turning_B**2 * sine_B
    hinge_B = HINGE_FRICTION * state.turning_B / (POLE * HALF_LENGTH)
    pole_B = (GRAVITY * sine_B + cosine_B * (-force_B - push_B + drag_B) / total - hinge_B) / (
        HALF_LENGTH * (4 / 3 - POLE * cosine_B**2 / total)
    )
    cart_B = (force_B + push_B - POLE * HALF_LENGTH * pole_B * cosine_B - drag_B) / total
    return cart_B, pole_B


@dataclass(frozen=True, kw_only=True)
class HiddenCartPole:
    """Actions push the cart to the left or to the right; an episode ends when it or the pole fails, or at the limit.

    Every action is worth 1 / limit, so returns are in [0, 1]. Seen are the place and the angle over those of failure.
    It starts near rest, every number within 0.05, as in later programs; the paper's starts at rest.
    """

    limit: int = 200
    solved: float = 0.9
    without_memory: None = None

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit is {self.limit}; use at least 1.")

    @property
    def name(self) -> str:
        """Its only name."""
        return "hidden_cart_pole"

    @property
    def inputs(self) -> int:
        """Place and angle."""
        return 2

    @property
    def actions(self) -> int:
        """Left, right."""
        return 2

    @property
    def longest(self) -> int:
        """The limit."""
        return self.limit

    def begin(self, numbers: Numbers) -> CartPoleState:
        """A random state near rest."""
        start_BK = _SPREAD * (2 * numbers.uniform("start", 4) - 1)
        x_B, speed_B, angle_B, turning_B = start_BK.T
        return CartPoleState(x_B, speed_B, angle_B, turning_B, np.zeros(len(start_BK), dtype=np.int64))

    def observe(self, state: CartPoleState) -> Floats:
        """Place and angle."""
        return np.stack([state.x_B / TRACK, state.angle_B / ANGLE], axis=1).astype(np.float32)

    def answers(self, state: CartPoleState) -> Ints:
        """None is known."""
        return np.full(len(state.x_B), IGNORE)

    def advance(self, state: CartPoleState, action_B: Ints) -> tuple[CartPoleState, Floats, Flags]:
        """A step of Euler's method, as the paper's."""
        cart_B, pole_B = accelerations(state, np.where(action_B == 1, FORCE, -FORCE))
        after = CartPoleState(
            state.x_B + STEP * state.speed_B, state.speed_B + STEP * cart_B,
            state.angle_B + STEP * state.turning_B, state.turning_B + STEP * pole_B, state.time_B + 1,
        )  # fmt: skip
        fails_B = (np.abs(after.x_B) > TRACK) | (np.abs(after.angle_B) > ANGLE)
        reward_B = np.full(len(fails_B), 1 / self.limit, dtype=np.float32)
        return after, reward_B, fails_B | (after.time_B >= self.limit)
