"""Quantised models: what is replaced, what is not, and how much worse they are."""

import json
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import exlstm
from exlstm.infer.quantize import with_weights
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.nn.linear import Int4Linear, Int8Linear

LAYERS = {"int8": Int8Linear, "int4": Int4Linear}
bits = pytest.mark.parametrize("weights", LAYERS)


def build(tie=False, width=32):
    configs = [
        MLSTMLargeConfig(heads=2),
        exlstm.MLSTMConfig(heads=2),
        exlstm.SLSTMConfig(heads=2),
        AttentionConfig(heads=2),
    ]
    blocks = tuple(BlockConfig(mixer=c, mlp=MLPConfig(hidden=48)) for c in configs)
    return LM(LMConfig(vocab_size=50, width=width, blocks=blocks, tie_embeddings=tie)).eval()


@bits
def test_what_is_quantised(weights):
    model = build()
    found = exlstm.quantize(model, weights)
    kinds = {name: type(module) for name, module in found.named_modules()}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            gate = name.endswith(("mixer.i", "mixer.f"))
            assert kinds[name] is (type(layer) if gate else LAYERS[weights]), name
    before, after = model.state_dict(), found.state_dict()
    kept = before.keys() & after.keys()
    names = ("embed.weight", "norm.weight", "blocks.0.mixer.i.weight", "blocks.0.mixer.f.bias", "blocks.1.mixer.skip")
    assert kept >= {*names, "blocks.1.mixer.q.weight_HVK", "blocks.1.mixer.conv.weight_DW", "blocks.2.mixer.r_HKGV"}
    for name in kept:
        assert torch.equal(before[name], after[name])
        assert before[name].data_ptr() != after[name].data_ptr(), "it is a copy"
    assert all(x.dtype in (torch.float32, torch.int8, torch.uint8) for x in after.values())


@bits
def test_the_original_is_left_alone(weights):
    model = build()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    exlstm.quantize(model, weights)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in before.items())
    assert all(not isinstance(module, Int8Linear | Int4Linear) for module in model.modules())


@bits
@torch.no_grad()
def test_a_tied_head_leaves_the_embedding_alone(weights):
    model = build(tie=True)
    found = exlstm.quantize(model, weights)
    assert torch.equal(found.embed.weight, model.embed.weight)
    assert isinstance(found.head, LAYERS[weights])


@pytest.mark.breadth(1)
@bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_prefill_and_decoding_agree(weights, dtype):
    """Many rows take torch's product with expanded weights, one takes our kernel: the same model."""
    model = exlstm.quantize(build(), weights).to(dtype)
    tokens_BT = torch.randint(50, (1, 100))
    whole_BTC, _ = model(tokens_BT)
    state, parts = None, []
    for t in range(100):
        logits_BTC, state = model(tokens_BT[:, t : t + 1], state)
        parts.append(logits_BTC)
    error = (torch.cat(parts, 1) - whole_BTC).abs().max() / whole_BTC.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


@bits
@torch.no_grad()
def test_state_dict_round_trip(weights):
    model, other = build(), build()
    for parameter in other.parameters():
        parameter.zero_()
    found, fresh = exlstm.quantize(model, weights), exlstm.quantize(other, weights)
    fresh.load_state_dict(found.state_dict())
    tokens_BT = torch.randint(50, (2, 9))
    assert torch.equal(found(tokens_BT)[0], fresh(tokens_BT)[0])


def assert_saved(model, folder):
    """Loaded again it is the same model, to the last bit, in prefill and in decoding."""
    exlstm.save(model, folder, overwrite=True)
    again = exlstm.load(folder)
    assert {name: type(m) for name, m in again.named_modules()} == {name: type(m) for name, m in model.named_modules()}
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(x.dtype == after[name].dtype and torch.equal(x, after[name]) for name, x in before.items())
    assert [x.dtype for x in again.buffers()] == [x.dtype for x in model.buffers()]
    tokens_BT = torch.randint(50, (2, 40))
    for T in (40, 1):
        (logits_BTC, state), (again_BTC, again_state) = (m(tokens_BT[:, :T]) for m in (model, again))
        assert torch.equal(logits_BTC, again_BTC)
        assert torch.equal(model(tokens_BT[:, :1], state)[0], again(tokens_BT[:, :1], again_state)[0])
    assert model.state_bytes(10) == again.state_bytes(10)
    return again


@bits
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
@torch.no_grad()
def test_saving(tmp_path, weights, tie, dtype):
    model = exlstm.quantize(build(tie=tie).to(dtype), weights)
    again = assert_saved(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["weights"] == weights
    assert all(p.requires_grad for p in again.parameters())
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert_saved(again, tmp_path)


def test_plain_models_are_saved_as_ever(tmp_path):
    exlstm.save(build(), tmp_path)
    assert "weights" not in json.loads((tmp_path / "config.json").read_text())


@bits
@torch.no_grad()
def test_saving_what_was_converted_later(tmp_path, weights):
    """Scales were made from float32 and stay so; the rest is bfloat16."""
    assert_saved(exlstm.quantize(build(), weights).to(torch.bfloat16), tmp_path)


@bits
@pytest.mark.parametrize("tie", [True, False])
@torch.no_grad()
def test_saving_with_only_some_layers_quantised(tmp_path, weights, tie):
    model = build(tie=tie)
    for name in ("blocks.0.mixer.v", "blocks.2.mlp.down", "blocks.3.mixer.k", "blocks.1.mixer.f"):
        model.set_submodule(name, LAYERS[weights](model.get_submodule(name)))
    again = assert_saved(model, tmp_path)
    assert (again.head.weight is again.embed.weight) == tie


@bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_loading_as_another_dtype_rounds_no_scale(tmp_path, weights, dtype):
    model = exlstm.quantize(build(), weights)
    exlstm.save(model, tmp_path)
    again, tokens_BT = exlstm.load(tmp_path, dtype=dtype), torch.randint(50, (2, 9))
    model = model.to(dtype)
    assert again.embed.weight.dtype == again(tokens_BT)[0].dtype == dtype
    assert again.state_bytes(10) == model.state_bytes(10)
    assert torch.equal(again(tokens_BT)[0], model(tokens_BT)[0])


@bits
def test_loading_makes_no_full_weights(tmp_path, weights):
    """Every tensor that has memory while a model loads is smaller than the plain weights of its largest layer."""
    model = build(width=128)
    largest = model.blocks[1].mixer.up.weight.nbytes
    exlstm.save(exlstm.quantize(model, weights), tmp_path)

    class Sizes(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type != "meta":
                self.seen = max(self.seen, out.nbytes)
            return out

    with Sizes() as sizes:
        exlstm.load(tmp_path)
    assert largest / 8 <= sizes.seen < largest


@bits
def test_a_loaded_model_has_no_gradients_for_what_is_quantised(tmp_path, weights):
    exlstm.save(exlstm.quantize(build(), weights), tmp_path)
    model = exlstm.load(tmp_path)
    model(torch.randint(50, (2, 9)))[0].sum().backward()
    assert model.embed.weight.grad.abs().sum() > 0
    assert "head.weight" not in dict(model.named_parameters())


class Int3Linear(Int8Linear):
    """A layer of another class."""


def two_kinds(model):
    model.blocks[0].mlp.up = Int4Linear(nn.Linear(32, 48))


def an_unknown_kind(model):
    model.head = Int3Linear(nn.Linear(32, 50))


def two_dtypes(model):
    model.blocks[3].to(torch.bfloat16)


def another_shape(model):
    model.head = Int8Linear(nn.Linear(32, 51, bias=False))


def another_part(model):
    model.extra = nn.Linear(2, 2)


def a_part_less(model):
    model.blocks[0].mixer.norm = nn.Identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_kinds, r"^the model has layers of kind Int4Linear and Int8Linear; all must be of one of int8, int4\.$"),
        (an_unknown_kind, r"^the model has layers of kind Int3Linear and Int8Linear; all must be of one of int8, int4"),
        (two_dtypes, r"^blocks.3.mixer.q stands for torch.bfloat16 and the embedding is torch.float32; convert the wh"),
        (
            another_shape,
            r"^the model is not what its config says: head.scale_N has shape \(51,\), the config needs \(5",
        ),
        (another_part, r"extra.bias has shape \(2,\), the config needs None; save an LM of that config\.$"),
        (a_part_less, r"blocks.0.mixer.norm.weight has shape None, the config needs \(32,\); save an LM of that conf"),
    ],
)
def test_what_cannot_be_saved(tmp_path, change, message):
    model = exlstm.quantize(build(), "int8")
    change(model)
    with pytest.raises(ValueError, match=message) as error:
        exlstm.save(model, tmp_path / "new")
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "new").exists(), "nothing is written"


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("int3", r"^the config has weights 'int3'; known are int8, int4\.$"),
        (["int8"], r"^the config has weights \['int8'\]; known are int8, int4\.$"),
        (
            "int4",
            r"does not fit its config: blocks.0.mixer.k.scale_N of shape \(\d+,\) is not known to the layout 'exl",
        ),
        (None, r"does not fit its config: blocks.0.mixer.k.scale_N of shape \(\d+,\) is not known to the layout 'exls"),
    ],
)
def test_a_config_that_does_not_fit_its_weights(tmp_path, says, message):
    exlstm.save(exlstm.quantize(build(), "int8"), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "weights": says}))
    with pytest.raises(ValueError, match=message):
        exlstm.load(tmp_path)


def test_explain_and_summary_know_quantised_models():
    model = build()
    found = exlstm.quantize(model, "int8")
    assert re.search(r"linear +\d+ +numba", exlstm.explain(found, 1, 1))
    assert found.summary()
    assert found.config == model.config


def test_mistakes():
    model = build()
    with pytest.raises(ValueError, match=r"^weights are 'int3'; they can be one of int8, int4\.$"):
        exlstm.quantize(model, "int3")
    with pytest.raises(ValueError, match="quantised already"):
        exlstm.quantize(exlstm.quantize(model, "int8"), "int4")


def test_with_weights():
    model = build()
    assert with_weights(model, "as-saved") is model
    assert isinstance(with_weights(model, "int4").head, Int4Linear)
    assert with_weights(model, "bfloat16").head.weight.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def trained():
    """A model that has learnt a simple language: each token follows from the last by a fixed rule, most of the time."""
    torch.manual_seed(0)
    model = build(width=64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = nll(model, language(16, 33))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def language(rows, length):
    tokens = [torch.randint(50, (rows,))]
    for _ in range(length - 1):
        tokens.append(torch.where(torch.rand(rows) < 0.9, (7 * tokens[-1] + 3) % 50, torch.randint(50, (rows,))))
    return torch.stack(tokens, 1)


def nll(model, tokens_BT):
    logits_BTC, _ = model(tokens_BT[:, :-1])
    return functional.cross_entropy(logits_BTC.flatten(0, 1), tokens_BT[:, 1:].flatten())


@torch.no_grad()
@pytest.mark.parametrize(("weights", "allowed"), [("int8", 0.002), ("int4", 0.1)])
def test_perplexity(trained, weights, allowed):
    """Of a model that has learnt something; perplexity may grow by this share."""
    text = language(32, 65)
    before = nll(trained, text).item()
    assert before < 0.6 * math.log(50), "it has learnt nothing"
    after = nll(exlstm.quantize(trained, weights), text).item()
    assert abs(math.exp(after - before) - 1) < allowed
