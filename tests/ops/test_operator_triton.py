"""Kernels are operators of torch: compiling and exporting see one call, with the right shapes and no graph breaks."""

import mlstm_cases
import pytest
import slstm_cases
import torch
from triton_cases import here

from exlstm.models.lm import LM
from exlstm.models.presets import preset
from exlstm.runtime import availability

pytest.importorskip("triton", reason="Triton has no wheel for this system")


@pytest.fixture
def model(monkeypatch):
    """An mLSTM and an sLSTM block on Triton's kernels, everything else in plain torch as on a GPU."""
    monkeypatch.setattr(availability, "missing_numba", lambda: "Numba is not installed")
    made = here(LM(preset("laptop-tiny")))
    for mixer in made.mixers:
        mixer.backend = "triton"
    return made


@pytest.mark.slow
def test_a_model_compiles_whole(model):
    """In training and in decoding; fullgraph: a break in the graph is an error."""
    tokens_BT = here(torch.arange(5)[None])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        _, state = model(tokens_BT)
    found = []
    for run in (model, compiled):
        model.zero_grad()
        logits_BTC, _ = run(tokens_BT)
        logits_BTC.square().mean().backward()
        with torch.no_grad():
            decoded_B1C, _ = run(tokens_BT[:, :1], state)
        found.append([logits_BTC, decoded_B1C, *(parameter.grad for parameter in model.parameters())])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_model_is_exported_whole(model):
    tokens_BT = here(torch.arange(5)[None])
    program = torch.export.export(model, (tokens_BT,))
    assert {"exlstm.mlstm_forward.default", "exlstm.slstm_forward.default"} <= {
        str(node.target) for node in program.graph.nodes
    }
    torch.testing.assert_close(program.module()(tokens_BT)[0], model(tokens_BT)[0])


def keeps_its_word(operator, *arguments):
    """torch's own check: the schema holds, shapes without numbers are right, nothing is changed in place."""
    torch.library.opcheck(operator, arguments, test_utils=["test_schema", "test_faketensor"])
    return operator(*arguments)


def test_operators_of_the_mlstm():
    from exlstm.ops.mlstm.triton.op import run_backward, run_forward
    from exlstm.ops.mlstm.triton.step_op import run_step

    q, k, v, i, f, *state = here(mlstm_cases.make(1, 5, 1, 4, 3, dtype=torch.float32))
    packed = [torch.cat([t, t]) for t in state]
    for borders, first in ((None, state), (here(torch.tensor([0, 2, 5])), packed)):
        found = keeps_its_word(run_forward, q, k, v, i, f, *first, None, borders, True, True, 1e-6, 16)
        h, c, n, _, gates, mass = found
        keeps_its_word(run_backward, q, k, v, *first[:2], borders, gates, mass, h, h, c, n, True, 1e-6, 16)
    keeps_its_word(run_step, *(x[:, :1] for x in (q, k, v, i, f)), *state, None, True, True, 1e-6)


@pytest.mark.parametrize("resident", [True, False])
def test_operators_of_the_slstm(resident):
    from exlstm.ops.slstm.triton.op import run_backward, run_forward

    x, r, *state = here(slstm_cases.make(2, 5, 1, 6, dtype=torch.float32))
    first, lengths, more = torch.stack(state), here(torch.tensor([5, 3])), (False, resident)
    planes = keeps_its_word(run_forward, x, r, first, None, lengths, *more)
    keeps_its_word(run_backward, x, r, first, None, lengths, planes, planes[0], *state[:3], *more)
