"""The gates that both cells of xLSTM can have, as logarithms.

An input gate g that is not the exponential is exp(log g): every form of a cell takes any of them, in units of a
stabiliser, as it takes the exponential one.

    exp       log i = i~                    sigmoid   log i = log sigmoid(i~)
    softplus  log i = log log(1 + e^i~)     relu, relu2   log i = log max(i~, 0), or twice that: shut where i~ <= 0

A ReLU's gradient reaches i~ as it is: nothing where the gate is shut, and d g / d i~ however little it is open.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

InputGate = Literal["exp", "sigmoid", "softplus", "relu", "relu2"]
ForgetGate = Literal["sigmoid", "exp"]
INPUT_GATES: tuple[InputGate, ...] = get_args(InputGate)  # kernels take a gate's place here
FORGET_GATES: tuple[ForgetGate, ...] = get_args(ForgetGate)
SMALL = 1e-30  # the least opening: below it the slope of the logarithm would overflow


def log_input_gate(i: Tensor, gate: InputGate, shut: float) -> Tensor:
    """log i of the pre-activation i; `shut` where a ReLU lets nothing through."""
    if gate == "exp":
        return i
    if gate == "sigmoid":
        return logsigmoid(i)
    if gate == "softplus":
        return log_softplus(i)
    closed = i <= 0  # false for NaN, so that NaN shows
    opening = i.masked_fill(closed, 1)
    # the clamp in value, the identity in gradient
    opening = opening + (opening.clamp(min=SMALL) - opening).detach()
    log_i = torch.log(opening)
    return (log_i if gate == "relu" else 2 * log_i).masked_fill(closed, shut)


def log_softplus(x: Tensor) -> Tensor:
    """log log(1 + e^x). Far below zero, where 1 + e^x loses the digits of e^x, its series."""
    far_e = torch.exp(x.clamp(max=-15))
    series = x - far_e * (0.5 - far_e * (5 / 24))
    return torch.where(x < -15, series, torch.log(-logsigmoid(-x.clamp(min=-15))))


def log_forget_gate(f: Tensor, gate: ForgetGate) -> Tensor:
    """log f of the pre-activation f: log sigmoid(f), or f itself, which may be positive."""
    return logsigmoid(f) if gate == "sigmoid" else f


def check_gates(input_gate: str, forget_gate: str) -> None:
    """ValueError for a gate that is none of these."""
    if input_gate not in INPUT_GATES or forget_gate not in FORGET_GATES:
        wrong = input_gate not in INPUT_GATES
        name, gate, known = (
            ("input_gate", input_gate, INPUT_GATES) if wrong else ("forget_gate", forget_gate, FORGET_GATES)
        )
        raise ValueError(f"{name} is {gate!r}; it must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}.")
