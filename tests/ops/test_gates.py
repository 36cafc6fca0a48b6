"""The logarithms of the input gates: values and slopes against the gates as everybody writes them."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from exlstm.ops.gates import INPUT_GATES, SMALL, log_input_gate, log_softplus

GATES = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.log1p(torch.exp(x)),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
}
KINDS = pytest.mark.parametrize("gate", INPUT_GATES)


@KINDS
def test_value_and_slope(gate):
    """d g / d x = g d log g / d x, of the gate itself, also where it is shut."""
    x = torch.tensor([-30.0, -16, -15, -14.9, -3, -0.1, 0, 1e-12, 0.1, 0.5, 3, 8], dtype=torch.float64)
    plain, log = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = GATES[gate](plain)
    g = torch.exp(log_input_gate(log, gate, -torch.inf))
    torch.testing.assert_close(g, value, rtol=1e-9, atol=0)
    value.sum().backward()
    g.sum().backward()
    torch.testing.assert_close(log.grad, plain.grad, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_softplus_where_the_exponential_has_no_digits_left(dtype):
    x = torch.tensor([-1e5, -1000, -104, -50, 100, 1e5], dtype=dtype, requires_grad=True)
    log = log_softplus(x)
    torch.testing.assert_close(log, torch.where(x < 0, x, x.abs().log()))
    log.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(x < 0, 1, 1 / x.abs()))
    assert log_softplus(torch.tensor(-torch.inf)) == -torch.inf


def test_the_two_ways_to_softplus_meet():
    x = torch.linspace(-15.01, -14.99, 101, dtype=torch.float64)
    torch.testing.assert_close(log_softplus(x), x.exp().log1p().log(), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("gate", "power"), [("relu", 1), ("relu2", 2)])
def test_a_relu_that_is_all_but_shut_keeps_a_slope_that_is_a_number(gate, power):
    x = torch.tensor([1e-45, 1e-38, 1e-33, 1e-20], requires_grad=True)
    log = log_input_gate(x, gate, -torch.inf)
    torch.testing.assert_close(log, power * x.detach().clamp(min=SMALL).log())
    log.sum().backward()
    torch.testing.assert_close(x.grad, power / x.detach().clamp(min=SMALL))


@pytest.mark.parametrize("gate", ["relu", "relu2"])
def test_nothing_reaches_a_relu_that_is_shut(gate):
    """Not even what is no number: what is behind the gate has none of it."""
    x = torch.tensor([-torch.inf, -1e30, -1.0, -1e-45, -0.0, 0.0, 2.0], requires_grad=True)
    log = log_input_gate(x, gate, -5.0)
    assert (log[:-1] == -5).all()
    log.backward(torch.full_like(x, torch.nan).index_fill(0, torch.tensor([6]), 1.0))
    assert not x.grad[:-1].any()
    assert x.grad[-1] == (0.5 if gate == "relu" else 1.0)


@KINDS
def test_what_is_no_number_shows(gate):
    assert log_input_gate(torch.tensor(torch.nan), gate, -5.0).isnan()


def test_the_sigmoid_is_what_it_was():
    x = torch.linspace(-50, 50, 21)
    assert torch.equal(log_input_gate(x, "sigmoid", 0.0), logsigmoid(x))
    assert log_input_gate(x, "exp", 0.0) is x
