"""Nets on arrays: causal ones see nothing ahead, padding is not read, sizes are equal, tests are of the truth."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from small_studies import Quiet

from exlstm.data.series import SYSTEMS, SeriesSet, observed, trajectories, write_ts
from exlstm.data.series.mnist1d import mnist1d_series
from exlstm.study.aggregate import Cell
from exlstm.study.arrays import (
    NETS,
    QUICK_ARRAYS,
    ArrayRun,
    NetShape,
    array_task,
    classes,
    decided,
    net_of,
    seeds_text,
    size_of,
    systems,
)
from exlstm.study.arrays.rows import ArrayRows, held_out, joined, padded, standardized
from exlstm.study.arrays.runs import Fitting

ROW_NETS = [name for name in NETS if name not in ("vision", "vit", "cnn2d")]
MEMORIES = [name for name in ROW_NETS if name not in ("cnn", "linear")]
CLASSED = NetShape(inputs=2, outputs=3, steps=24, causal=False)
CAUSAL = NetShape(inputs=2, outputs=4, steps=40, causal=True)
PIXELS = NetShape(inputs=1, outputs=10, steps=64, causal=False, patch=2)


def shape_of(name, causal=False):
    return PIXELS if name not in ROW_NETS else CAUSAL if causal else CLASSED


def net(name, causal=False, parameters=6000):
    torch.manual_seed(0)
    return net_of(name, shape_of(name, causal), parameters).eval()


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_padding_is_not_read_and_rows_are_independent(name):
    """A short row beside a longer one, in patches, says what it says alone. Pixels have no padding."""
    if name not in ROW_NETS:
        x = torch.randn(3, 64, 1)
        torch.testing.assert_close(net(name)(x)[1:2], net(name)(x[1:2]), rtol=1e-4, atol=1e-5)
        return
    for patch in (1, 3):
        torch.manual_seed(0)
        model = net_of(name, replace(CLASSED, patch=patch), 6000).eval()
        lengths, x = torch.tensor([24, 7, 1]), torch.randn(3, 24, 2)
        x = x.where((torch.arange(24) < lengths[:, None])[..., None], 0)
        y = model(x, lengths)
        assert y.shape == (3, 3)
        for row, length in enumerate(lengths.tolist()):
            alone = model(x[row : row + 1, :length], torch.tensor([length]))
            torch.testing.assert_close(y[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROW_NETS)
@torch.no_grad()
def test_a_causal_net_goes_on_and_sees_nothing_that_follows(name):
    model, x = net(name, causal=True), torch.randn(2, 40, 2)
    y = model(x)
    assert y.shape == (2, 40, 4)
    later = x.clone()
    later[:, 25:] = 9.0
    torch.testing.assert_close(model(later)[:, :25], y[:, :25], rtol=1e-4, atol=1e-5)
    first, state = model.read(x[:, :33], None)
    parts = [first]
    for t in range(33, 40):
        one, state = model.read(x[:, t : t + 1], state)
        parts.append(one)
    torch.testing.assert_close(torch.cat(parts, dim=1), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MEMORIES)
@torch.no_grad()
def test_others_read_from_both_ends(name):
    """The first step of an output knows the last of the input."""
    model, x = net(name), torch.randn(1, 6, 2)
    other = x.clone()
    other[:, -1] += 5
    y, z = (model.body(each)[0] for each in (x, other))
    assert (y - z)[0, 0].abs().max() > 1e-5


def test_parameters_are_equal():
    """Within 5 %, for images in all patches too."""
    target = 20_000
    for name in NETS:
        for shape in (CLASSED, CAUSAL) if name in ROW_NETS else (PIXELS, replace(PIXELS, patch=1)):
            if name == "linear":
                continue
            with torch.device("meta"):
                found = sum(p.numel() for p in net_of(name, shape, target).parameters())
            assert abs(found - target) <= 0.05 * target, (name, shape)
    with pytest.raises(ValueError, match="cannot have 10 parameters"):
        size_of("lstm", CLASSED, 10)


@pytest.mark.parametrize("task", ["waves", "lorenz63"])
def test_a_run_is_repeated_by_its_seed(task, monkeypatch):
    """Validation and test too; another seed is another run. Everything is JSON."""
    monkeypatch.setattr(systems, "_ROWS", {"train": 8, "validation": 4, "test": 4})
    run = ArrayRun(model="gru", task=task, refit=task == "waves", **QUICK_ARRAYS)
    a, b, c = (replace(run, seed=seed).execute(Quiet()) for seed in (3, 3, 4))
    json.dumps(a, allow_nan=False)
    assert a["metrics"] == b["metrics"]
    assert a["metrics"] != c["metrics"]
    systems._prepared.cache_clear()


def test_waves_are_learned_and_the_best_weights_are_kept():
    run = ArrayRun(model="slstm", task="waves", parameters=6000, lr=1e-2, steps=60, batch=16, validations=6)
    task = array_task("waves")
    parts = task.parts()
    fitted = Fitting(run, task, parts["train"], parts["validation"])
    fitted.run(60, Quiet())
    scores = [point["validation"] for point in fitted.curve]
    assert fitted.best == max(scores)
    assert fitted.best_step == 10 * (1 + scores.index(max(scores)))
    best = fitted.best_net().eval()
    with torch.no_grad():
        assert task.score(best, parts["validation"]) == pytest.approx(fitted.best, abs=1e-6)
        assert task.test(best)["score"] > 0.8  # 1/3 is guessing


def test_a_refitted_net_has_the_rows_of_validation_too(monkeypatch):
    """For as many steps as were best."""
    seen = []

    class Watched(Fitting):
        def run(self, steps, report):
            seen.append((len(self.train.x_NTD), steps))
            super().run(steps, report)

    monkeypatch.setattr("exlstm.study.arrays.runs.Fitting", Watched)
    done = ArrayRun(model="lstm", task="waves", refit=True, **QUICK_ARRAYS).execute(Quiet())
    assert seen == [(48, 4), (96, done["metrics"]["best_step"])]


def test_rows_keep_their_steps():
    a, b = np.ones((3, 2), np.float32), 2 * np.ones((5, 2), np.float32)
    rows = padded("them", [a, b, a], np.array([0, 1, 0]))
    assert rows.x_NTD[:, :, 0].tolist() == [[1, 1, 1, 0, 0], [2, 2, 2, 2, 2], [1, 1, 1, 0, 0]]
    short = rows.taken(torch.tensor([0, 2]))
    assert short.x_NTD.shape == (2, 3, 2)
    both = joined(short, rows)
    assert both.x_NTD[:, -1, 0].tolist() == [0, 0, 0, 2, 0]
    assert both.lengths_N.tolist() == [3, 3, 3, 5, 3]
    (unit,) = standardized([rows])
    known = unit.x_NTD[torch.arange(5) < rows.lengths_N[:, None]]
    torch.testing.assert_close(known.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    assert not unit.x_NTD[0, 3:].any()
    assert [len(batch.y) for batch in rows.batches(2)] == [2, 1]
    assert held_out(np.array([0, 0, 0, 0, 0, 1, 2, 2]), 4).tolist() == [1, 0, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("series", "labels", "fragment"),
    [
        ([[[1.0], [math.nan]]], [0], "series 0 of them has nan at step 1, channel 0; fill it in"),
        ([[[1.0]], [[math.inf]]], [0, 0], "series 1 of them has inf"),
        ([[[1.0, 2.0]], [[1.0]]], [0, 0], "series 1 of them has 1 channels and the first 2"),
        ([np.zeros((0, 1))], [0], r"shape \(0, 1\)"),
        ([[[1.0]]], [0, 1], "1 series and 2 classes"),
    ],
)
def test_wrong_series_are_refused(series, labels, fragment):
    with pytest.raises(ValueError, match=fragment):
        padded("them", [np.array(one, dtype=np.float32) for one in series], np.array(labels))


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"model": "rnn"}, "there is no net 'rnn'; use one of slstm"),
        ({"task": "mnist"}, "there is no task 'mnist'; use one of digits"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_runs_are_refused(changes, fragment):
    with pytest.raises(ValueError, match=fragment):
        ArrayRun(**{"model": "lstm", "task": "waves", **QUICK_ARRAYS, **changes})


def test_images_must_be_square():
    with pytest.raises(ValueError, match="no square image"):
        ArrayRun(model="vision", task="waves", **QUICK_ARRAYS).execute(Quiet())


def test_a_loss_that_is_not_finite_ends_the_run():
    with pytest.raises(ValueError, match="lower the learning rate"):
        ArrayRun(model="linear", task="waves", **{**QUICK_ARRAYS, "lr": 1e38, "steps": 20}).execute(Quiet())


def archive_of(folder, name, series, labels, known=("a", "b")):
    place = folder / "data" / name
    place.mkdir(parents=True)
    for part in ("TRAIN", "TEST"):
        made = SeriesSet(name=name, series=series, labels=labels, classes=known)
        (place / f"{name}_{part}.ts").write_text(write_ts(made))


def test_a_data_set_of_the_archives(tmp_path, monkeypatch):
    """From ./data; a quarter of its training rows is for validation; missing values and targets are told."""
    monkeypatch.chdir(tmp_path)
    classes._archive.cache_clear()
    ragged = tuple(np.full((4 + n, 2), n % 2, np.float32) + np.arange(4 + n)[:, None] for n in range(8))
    archive_of(tmp_path, "Ragged", ragged, np.arange(8) % 2)
    parts = array_task("archive/Ragged").parts()
    assert [len(parts[split].y) for split in ("train", "validation", "test")] == [6, 2, 8]
    assert parts["validation"].y.tolist() == [0, 1]
    assert array_task("archive/Ragged").shape(3) == NetShape(inputs=2, outputs=2, steps=11, causal=False, patch=3)
    run = ArrayRun(model="lstm", task="archive/Ragged", refit=True, **QUICK_ARRAYS)
    assert run.facets() == {"model": "lstm", "task": "Ragged"}
    assert run.execute(Quiet())["metrics"]["tests"][0]["asked"] == 8
    holes = tuple(one.copy() for one in ragged)
    holes[2][1, 0] = math.nan
    archive_of(tmp_path, "Holes", holes, np.arange(8) % 2)
    with pytest.raises(ValueError, match="series 2 of Holes, train has nan at step 1, channel 0; fill it in"):
        array_task("archive/Holes").parts()
    with pytest.raises(ValueError, match=r"no Nothing_TRAIN\.ts in data.*pip download --no-deps aeon"):
        array_task("archive/Nothing").parts()
    classes._archive.cache_clear()


def test_mnist1d_asks_for_its_package_or_makes_its_rows():
    state = np.random.get_state()[1].copy()
    if find_spec("mnist1d") is None:
        with pytest.raises(ValueError, match="pip install mnist1d"):
            mnist1d_series()
        return
    (x, y), test = mnist1d_series()
    assert (x.shape, y.shape, test[0].shape) == ((4000, 40, 1), (4000,), (1000, 40, 1))
    assert np.array_equal(np.random.get_state()[1], state)


class Oracle(torch.nn.Module):
    """Says how far a system goes, for what it reads is all that there is to know: one step of the simulation."""

    def __init__(self, task):
        super().__init__()
        self.task, self.known = task, systems._prepared(task)

    def __call__(self, x, lengths=None):
        return self.read(x, None)[0]

    def read(self, x, state):
        known, system = self.known, self.task.system
        z = x.double().numpy() * known.scale_C + known.mean_C
        angles = [np.arctan2(z[..., i], z[..., i + 1]) for i in (0, 2)]
        now = np.stack([*angles, z[..., 4], z[..., 5]], axis=-1)
        said = []
        for horizon in self.task.horizons:
            after = now
            for _ in range(horizon * system.substeps):
                after = system.advance(after)
            said.append(system.channels(after) - z)
        return torch.from_numpy(np.concatenate(said, axis=-1) / known.change_J), None


def test_the_truth_has_no_error(monkeypatch):
    """An oracle of the pendulum: errors, valid time and drift are those of rounding."""
    monkeypatch.setattr(systems, "_ROWS", {"train": 4, "validation": 2, "test": 3})
    monkeypatch.setattr(systems, "ArrayNet", Oracle)
    task = replace(array_task("double_pendulum"), horizons=(1, 5), length=40, context=20, rollout=30, name="short")
    with torch.no_grad():
        entry = task.test(Oracle(task))
    assert entry["error_1"] < 1e-5
    assert entry["error_5"] < 1e-4
    assert entry["energy_drift"] < 1e-3
    assert entry["valid_time"] == pytest.approx(30 / task.system.lyapunov_steps)
    assert entry["score"] == pytest.approx(1 - entry["error_1"] ** 2)


def test_targets_are_noisy_and_tests_are_not(monkeypatch):
    """A net that says 0 has the error of the newest noisy value, and a naive one at 25 as well."""
    monkeypatch.setattr(systems, "_ROWS", {"train": 16, "validation": 2, "test": 16})
    task = replace(array_task("lorenz63"), name="short", length=64, rollout=8, context=40)
    known = systems._prepared(task)
    system = SYSTEMS["lorenz63"]
    truth = observed(system, trajectories(system, steps=89, split="test", size=16), only=(0,))
    np.testing.assert_allclose(known.truth_BTC[:, :89], truth)
    assert 0.03 < (known.seen_BTC - known.truth_BTC).std() / truth.std() < 0.07

    class Still(torch.nn.Module):
        def __call__(self, x, lengths=None):
            return self.read(x, None)[0]

        def read(self, x, state):
            return torch.zeros(*x.shape[:2], 2), None

    monkeypatch.setattr(systems, "ArrayNet", Still)
    entry = task.test(Still())
    away = (known.seen_BTC[:, 32:64] - known.truth_BTC[:, 57:89]) / known.scale_C
    assert entry["error_25"] == pytest.approx(float(np.sqrt((away**2).mean())))
    assert entry["error_1"] > 0.05


def test_seeds_are_told_with_their_worst():
    rows = tuple({"metrics": {"tests": [{"score": score, "error": 1 - score}]}} for score in (0.9, 0.8, 1.0))
    cell = Cell(facets={}, run=None, tried=1, rows=rows, failed=(), planned=3)
    assert seeds_text(cell) == "0.900 ± 0.100 (0.800)"
    assert seeds_text(cell, "error", form=".1f", large=False) == "0.1 ± 0.1 (0.2)"
    assert decided([cell])
    assert not decided([replace(cell, planned=4)])
    assert seeds_text(replace(cell, planned=4)) == "0.900 ± 0.100 (0.800, 3 of 4 seeds)"
    assert not decided([])


def test_a_batch_has_rows_of_its_own_lengths():
    rows = ArrayRows(torch.zeros(3, 9, 1), torch.tensor([2, 4, 9]), torch.tensor([0, 1, 0]))
    assert rows.taken(torch.tensor([1, 0])).x_NTD.shape == (2, 4, 1)
