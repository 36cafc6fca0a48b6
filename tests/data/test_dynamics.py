"""Simulated systems: conserved quantities are conserved, chaos has its rate, noise its size, and seeds decide all."""

import math

import numpy as np
import pytest

from exlstm.data.series import SYSTEMS, largest_exponent, observed, pendulum_energy, rain_and_runoff, trajectories
from exlstm.data.series.dynamics import next_sample, runge_kutta
from exlstm.data.series.systems import PENDULUM_ENERGY, PLACES


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_trajectory_is_a_function_of_its_seed_and_number(name):
    """A generator that is shared by a batch, or a split that is not in the key, would show."""
    system = SYSTEMS[name]
    both = trajectories(system, steps=6, size=2)
    assert both.dtype == np.float64
    np.testing.assert_allclose(trajectories(system, steps=6, first=1, size=1), both[1:], rtol=1e-9, atol=1e-9)
    for other in ({"seed": 1}, {"split": "test"}, {"first": 1}):
        assert abs(trajectories(system, steps=6, **other) - both[:1]).max() > 1e-3
    np.testing.assert_array_equal(trajectories(system, steps=3, size=2), both[:, :3])


def test_the_method_of_integration_is_of_the_fourth_order():
    """Of an oscillator, whose solution is known: half the step is a sixteenth of the error."""
    errors = []
    for steps in (20, 40):
        advance = runge_kutta(lambda x: np.stack([x[..., 1], -x[..., 0]], -1), 2 / steps)
        x_BD = np.array([[1.0, 0.0]])
        for _ in range(steps):
            x_BD = advance(x_BD)
        errors.append(abs(x_BD[0] - [math.cos(2), -math.sin(2)]).max())
    assert 12 < errors[0] / errors[1] < 20
    assert errors[1] < 1e-6


def test_the_energy_of_the_double_pendulum_is_conserved():
    """To a millionth of it over 500 samples, ten seconds; a wrong sign of one term loses it within one."""
    system = SYSTEMS["double_pendulum"]
    energy = pendulum_energy(system.channels(trajectories(system, steps=500, size=3)))
    np.testing.assert_allclose(energy, PENDULUM_ENERGY, atol=1e-6 * PENDULUM_ENERGY)


def test_small_swings_of_the_double_pendulum_have_its_two_frequencies():
    """sqrt(g (2 +- sqrt 2)): the energy alone would not show a wrong gravity."""
    system = SYSTEMS["double_pendulum"]
    for sign in (1, -1):
        period = 2 * math.pi / math.sqrt(9.81 * (2 + sign * math.sqrt(2)))
        x_BD = start = np.array([[1e-4, -sign * math.sqrt(2) * 1e-4, 0.0, 0.0]])
        samples = period / system.step
        for _ in range(int(samples)):
            x_BD = next_sample(system, x_BD)
        # what is left of the period is less than a sample: a rest close to its turning point
        np.testing.assert_allclose(x_BD[:, :2], start[:, :2], atol=1e-4 * (2 * math.pi / samples) ** 2)


def test_the_mean_of_kuramoto_sivashinsky_is_conserved():
    system = SYSTEMS["kuramoto_sivashinsky"]
    x_BTD = trajectories(system, steps=200, size=2)
    assert abs(x_BTD.mean(-1)).max() < 1e-12
    assert 1 < x_BTD.std() < 1.5  # it neither dies out nor blows up


def test_waves_of_kuramoto_sivashinsky_grow_and_fade_at_their_linear_rates():
    """exp((k^2 - k^4) t) while waves are tiny."""
    system = SYSTEMS["kuramoto_sivashinsky"]
    for number in (1, 3, 8):
        wave = 2 * math.pi / 22 * number
        u_BD = 1e-9 * np.cos(2 * math.pi * number * np.arange(PLACES) / PLACES)[None]
        after = next_sample(system, u_BD)
        np.testing.assert_allclose(after, u_BD * math.exp((wave**2 - wave**4) * 0.25), atol=1e-16)


def test_a_step_of_kuramoto_sivashinsky_converges():
    """Against many explicit steps in Fourier space, which know nothing of exponentials."""
    system = SYSTEMS["kuramoto_sivashinsky"]
    x_BD = trajectories(system, steps=1)[:, 0]
    wave = 2 * math.pi / 22 * np.arange(PLACES // 2 + 1)
    kept = np.arange(PLACES // 2 + 1) < PLACES / 3
    v, steps = np.fft.rfft(x_BD), 800

    def slope(v):
        square = np.fft.rfft(np.fft.irfft(v, PLACES) ** 2) * kept
        return (wave**2 - wave**4) * v - 0.5j * wave * square

    advance = runge_kutta(slope, 0.25 / steps)
    for _ in range(steps):
        v = advance(v)
    assert abs(next_sample(system, x_BD) - np.fft.irfft(v, PLACES)).max() < 4e-5


def test_neighbors_in_the_lorenz_system_part_at_the_published_rate():
    rate, error = largest_exponent(SYSTEMS["lorenz63"], steps=1000, size=12)
    assert error < 0.05
    assert abs(rate - SYSTEMS["lorenz63"].exponent) < 3 * error


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "within"), [
    ("lorenz63", 6000, 0.02), ("double_pendulum", 4000, 0.06), ("kuramoto_sivashinsky", 10_000, 0.006),
])  # fmt: skip
def test_neighbors_part_at_the_rate_that_a_system_names(name, steps, within):
    rate, _ = largest_exponent(SYSTEMS[name], steps=steps, size=24)
    assert abs(rate - SYSTEMS[name].exponent) < within


def test_lyapunov_steps():
    """1 / (0.9056 per unit x 0.02 units)."""
    assert SYSTEMS["lorenz63"].lyapunov_steps == pytest.approx(55.21, abs=0.01)


def test_noise_has_the_size_that_was_asked_for():
    system = SYSTEMS["lorenz63"]
    x_BTD = trajectories(system, steps=400, size=10)
    clean = observed(system, x_BTD)
    np.testing.assert_array_equal(clean, x_BTD)
    noise = (observed(system, x_BTD, noise=0.05) - clean) / x_BTD.std((0, 1))
    # 4,000 draws: the deviation is known to a hundredth of it, the mean to 0.016 of it
    np.testing.assert_allclose(noise.std((0, 1)), 0.05, rtol=0.05)
    assert abs(noise.mean((0, 1))).max() < 0.004
    # neighbors in time and channels are independent
    assert abs(np.corrcoef(noise[0, 1:, 0], noise[0, :-1, 0])[0, 1]) < 0.1
    assert abs(np.corrcoef(noise[0, :, 0], noise[0, :, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(noise[0, :, 0], noise[1, :, 0])[0, 1]) < 0.1
    again = observed(system, x_BTD, noise=0.05, only=(0,))
    np.testing.assert_array_equal(again, observed(system, x_BTD, noise=0.05)[..., :1])
    assert abs(observed(system, x_BTD, noise=0.05, seed=1) - observed(system, x_BTD, noise=0.05)).max() > 0.1


@pytest.mark.parametrize(("change", "fragment"), [
    ({"noise": -1}, "noise=-1"), ({"noise": math.nan}, "noise=nan"), ({"only": (3,)}, "use 0 to 2"),
])  # fmt: skip
def test_wrong_observations_are_refused(change, fragment):
    system = SYSTEMS["lorenz63"]
    with pytest.raises(ValueError, match=fragment):
        observed(system, np.zeros((1, 4, 3)), **change)
    with pytest.raises(ValueError, match="steps=0"):
        trajectories(system, steps=0)


def test_reservoirs_lose_no_water():
    found = rain_and_runoff(days=800, size=2)
    total = found.runoff_BT.cumsum(1) + found.storage_BT
    np.testing.assert_allclose(total, found.rain_BT.cumsum(1), rtol=1e-12)
    assert found.runoff_BT.min() >= 0
    np.testing.assert_allclose((found.rain_BT > 0).mean(), 0.3, atol=0.05)
    error = (found.measured_BT - found.runoff_BT) / np.maximum(found.runoff_BT, 1e-9)
    np.testing.assert_allclose(error[:, 100:].std(), 0.1, rtol=0.1)
    assert abs(rain_and_runoff(days=50, seed=1).rain_BT - found.rain_BT[:1, :50]).max() > 1
    np.testing.assert_array_equal(rain_and_runoff(days=800, first=1, size=1).rain_BT, found.rain_BT[1:])


def test_reservoirs_empty_at_their_own_rates():
    """After rain ends the runoff is that of two exponentials: 2 and 40 days."""
    found = rain_and_runoff(days=2000, size=1)
    rain, runoff = found.rain_BT[0], found.runoff_BT[0]
    dry = [t for t in range(100, 1900) if not rain[t : t + 6].any()]
    assert len(dry) > 10
    for t in dry:
        fast, slow = np.exp(-1 / 2), np.exp(-1 / 40)
        # two exponentials fulfil a recurrence of the second order
        np.testing.assert_allclose(runoff[t + 2], (fast + slow) * runoff[t + 1] - fast * slow * runoff[t], rtol=1e-9)


@pytest.mark.parametrize(("change", "fragment"), [({"days": 0}, "days=0"), ({"noise": 1}, "noise=1")])
def test_wrong_catchments_are_refused(change, fragment):
    with pytest.raises(ValueError, match=fragment):
        rain_and_runoff(**{"days": 9, **change})
