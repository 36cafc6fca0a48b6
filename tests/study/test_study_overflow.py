"""How large gates may be: limits that can be worked out by hand, and errors that are small where numbers are finite."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from small_studies import Quiet

from exlstm.ops.mlstm.reference import mlstm_recurrent, zero_state
from exlstm.study.contract import find_study

GATES = find_study("gates", Path(__file__).parents[2] / "study").runs.__globals__
Overflow, steps_of = GATES["Overflow"], GATES["steps_of"]


def of(**how):
    return Overflow(
        **{"cell": "mlstm", "dtype": "float32", "stabilised": False, "normalised": True, "steps": 24, **how}
    )


def largest_draw(steps=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        torch.randn(steps, 4, 16, generator=generator, dtype=torch.float64)
    return float(torch.randn(steps, 4, generator=generator, dtype=torch.float64).max())


def entry(run):
    row = run.execute(Quiet())
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    return row["metrics"]["tests"][0]


@pytest.mark.parametrize("cell", ["mlstm", "slstm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_with_a_stabiliser_no_scale_is_too_large(cell, dtype):
    found = entry(of(cell=cell, dtype=dtype, stabilised=True))
    assert found["finite_to_the_end"]
    assert found["score"] == 4096
    assert len(found["errors"]) == 13


@pytest.mark.parametrize("cell", ["mlstm", "slstm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_without_one_the_largest_exponential_is_the_limit(cell, dtype):
    found = entry(of(cell=cell, dtype=dtype))
    limit = math.log(torch.finfo(getattr(torch, dtype)).max) / largest_draw()
    assert not found["finite_to_the_end"]
    assert found["errors"][-1][1] is None
    # sums and products with k and v come near it a little earlier
    assert (0.7 if dtype == "float16" else 0.9) * limit < found["score"] <= 1.02 * limit
    assert found["score"] >= max(scale for scale, error in found["errors"] if error is not None)
    assert found["score"] < 2 * max([scale for scale, error in found["errors"] if error is not None], default=1)


def test_limits_are_in_the_order_of_the_largest_numbers():
    scores = {dtype: entry(of(dtype=dtype))["score"] for dtype in ("float16", "bfloat16", "float32")}
    assert scores["float16"] < scores["bfloat16"]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.1)


def test_the_limit_is_the_edge():
    run = of()
    edge = entry(run)["score"]
    assert run.error(edge) is not None
    assert run.error(1.03 * edge) is None


@pytest.mark.parametrize("cell", ["mlstm", "slstm"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.2), ("float16", 0.03)])
def test_errors_are_small_where_numbers_are_finite(cell, dtype, bound):
    for stabilised in (True, False):
        error = of(cell=cell, dtype=dtype, stabilised=stabilised).error(1.0)
        assert 0 < error < bound
    assert of(cell=cell, dtype="float64", stabilised=True).error(8.0) == 0
    # the mLSTM's eps is in units of m, so exact arithmetic too tells the two apart
    assert of(cell=cell, dtype="float64", stabilised=False).error(8.0) < (1e-3 if cell == "mlstm" else 1e-12)


def test_without_a_normaliser_a_stabiliser_does_not_help():
    """h is then as large as exp(i) itself."""
    with_, without = (entry(of(stabilised=stabilised, normalised=False))["score"] for stabilised in (True, False))
    assert with_ == pytest.approx(without, rel=0.1)
    assert with_ < 88.8 / largest_draw() * 1.05


def test_the_mlstm_is_that_of_ops():
    torch.manual_seed(0)
    q, k, v = (torch.randn(9, 4, 16, dtype=torch.float64) for _ in range(3))
    i_TB, f_TB = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64) + 3
    found = torch.stack(list(steps_of(of(), [q, k, v], i_TB, f_TB, torch.float64, stabilised=True)))
    q_BTHK, k_BTHK, v_BTHV = (x.transpose(0, 1)[:, :, None] for x in (q, k, v))
    i_BTH, f_BTH = (x.T[:, :, None] for x in (i_TB, f_TB))
    h_BTHV, _ = mlstm_recurrent(q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, zero_state(k_BTHK, v_BTHV))
    assert torch.allclose(found.transpose(0, 1), h_BTHV[:, :, 0], atol=1e-5)


def test_facets_tell_runs_apart():
    values = {"cell": ("mlstm", "slstm"), "dtype": ("float32", "float16"), "stabilised": (True, False)}
    values |= {"normalised": (True, False), "steps": (8, 16)}
    runs = [Overflow(**dict(zip(values, each, strict=True))) for each in itertools.product(*values.values())]
    assert len({tuple(run.facets().items()) for run in runs}) == len(runs)
    assert of(seed=1).error(1.0) != of().error(1.0)
