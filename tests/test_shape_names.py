"""The checker of shape names finds what it is for: each test plants one wrong name."""

from dataclasses import make_dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch

from shape_names import fields, violations, watch


class State(NamedTuple):
    c_BHK: torch.Tensor
    m_BH: torch.Tensor


def seen(function, *args):
    with watch(inside=__file__) as found:
        function(*args)
    return found


def true_names(x_BTD):
    B, T, D = x_BTD.shape
    y_BT1 = x_BTD.sum(-1, keepdim=True)
    state = State(x_BTD, x_BTD[..., 0])
    return B, T, D, y_BT1, state


def wrong_ndim(x_BTD):
    y_BT = x_BTD * 2
    return y_BT


def wrong_letter(x_BTD):
    y_BTD = x_BTD.transpose(1, 2)
    return y_BTD


def wrong_integer(x_BTD):
    D, T = x_BTD.shape[1:]
    return D, T, x_BTD


def wrong_one(x_BTD):
    y_BT1 = x_BTD
    return y_BT1


def wrong_state(x_BTD):
    state = State(x_BTD, x_BTD)
    return state


def wrong_states(x_BTD):
    states = (State(x_BTD, x_BTD), State(x_BTD, x_BTD[..., 0]))
    return states


def wrong_numpy(x_BTD):
    y_BT = x_BTD.numpy()
    return y_BT


def raises(x_BT):
    raise ValueError(f"{tuple(x_BT.shape)} does not fit")


X_BTD = torch.zeros(2, 3, 4)


def test_true_names_pass():
    assert seen(true_names, X_BTD) == []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (wrong_ndim, "y_BT has shape (2, 3, 4)"),
        (wrong_letter, "y_BTD has shape (2, 4, 3), but T = 3 here"),
        (wrong_integer, "x_BTD has shape (2, 3, 4), but T = 4 here"),
        (wrong_one, "y_BT1 has shape (2, 3, 4), but 1 = 1 here"),
        (wrong_state, "m_BH has shape (2, 3, 4)"),
        (wrong_states, "m_BH has shape (2, 3, 4)"),
        (wrong_numpy, "y_BT has shape (2, 3, 4)"),
    ],
)
def test_wrong_names_are_found(function, message):
    found = seen(function, X_BTD)
    assert any(message in line and function.__name__ in line for line in found), found


def test_a_call_that_raises_is_not_judged():
    """Errors are tested with inputs that are wrong on purpose."""
    with watch(inside=__file__) as found, pytest.raises(ValueError, match="does not fit"):
        raises(X_BTD)
    assert found == []


def test_calls_elsewhere_are_not_judged():
    with watch() as found:
        wrong_ndim(X_BTD)
    assert found == []


def test_one_bad_call_is_reported_once_and_watching_goes_on():
    with watch(inside=__file__) as found:
        wrong_ndim(X_BTD)
        wrong_ndim(X_BTD)
        wrong_numpy(X_BTD)
    assert len(found) == 2


def test_fields_of_our_dataclasses_count():
    batch = make_dataclass("Batch", ["inputs_BT"], namespace={"__module__": "exlstm.data"})
    other = make_dataclass("Other", ["inputs_BT"])
    assert fields(batch) == ("inputs_BT",)
    assert fields(other) == ()
    assert list(violations({"b": batch(np.zeros(3))}, {})) == ["inputs_BT has shape (3,)"]


def test_memory_that_nobody_wrote_is_nan():
    if torch.cuda.is_available():
        pytest.skip("deterministic algorithms would forbid GPU kernels")
    assert torch.empty(1000).isnan().all()
