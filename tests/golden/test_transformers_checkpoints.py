"""Checkpoints of transformers' own models of other families: the same logits, whole and step by step, both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import exlstm
from exlstm import convert, save
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.state import leaves
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.saving import layout_for
from exlstm.models.lm import LM, LMConfig

VOCAB, T = 50, 20
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def llama(**options):
    return LlamaForCausalLM(
        LlamaConfig(
            **{
                "vocab_size": VOCAB,
                "hidden_size": 32,
                "intermediate_size": 56,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                **options,
            }
        )
    )


def mistral(**options):
    return MistralForCausalLM(
        MistralConfig(
            **{
                "vocab_size": VOCAB,
                "hidden_size": 32,
                "intermediate_size": 56,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "sliding_window": 5,
                **options,
            }
        )
    )


def gpt2(**options):
    return GPT2LMHeadModel(
        GPT2Config(
            **{
                "vocab_size": VOCAB,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 40,
                **options,
            }
        )
    )


ROPE = {"rope_type": "default", "rope_theta": 500_000.0}
MODELS = {
    "llama": llama,
    "llama, eleven blocks": lambda: llama(num_hidden_layers=11),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, shared keys": lambda: llama(num_key_value_heads=2, rope_parameters=ROPE, rms_norm_eps=1e-3),
    "llama, wide heads and biases": lambda: llama(head_dim=12, attention_bias=True, mlp_bias=True),
    "llama, gelu": lambda: llama(hidden_act="gelu_pytorch_tanh"),
    "mistral": mistral,
    "mistral without a window": lambda: mistral(sliding_window=None, head_dim=16),
    "gpt2": gpt2,
    "gpt2, other sizes": lambda: gpt2(n_inner=40, n_head=2, activation_function="gelu", layer_norm_epsilon=1e-3),
    "gpt2, not tied": lambda: gpt2(tie_word_embeddings=False, n_layer=11),
}


def load(path, **options):
    """In evaluation mode: the dropout of a GPT-2 is read too."""
    return exlstm.load(path, **options).eval()


def tokens(B=2):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(1))


def shaken(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def compare(theirs, ours):
    """In one go, and in pieces with their cache and our state."""
    x, cache, state = tokens(), None, None
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x, use_cache=False).logits, **CLOSE)
        for part in (x[:, :9], x[:, 9:10], x[:, 10:11], x[:, 11:13]):
            out = theirs(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            got, state = ours(part, state)
            torch.testing.assert_close(got, out.logits, **CLOSE)
    return cache, state


def same_model(one, two):
    assert one.config == two.config
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    """(transformers' model, the folder it was saved in, as several shards)"""
    torch.manual_seed(0)
    model = shaken(MODELS[request.param]())
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    return model, tmp_path


def test_theirs_to_ours(saved, capsys):
    """Nothing of the config is assumed; states hold the keys and values that their cache holds."""
    model, folder = saved
    assert len(list((folder / "theirs").glob("*.safetensors"))) > 1
    ours = load(folder / "theirs")
    cache, state = compare(model, ours)
    assert capsys.readouterr().err == ""
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in model.parameters())
    for layer, part in zip(cache.layers, state, strict=False):
        S = min(layer.keys.shape[2], part.k_BSGK.shape[1])
        torch.testing.assert_close(part.k_BSGK[:, -S:].transpose(1, 2), layer.keys[:, :, -S:], **CLOSE)
        torch.testing.assert_close(part.v_BSGK[:, -S:].transpose(1, 2), layer.values[:, :, -S:], **CLOSE)


def test_ours_to_theirs(saved):
    """transformers' Auto class loads what `save` writes, as a model of the same class and size."""
    model, folder = saved
    ours = load(folder / "theirs")
    save(ours, folder / "out", layout="huggingface")
    again = AutoModelForCausalLM.from_pretrained(folder / "out").eval()
    compare(again, ours)
    same_model(load(folder / "out"), ours)
    # a mistral without a window is a llama
    assert type(again) is (LlamaForCausalLM if getattr(model.config, "sliding_window", 1) is None else type(model))


def test_through_ours_and_back(saved):
    """Bit for bit, in shards."""
    _, folder = saved
    convert(folder / "theirs", folder / "ours", shard_bytes=20_000)
    convert(folder / "ours", folder / "back", layout="huggingface", shard_bytes=20_000)
    assert len(list((folder / "back").glob("*.safetensors"))) > 1
    same_model(load(folder / "back"), load(folder / "theirs"))
    same_model(load(folder / "ours"), load(folder / "theirs"))


def test_gpt2_as_older_versions_saved_it(tmp_path, capsys):
    """Without a prefix, with buffers of masks, and with a config of few settings."""
    model = shaken(gpt2())
    tensors = {name.removeprefix("transformer."): x for name, x in model.transformer.state_dict().items()}
    for index in range(2):
        tensors[f"h.{index}.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
        tensors[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 4, "vocab_size": VOCAB}))
    ours = load(tmp_path)
    compare(model, ours)
    assert ours.head.weight is ours.embed.weight
    assert "activation_function gelu_new, layer_norm_epsilon 1e-05" in capsys.readouterr().err
    assert {x.device.type for x in load(tmp_path, device="meta").state_dict().values()} == {"meta"}


def test_llama_as_older_versions_saved_it(tmp_path):
    """rope_theta beside the other settings, inverse frequencies among the weights, a tied head stored or not."""
    model = shaken(llama(rope_parameters=ROPE, tie_word_embeddings=True))
    tensors = {name: x.clone() for name, x in model.state_dict().items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    data = {
        name: value for name, value in model.config.to_dict().items() if name not in ("rope_parameters", "dtype")
    } | {"rope_theta": 500_000.0, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(data))
    save_file(tensors, tmp_path / "model.safetensors")
    compare(model, load(tmp_path))
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    compare(model, load(tmp_path))
    save_file({**tensors, "lm_head.weight": torch.ones(VOCAB, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"embed_tokens.weight and lm_head.weight differ, though the config says that"):
        load(tmp_path)


def test_in_fewer_bits_and_another_dtype(tmp_path):
    """Matrices that are columns of one are quantized each."""
    model = shaken(gpt2())
    model.save_pretrained(tmp_path / "theirs")
    ours, half = load(tmp_path / "theirs"), load(tmp_path / "theirs", dtype=torch.bfloat16)
    assert {x.dtype for x in half.state_dict().values()} == {torch.bfloat16}
    few = load(tmp_path / "theirs", weights="int8")
    torch.testing.assert_close(few(tokens())[0], ours(tokens())[0], rtol=0.1, atol=0.5)
    convert(tmp_path / "theirs", tmp_path / "few", weights="int8")
    assert torch.equal(load(tmp_path / "few")(tokens())[0], few(tokens())[0])


def test_bfloat16_within_the_rule(tmp_path):
    """At most twice as wrong, against its own weights in float64, as transformers is."""
    for name in ("llama", "gpt2"):
        shaken(MODELS[name]()).bfloat16().save_pretrained(tmp_path / name)
        truth, ours = load(tmp_path / name, dtype=torch.float64), load(tmp_path / name)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        assert ours.embed.weight.dtype == theirs.dtype == torch.bfloat16
        with torch.no_grad():
            want = truth(tokens())[0]
            found = ours(tokens())[0], theirs(tokens()).logits
            errors = [(got.double() - want).square().mean().sqrt() for got in found]
        assert 0 < errors[0] <= 2 * errors[1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("llama", {"model_type": "gemma"}, r"is of a model of type 'gemma'; of transformers' models are known xlstm"),
        ("llama", {"model_type": ["llama"]}, r"is of a model of type \['llama'\]; of transformers' models are known"),
        ("llama", {"num_attention_heads": 0}, r"has num_attention_heads 0; it has to be a whole number of at least 1"),
        ("llama", {"num_attention_heads": 3}, r"k_proj.weight has shape \(32, 32\), and the rest of"),
        ("llama", {"num_attention_heads": 2.5}, r"has num_attention_heads 2.5; it has to be a whole number"),
        ("llama", {"num_attention_heads": float("nan")}, r"has num_attention_heads nan; it has to be a whole number"),
        ("llama", {"hidden_act": "mish"}, r"has hidden_act 'mish'; known are gelu, gelu_new"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, r"has rotary positions of type 'llama3'; this version"),
        ("llama", {"rope_parameters": {"rope_theta": "big"}}, r"has rope_theta 'big', which is no number"),
        ("llama", {"tie_word_embeddings": "no"}, r"tie_word_embeddings 'no', which is not true or false"),
        ("llama", {"rms_norm_eps": -1}, r"norm_eps is -1; it must be a number above 0"),
        ("gpt2", {"scale_attn_weights": False}, r"has scale_attn_weights False; this version has True only"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"has scale_attn_by_inverse_layer_idx True; this version"),
        ("gpt2", {"n_head": 5}, r"heads is 5; it must cut the width 32 into heads"),
        ("gpt2", {"model_type": "gpt_neo"}, r"is of a model of type 'gpt_neo'"),
    ],
)
def test_odd_values_in_a_config(tmp_path, name, settings, message):
    shaken(MODELS[name]()).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, **settings}))
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_damaged_weights(tmp_path, name):
    shaken(MODELS[name]()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    part = "self_attn.o_proj" if name == "llama" else "attn.c_proj"
    matrix = next(key for key in tensors if f"1.{part}.weight" in key)
    extra = matrix.replace("proj", "extra")
    for changed, message in (
        ({matrix: None}, f"{matrix} is missing"),
        ({matrix: torch.ones(3)}, rf"{matrix} has shape \(3,\), and the rest of the model needs \(32, 32\)"),
        ({extra: torch.ones(3)}, rf"{extra} of shape \(3,\) is not known to the layout 'huggingface'"),
        (
            {"token_embedding.weight": torch.ones(3)},
            rf"mixes layouts: .* is of 'huggingface \({name}\)' and tok",
        ),
    ):
        kept = {key: x for key, x in {**tensors, **changed}.items() if x is not None}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


SWIGLU = MLPConfig(hidden=24, activation="silu")
GPT_MLP = MLPConfig(hidden=24, activation="gelu_tanh", gated=False, bias=True)
RMS = {"norm": "rms"}
GPT = {"norm_bias": True, "positions": 8}


def llama_block(mlp=SWIGLU, **options):
    return BlockConfig(mixer=AttentionConfig(**options), mlp=mlp)


def gpt_block(mlp=GPT_MLP, **options):
    return BlockConfig(mixer=AttentionConfig(rope_base=None, **{"bias": True, **options}), mlp=mlp)


def model_of(*blocks, **options):
    return LM(LMConfig(vocab_size=VOCAB, width=32, blocks=blocks, **options))


# blocks, settings of the model, and what is said of them
INEXPRESSIBLE = {
    "an mLSTM": ([BlockConfig(mixer=MLSTMConfig())], {}, "block 0 is MLSTMConfig, and transformers' models of this"),
    "layer norms": ([llama_block()], {}, "norm is 'layer'; with this layout it has to be 'rms'"),
    "a cap": ([llama_block()], {**RMS, "logit_cap": 3.0}, "logit_cap is 3.0; with this layout it has to be None"),
    "both positions": ([llama_block()], {**RMS, "positions": 8}, "positions is 8; with this layout it has to be None"),
    "embed_norm": ([llama_block()], {**RMS, "embed_norm": True}, "embed_norm is True; with this layout it has to be"),
    "embed_scale": ([llama_block()], {**RMS, "embed_scale": 2.0}, "embed_scale is 2.0; with this layout it has to be"),
    "out_norm": ([llama_block()], {**RMS, "out_norm": False}, "out_norm is False; with this layout it has to be True"),
    "two kinds": (
        [llama_block(), llama_block(heads=2)],
        RMS,
        "block 1 differs from block 0; this layout has blocks",
    ),
    "rope_share": ([llama_block(rope_share=0.5)], RMS, "rope_share is 0.5; with this layout it has to be 1.0"),
    "out_bias": ([llama_block(out_bias=True)], RMS, "out_bias is True; with this layout it has to be False"),
    "window": ([llama_block(window=4, bias=True)], RMS, "bias beside a window is True; with this layout it has to be"),
    "no MLP": ([llama_block(None)], RMS, "block 0 has no MLP; with this layout it has to have one"),
    "a plain MLP": ([llama_block(GPT_MLP)], RMS, "gated is False; with this layout it has to be True"),
    "an activation": (
        [llama_block(MLPConfig(hidden=8, activation="selu"))],
        RMS,
        "the activation is 'selu'; with this layout it has",
    ),
    "no positions": ([gpt_block()], {"norm_bias": True}, "positions is None; with this layout there has to be a table"),
    "norms without bias": ([gpt_block()], {"positions": 8}, "norm_bias is False; with this layout it has to be True"),
    "shared keys": ([gpt_block(kv_heads=2)], GPT, "kv_heads is 2; with this layout it has to be 4"),
    "narrow heads": ([gpt_block(head_width=4)], GPT, "head_width is 4; with this layout it has to be 8"),
    "a window": ([gpt_block(window=4)], GPT, "window is 4; with this layout it has to be None"),
    "no biases": ([gpt_block(bias=False)], GPT, "bias is False; with this layout it has to be True"),
    "a gated MLP": ([gpt_block(SWIGLU)], GPT, "gated is True; with this layout it has to be False"),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_transformers_cannot_express(tmp_path, case):
    """One sentence, and nothing is written; our own layout has it."""
    blocks, options, message = INEXPRESSIBLE[case]
    model = model_of(*blocks, **options)
    with pytest.raises(ValueError, match=message) as error:
        save(model, tmp_path / "out", layout="huggingface")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    save(model, tmp_path / "own")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "own", tmp_path / "out", layout="huggingface")
    assert not (tmp_path / "out").exists()


def test_a_dropout_is_kept(tmp_path):
    model = model_of(gpt_block(), dropout=0.25, **GPT)
    save(model, tmp_path, layout="huggingface")
    assert load(tmp_path).config == model.config
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (theirs.config.resid_pdrop, theirs.config.embd_pdrop, theirs.config.attn_pdrop) == (0.25, 0.25, 0.0)


def test_states_are_values_of_the_same_shape():
    """A position per row at the end."""
    model = model_of(gpt_block(), gpt_block(), **GPT).eval()
    _, state = model(tokens()[:, :5])
    assert [type(part).__name__ for part in state] == ["AttentionState", "AttentionState", "PositionState"]
    assert all(len(x) == 2 for x in leaves(state))


@pytest.mark.parametrize("name", ["gpt3-356m", "llama-407m", "mamba-423m", "rwkv4-430m"])
def test_presets_are_models_of_transformers(name):
    """With as many parameters; transformers' model of a preset's settings, without memory for its weights."""
    config = exlstm.preset(name)
    settings = layout_for("huggingface", config).write(config)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
        ours = LM(config)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
