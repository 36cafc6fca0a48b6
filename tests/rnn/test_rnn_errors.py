"""What constructors and calls of recurrent nets refuse, in torch's words."""

import pytest
import torch
from rnn_cases import NETS
from torch.nn.utils.rnn import pack_sequence

from exlstm.rnn import SLSTM
from exlstm.rnn.arguments import ShapeError

kinds = pytest.mark.parametrize("kind", NETS)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((10, 0), {}, ValueError, "hidden_size must be greater than zero"),
        ((0, 5), {}, ValueError, "input_size must be greater than zero"),
        ((10, 10, 0), {}, ValueError, "num_layers must be greater than zero"),
        ((3.0, 5), {}, TypeError, "input_size should be of type int, got: float"),
        ((3, "5"), {}, TypeError, "hidden_size should be of type int, got: str"),
        ((3, 5), {"bias": 0}, TypeError, "bias should be of type bool, got: int"),
        ((3, 5), {"batch_first": "True"}, TypeError, "batch_first should be of type bool, got: str"),
        ((3, 5), {"dropout": 1.5}, ValueError, "dropout should be a number in range"),
        ((3, 5), {"dropout": True}, ValueError, "dropout should be a number in range"),
        ((3, 5), {"proj_size": 5}, ValueError, "proj_size has to be smaller than hidden_size"),
        ((3, 5), {"proj_size": -1}, ValueError, "proj_size should be a positive integer or zero"),
    ],
)
@kinds
def test_constructors_refuse_what_torch_refuses(kind, arguments, options, error, text):
    with pytest.raises(error, match=text):
        NETS[kind](*arguments, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_heads": 3}, "num_heads is 3; it must divide hidden_size, 4"),
        ({"forget_bias": "one"}, "forget_bias is 'one'; it must be one of"),
        ({"num_heads": 2, "proj_size": 2}, "num_heads is 2, and proj_size 2"),
    ],
)
def test_slstm_refuses_options(options, text):
    with pytest.raises(ValueError, match=text):
        SLSTM(3, 4, **options)


def calls(net):
    """Wrong calls: arguments, options, and what the error says."""
    x, h, c = torch.randn(6, 3, 5), *net.zero_state(3)
    return [
        ((torch.randn(5),), {}, "Expected input to be 2D or 3D, got 1D instead"),
        ((torch.randn(1, 6, 3, 5),), {}, "Expected input to be 2D or 3D, got 4D instead"),
        ((x.double(),), {}, r"RNN input dtype .* does not match weight dtype .* Convert input: input\.to\(.*\)"),
        ((torch.randn(6, 3, 4),), {}, "input.size.-1. must be equal to input_size. Expected 5, got 4"),
        ((x, (h[:, 0], c[:, 0])), {}, "For batched 3-D input, hx and cx should also be 3-D but got .2-D, 2-D."),
        ((x[:, 0], (h, c)), {}, "For unbatched 2-D input, hx and cx should also be 2-D but got .3-D, 3-D."),
        ((x, (h[:, :2], c)), {}, r"Expected hidden\[0\] size \(1, 3, 32\), got \[1, 2, 32\]"),
        ((x, (h, c[..., 1:])), {}, r"Expected hidden\[1\] size .*; .* take zero_state\(batch\)"),
        ((x, (h, torch.ones(1, 3, 31))), {}, r"Expected hidden\[1\] size"),
        ((x, h), {}, "hx is a Tensor; it must be the pair"),
        ((x, (h.double(), c)), {}, r"hidden\[0\] is torch.float64"),
        ((torch.randn(0, 3, 5),), {}, "Expected sequence length to be larger than 0 in RNN"),
        ((x,), {"lengths": [1, 2]}, "lengths is .*; it must hold an integer for each of the 3 rows"),
        ((x,), {"lengths": [1, 2, 7]}, "lengths holds 7; it must lie between 0 and the 6 steps"),
        ((x,), {"reset": torch.zeros(3, 6, dtype=torch.bool)}, r"it must be torch.bool of shape \(6, 3\)"),
        ((x,), {"reset": torch.zeros(6, 3)}, "reset is torch.float32"),
        ((pack_sequence([x[:, 0]]),), {"lengths": [6]}, "lengths is given beside a PackedSequence"),
        ((x.to("meta"),), {}, "Input and parameter tensors are not at the same device"),
    ]


@kinds
@pytest.mark.parametrize("number", range(18))
def test_wrong_calls_say_what_is_wrong(kind, number):
    net = NETS[kind](5, 32)
    arguments, options, text = calls(net)[number]
    with pytest.raises(ShapeError, match=text):
        net(*arguments, **options)
    assert issubclass(ShapeError, ValueError)
    assert issubclass(ShapeError, RuntimeError)


def test_hand_made_memory_of_torchs_width_must_be_zeros():
    net = SLSTM(5, 32)
    with pytest.raises(ShapeError, match=r"Expected hidden\[1\] size \(1, 3, 96\), got \[1, 3, 32\]"):
        net(torch.randn(6, 3, 5), (torch.zeros(1, 3, 32), torch.ones(1, 3, 32)))
