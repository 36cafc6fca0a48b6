"""Chaotic systems: Lorenz's three equations, the double pendulum, the Kuramoto-Sivashinsky equation.

    lorenz63                 x' = 10 (y - x),  y' = x (28 - z) - y,  z' = x y - 8/3 z
    double_pendulum          two masses of 1 kg on rods of 1 m, without friction, of one energy
    kuramoto_sivashinsky     u_t = -u u_x - u_xx - u_xxxx on a circle of length 22, at 64 places

B trajectories  D variables of the state
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exlstm.data.series.dynamics import DynamicalSystem, Floats, normals, runge_kutta
from exlstm.data.tasks.contract import Numbers

GRAVITY = 9.81
PENDULUM_ENERGY = 1.5 * GRAVITY  # in joule; both rods upright have twice as much
LENGTH, PLACES = 22.0, 64  # of the Kuramoto-Sivashinsky equation
_KS_STEP = 0.125  # two to a sample: an error of 2e-5 in it
_CIRCLE = 64  # points of the contour that coefficients are means over


def _lorenz_slope(x_BD: Floats) -> Floats:
    x, y, z = x_BD[..., 0], x_BD[..., 1], x_BD[..., 2]
    return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=-1)


LORENZ63 = DynamicalSystem(
    name="lorenz63",
    about="Lorenz's equations of 1963; channels x, y, z",
    step=0.02,
    substeps=4,
    transient=250,
    start=lambda numbers: normals(numbers, "start", 3) + np.array([0.0, 0.0, 25.0]),
    advance=runge_kutta(_lorenz_slope, 0.005),
    channels=lambda x: x,
    exponent=0.9056,
    exponent_is="published",
    source="Sprott 2003, Chaos and Time-Series Analysis",
)


def _pendulum_slope(x_BD: Floats) -> Floats:
    """Angles from below and their speeds, from the Lagrangian of two equal masses on equal rods."""
    a, b, p, q = (x_BD[..., i] for i in range(4))
    sine, cosine = np.sin(a - b), np.cos(a - b)
    # 2 a" + cos(a-b) b" = left,  cos(a-b) a" + b" = right
    left = -sine * q * q - 2 * GRAVITY * np.sin(a)
    right = sine * p * p - GRAVITY * np.sin(b)
    determinant = 2 - cosine * cosine
    return np.stack([p, q, (left - cosine * right) / determinant, (2 * right - cosine * left) / determinant], axis=-1)


def pendulum_energy(y: Floats) -> Floats:
    """The energy [...] of observed pendulums [..., 6], in joule; 0 is that of rods that lie level at rest."""
    (sin_a, cos_a, sin_b, cos_b), (p, q) = (y[..., i] for i in range(4)), (y[..., 4], y[..., 5])
    cosine = cos_a * cos_b + sin_a * sin_b
    found: Floats = p * p + q * q / 2 + p * q * cosine - GRAVITY * (2 * cos_a + cos_b)
    return found


def _pendulum_start(numbers: Numbers) -> Floats:
    """At rest, with the energy PENDULUM_ENERGY: below it some trajectories are regular, and have no such exponent."""
    a = np.pi * (0.68 + 0.1 * numbers.uniform("start", 1))
    b = np.arccos(-PENDULUM_ENERGY / GRAVITY - 2 * np.cos(a))
    return np.concatenate([a, b, np.zeros((len(a), 2))], axis=1)


def _pendulum_channels(x: Floats) -> Floats:
    a, b, p, q = (x[..., i] for i in range(4))
    return np.stack([np.sin(a), np.cos(a), np.sin(b), np.cos(b), p, q], axis=-1)


DOUBLE_PENDULUM = DynamicalSystem(
    name="double_pendulum",
    about="rods of 1 m and masses of 1 kg; channels sin and cos of both angles, and both speeds in 1/s",
    step=0.02,
    substeps=8,
    transient=0,
    start=_pendulum_start,
    advance=runge_kutta(_pendulum_slope, 0.0025),
    channels=_pendulum_channels,
    exponent=1.40,
    exponent_is="estimated",
    source="largest_exponent(DOUBLE_PENDULUM, steps=10_000, size=32)",
)


class _Coefficients(NamedTuple):
    """Factors of a step of ETDRK4 by wave number (Cox & Matthews 2002)."""

    half: Floats
    whole: Floats
    half_slope: Floats
    first: Floats
    middle: Floats
    last: Floats
    derivative: NDArray[np.complex128]


@cache
def _coefficients() -> _Coefficients:
    """phi_0 = exp(z), phi_{n+1} = (phi_n - 1/n!) / z, as means over a circle around z (Kassam & Trefethen 2005)."""
    wave = 2 * np.pi / LENGTH * np.arange(PLACES // 2 + 1)
    linear = _KS_STEP * (wave**2 - wave**4)
    around = np.exp(2j * np.pi * (np.arange(_CIRCLE) + 0.5) / _CIRCLE)

    def phis(z: Floats) -> list[Floats]:
        near = z[:, None] + around
        found = [np.exp(near)]
        for factorial in (1, 1, 2):
            found.append((found[-1] - 1 / factorial) / near)
        return [phi.mean(1).real for phi in found]

    _, one, two, three = phis(linear)
    _, half_slope, *_ = phis(linear / 2)
    kept = np.arange(PLACES // 2 + 1) < PLACES / 3  # products of higher waves would come back as lower ones
    return _Coefficients(
        half=np.exp(linear / 2),
        whole=np.exp(linear),
        half_slope=_KS_STEP / 2 * half_slope,
        first=_KS_STEP * (one - 3 * two + 4 * three),
        middle=_KS_STEP * (2 * two - 4 * three),
        last=_KS_STEP * (4 * three - two),
        derivative=np.where(kept, -0.5j * wave, 0),
    )


def _ks_advance(u_BD: Floats) -> Floats:
    c = _coefficients()

    def slope(v: NDArray[np.complex128]) -> NDArray[np.complex128]:
        found: NDArray[np.complex128] = c.derivative * np.fft.rfft(np.fft.irfft(v, PLACES) ** 2)
        return found

    v = np.fft.rfft(u_BD)
    slope_v = slope(v)
    a = c.half * v + c.half_slope * slope_v
    slope_a = slope(a)
    b = c.half * v + c.half_slope * slope_a
    slope_b = slope(b)
    d = c.half * a + c.half_slope * (2 * slope_b - slope_v)
    after = c.whole * v + c.first * slope_v + c.middle * (slope_a + slope_b) + c.last * slope(d)
    found: Floats = np.fft.irfft(after, PLACES)
    return found


def _ks_start(numbers: Numbers) -> Floats:
    """Four waves of random size and phase, of mean 0."""
    size, phase = numbers.uniform("size", 4), 2 * np.pi * numbers.uniform("phase", 4)
    angle = 2 * np.pi * np.arange(PLACES) / PLACES
    waves = size[..., None] * np.cos(np.arange(1, 5)[:, None] * angle + phase[..., None])
    found: Floats = waves.sum(1)
    return found


KURAMOTO_SIVASHINSKY = DynamicalSystem(
    name="kuramoto_sivashinsky",
    about="u_t = -u u_x - u_xx - u_xxxx on a circle of length 22; channels u at 64 places",
    step=2 * _KS_STEP,
    substeps=2,
    transient=400,
    start=_ks_start,
    advance=_ks_advance,
    channels=lambda x: x,
    exponent=0.048,
    exponent_is="published",
    source="Cvitanović, Davidchack & Siminos 2010, SIAM J. Appl. Dyn. Syst. 9",
)

SYSTEMS: dict[str, DynamicalSystem] = {s.name: s for s in (LORENZ63, DOUBLE_PENDULUM, KURAMOTO_SIVASHINSKY)}
