"""Single steps that are replayed: the numbers of calls, whatever changes in between."""

import pytest
import torch

import exlstm
from exlstm.mixers.state import leaves

NETS = {
    "slstm": lambda: exlstm.SLSTM(6, 20),
    "lstm": lambda: exlstm.LSTM(6, 20, batch_first=True),
    "mlstm": lambda: exlstm.MLSTM(6, 16, num_heads=2),
    "two layers": lambda: exlstm.SLSTM(6, 16, num_layers=2, dropout=0.5).eval(),
    "without biases": lambda: exlstm.LSTM(6, 5, bias=False),
    "xlstm": lambda: exlstm.XLSTM(6, 16, num_heads=2),
}
each_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def called(net, x_BD, state, reset=None):
    """One step by a call of the net."""
    axis = 1 if isinstance(net, exlstm.XLSTM) or net.batch_first else 0
    with torch.no_grad():
        y, state = net(x_BD.unsqueeze(axis), state, reset=None if reset is None else reset.unsqueeze(axis))
    return y.squeeze(axis), state


def assert_near(got, want):
    for a, b in zip(leaves(got), leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each_net
@pytest.mark.parametrize("B", [1, 9])
def test_steps_are_those_of_calls(make, B):
    """With resets of none, some and all rows; outputs and states stay as they were given out."""
    torch.manual_seed(1)
    net = make()
    loop, state, kept = exlstm.StepLoop(net), None, []
    for t in range(8):
        x_BD, reset = torch.randn(B, 6), None if t % 4 == 0 else torch.rand(B) < (t % 4 - 1) / 2
        want, state = called(net, x_BD, state, reset)
        y = loop(x_BD, reset)
        assert not y.requires_grad
        kept.append((y, want, loop.state, state))
    assert loop.why_not is None
    assert loop.captured is not None
    for got, want, got_state, want_state in kept:
        assert_near((got, got_state), (want, want_state))


def test_it_goes_on_from_a_state():
    net = exlstm.SLSTM(6, 20)
    _, state = net(torch.randn(5, 3, 6))
    want, _ = called(net, x_BD := torch.randn(3, 6), state)
    assert torch.equal(exlstm.StepLoop(net, state)(x_BD), want)
    assert torch.equal(exlstm.StepLoop(net, state, replay=False)(x_BD), want)


def test_weights_may_change():
    """In place, as an optimizer does, and by other tensors."""
    net, x_BD = exlstm.LSTM(6, 20), torch.randn(3, 6)
    loop, state = exlstm.StepLoop(net), None
    others = exlstm.LSTM(6, 20).state_dict()
    for change in (
        lambda: None,
        lambda: net.weight_hh_l0.mul_(0.5),
        lambda: net.load_state_dict(others),
        lambda: setattr(net, "weight_ih_l0", torch.nn.Parameter(torch.ones(80, 6))),
    ):
        with torch.no_grad():
            change()
        want, state = called(net, x_BD, state)
        assert torch.equal(loop(x_BD), want)
        assert loop.captured is not None


def test_what_is_called_instead():
    """Where a replay would not do what a call does, and the reason is there."""
    x_BD = torch.randn(3, 6)
    hooked, seen = exlstm.SLSTM(6, 20), []
    hooked.register_forward_hook(lambda *_: seen.append(1))
    loop = exlstm.StepLoop(hooked)
    loop(x_BD)
    assert len(seen) == 1
    assert "hooks" in loop.why_not
    wide = exlstm.SLSTM(6, 20).double()
    loop = exlstm.StepLoop(wide)
    assert torch.equal(loop(x_BD.double()), called(wide, x_BD.double(), None)[0])
    assert loop.captured is None
    noisy = exlstm.SLSTM(6, 20, num_layers=2, dropout=0.5)
    loop = exlstm.StepLoop(noisy)
    assert not torch.equal(loop(x_BD), exlstm.StepLoop(noisy)(x_BD))
    noisy.eval()
    loop(x_BD)
    assert loop.captured is not None


def test_states_that_grow():
    """Attention is called, for its state has another shape after each step; resets are those of the net."""
    torch.manual_seed(2)
    net = exlstm.XLSTM(6, 16, pattern="sa", num_heads=2)
    loop, state = exlstm.StepLoop(net), None
    for _ in range(4):
        x_BD, reset = torch.randn(3, 6), torch.rand(3) < 0.4
        want, state = called(net, x_BD, state, reset)
        assert_near(loop(x_BD, reset), want)
    assert loop.why_not is not None


def test_errors_leave_the_state():
    net = exlstm.SLSTM(6, 20)
    loop = exlstm.StepLoop(net)
    loop(torch.randn(3, 6))
    before = loop.state
    with pytest.raises(ValueError, match=r"x has shape \(1, 3, 6\); a step takes \[B, 6\]"):
        loop(torch.randn(1, 3, 6))
    with pytest.raises(ValueError, match=r"reset is .*; it must be torch.bool of shape \(3,\)"):
        loop(torch.randn(3, 6), torch.zeros(3))
    for wrong in (torch.randn(4, 6), torch.randn(3, 7), torch.randn(3, 6).double()):
        with pytest.raises(ValueError):
            loop(wrong)
        assert_near(loop.state, before)
    want, _ = called(net, x_BD := torch.randn(3, 6), before)
    assert torch.equal(loop(x_BD), want)


def test_other_nets_are_refused():
    both_ways = exlstm.SLSTM(6, 8, bidirectional=True), exlstm.XLSTM(6, 16, num_heads=2, bidirectional=True)
    for net in (*both_ways, torch.nn.LSTM(6, 8)):
        with pytest.raises(ValueError, match=r"net is a (bidirectional )?\w+; single steps need"):
            exlstm.StepLoop(net)
