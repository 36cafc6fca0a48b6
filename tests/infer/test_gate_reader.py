"""Gates that are shown are those of the definition, step by step, from any state and in any parts."""

import pytest
import torch
from test_engine import build, prompt_of

from exlstm.infer.gates import GateReader, gated_blocks
from exlstm.mixers.mlstm import MLSTM
from exlstm.mixers.mlstm_large import MLSTMLarge
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.nn.borders import Borders

TOKENS = prompt_of(40)


def log_gates_at(mixer, model, block, token, state):
    """The logarithms of an sLSTM's gates at one step; the state after it proves them."""
    x_1TD, _ = model.enter(model.embed(torch.tensor([[token]])), state)
    for number in range(block):
        x_1TD, _ = model.run_block(number, x_1TD, state, Borders(None, None))
    return [x[0, 0].detach() for x in mixer.log_gates(model.blocks[block].mixer_norm(x_1TD), state[block])]


@pytest.mark.parametrize("pattern", ["m", "Mm", "lm", "s", "ms"])
def test_they_are_the_factors_of_the_states(pattern):
    """The model's own states prove them: C - f' C_{t-1} = i' k v^T, and n - f' n_{t-1} = i' for the sLSTM."""
    model = build(pattern)
    for about in gated_blocks(model):
        block = about["block"]
        forget_TH, input_TH = GateReader(model, block).read(TOKENS)
        assert forget_TH.shape == input_TH.shape == (40, about["heads"])
        mixer, state = model.blocks[block].mixer, model.zero_state(1)
        for t, token in enumerate(TOKENS):
            _, after = model(torch.tensor([[token]]), state)
            before, now = state[block], after[block]
            if not isinstance(mixer, MLSTMLarge):
                before, now = before.cell, now.cell
            if isinstance(mixer, MLSTM | MLSTMLarge):
                # what is written is of rank one: C - f' C_{t-1} = i' k v^T
                rest_HKV = (now.c_BHKV - forget_TH[t][:, None, None] * before.c_BHKV)[0]
                assert (torch.linalg.matrix_rank(rest_HKV, atol=1e-9) <= 1).all()
                # and one of the two is the unit
                assert torch.maximum(forget_TH[t], input_TH[t]).allclose(torch.ones(about["heads"]).double())
            else:
                # where m stays in its unit f' is 1, and else i' is: n tells the other of the two
                n_HV, n0_HV, m_HV, m0_HV = (x[0] for x in (now.n_BHV, before.n_BHV, now.m_BHV, before.m_BHV))
                log_i_HV, log_f_HV = log_gates_at(mixer, model, block, token, state)
                kept_HV = torch.where(n0_HV == 0, 0.0, (log_f_HV + m0_HV - m_HV).exp())
                torch.testing.assert_close(n_HV, kept_HV * n0_HV + (log_i_HV - m_HV).exp())
                torch.testing.assert_close(forget_TH[t], kept_HV.mean(-1))
                torch.testing.assert_close(input_TH[t], (log_i_HV - m_HV).exp().mean(-1))
            state = after


@pytest.mark.parametrize("gate", ["exp", "sigmoid", "softplus"])
def test_the_unit_is_that_of_the_state(gate):
    """m of the closed form is m of the model's states, whatever the gates are."""
    config = lm_from_pattern("ms", vocab_size=23, width=16, heads=2)
    blocks = tuple(
        type(block)(mixer=type(block.mixer)(**{**vars(block.mixer), "input_gate": gate}), mlp=block.mlp)
        for block in config.blocks
    )
    torch.manual_seed(1)
    model = LM(LMConfig(**{**vars(config), "blocks": blocks})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    snapshot = model.read(TOKENS[:7])
    for block in (0, 1):
        forget_TH, input_TH = GateReader(model, block, snapshot).read(TOKENS[7:])
        whole_forget_TH, whole_input_TH = GateReader(model, block).read(TOKENS)
        torch.testing.assert_close(forget_TH, whole_forget_TH[7:])
        torch.testing.assert_close(input_TH, whole_input_TH[7:])
        assert ((whole_forget_TH >= 0) & (whole_forget_TH <= 1 + 1e-12)).all()


def test_a_text_in_parts_is_the_text():
    model = build("ms")
    for block in (0, 1):
        reader = GateReader(model, block)
        parts = [reader.read(TOKENS[:5]), reader.read(TOKENS[5:6]), reader.read(TOKENS[6:])]
        for found, expected in zip(
            map(torch.cat, zip(*parts, strict=True)), GateReader(model, block).read(TOKENS), strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_what_is_refused():
    model = build("ma")
    assert [each["block"] for each in gated_blocks(model)] == [0]
    with pytest.raises(ValueError, match="block 1 has no gates"):
        GateReader(model, 1)
    with pytest.raises(ValueError, match="another model"):
        GateReader(model, 0, build("m").read([1]))
