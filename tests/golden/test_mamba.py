"""Mamba against transformers: the layer, Jamba's with norms, and the sizes of the published models."""

import pytest
import torch
from transformers import JambaConfig, MambaConfig
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from exlstm.mixers import mamba

WIDTH = 48
NAMES = {
    "up.weight": "in_proj.weight",
    "conv.weight_DW": "conv1d.weight",
    "conv.bias_D": "conv1d.bias",
    "low.weight": "x_proj.weight",
    "dt.weight": "dt_proj.weight",
    "dt.bias": "dt_proj.bias",
    "log_a_EZ": "A_log",
    "skip_E": "D",
    "down.weight": "out_proj.weight",
}
NORMS = {"dt_norm.weight": "dt_layernorm.weight", "b_norm.weight": "b_layernorm.weight",
         "c_norm.weight": "c_layernorm.weight"}  # fmt: skip


def theirs(norms):
    """A layer whose weights all matter."""
    torch.manual_seed(1)
    if norms:
        layer = JambaMambaMixer(JambaConfig(hidden_size=WIDTH, mamba_dt_rank=3, rms_norm_eps=1e-6), layer_idx=0)
    else:
        layer = MambaMixer(MambaConfig(hidden_size=WIDTH, use_associative_scan=False), layer_idx=0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layer.float().eval()


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("T", [1, 5, 64, 67])
def test_the_layer_and_its_gradients(norms, T):
    """Whole sequences without a state before them, for theirs begins at zero."""
    reference = theirs(norms)
    mixer = mamba.MambaConfig(norm_dtbc=norms).build(WIDTH)
    names, given = NAMES | (NORMS if norms else {}), dict(reference.named_parameters())
    shapes = {name: parameter.shape for name, parameter in mixer.named_parameters()}
    mixer.load_state_dict({name: given[names[name]].detach().reshape(shape) for name, shape in shapes.items()})
    x = torch.randn(2, T, WIDTH)
    found = []
    for layer, leaf in ((mixer, x.clone().requires_grad_()), (reference, x.clone().requires_grad_())):
        y = layer(leaf)
        y = y[0] if isinstance(y, tuple) else y
        y.square().sum().backward()
        found.append((y, leaf.grad))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())
    for name, parameter in mixer.named_parameters():
        want = given[names[name]].grad.reshape(parameter.shape)
        torch.testing.assert_close(parameter.grad, want, rtol=1e-3, atol=1e-4 * want.abs().max().item(), msg=name)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_count_of_a_layer():
    with torch.device("meta"):
        assert count(mamba.MambaConfig().build(1024)) == 6_666_240


def test_initial_values():
    """Step sizes from a thousandth to a tenth, rates from 1 to Z, a way back by the depth."""
    mixer = mamba.MambaConfig().build(256, depth=4)
    steps = torch.nn.functional.softplus(mixer.dt.bias)
    assert 0.00099 < steps.min() < 0.0012
    assert 0.08 < steps.max() < 0.101
    assert steps.log().median().exp().item() == pytest.approx(0.01, rel=0.2)
    torch.testing.assert_close(mixer.log_a_EZ.exp(), torch.arange(1.0, 17.0).expand(512, 16))
    for weight, bound in ((mixer.down.weight, 512**-0.5 / 2), (mixer.dt.weight, 0.25), (mixer.low.weight, 512**-0.5)):
        assert 0.99 * bound < weight.abs().max() <= bound
