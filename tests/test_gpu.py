"""On a GPU every mixer gives the numbers that it gives on the CPU. `make test-gpu` runs these."""

import pytest
import torch

import exlstm
from exlstm.mixers import MIXERS
from exlstm.mixers.state import leaves

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", MIXERS)
def test_outputs_states_and_gradients_are_those_of_the_cpu(name):
    """In float64, so that only a wrong formula can make a difference, with resets and ragged rows."""
    mixer = MIXERS[name]().build(64).double()
    x_BTD = torch.randn(3, 90, 64, dtype=torch.float64)
    reset_BT, lengths_B = torch.rand(3, 90) < 0.05, torch.tensor([90, 41, 0])

    def run(device):
        mixer.to(device).zero_grad()
        y_BTD, state = mixer(x_BTD.to(device), reset_BT=reset_BT.to(device), lengths_B=lengths_B.to(device))
        y_BTD.square().sum().backward()
        return [x.detach().cpu() for x in (y_BTD, *leaves(state), *(p.grad for p in mixer.parameters()))]

    for cpu, gpu in zip(run("cpu"), run("cuda"), strict=True):
        torch.testing.assert_close(gpu, cpu)


def test_a_model_in_bfloat16_keeps_wide_states():
    model = exlstm.LM(exlstm.lm_from_pattern("msM", vocab_size=100, width=64)).to("cuda", torch.bfloat16)
    tokens_BT = torch.randint(100, (2, 50), device="cuda")
    logits_BTC, state = model(tokens_BT)
    assert logits_BTC.isfinite().all()
    assert {x.dtype for x in leaves(state)} == {torch.float32}
