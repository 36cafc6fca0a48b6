"""Checkpoints of transformers' recurrent models: the same logits, whole and step by step, both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from exlstm import convert, load, save
from exlstm.mixers import MIXERS
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern

VOCAB, T = 50, 20
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def mamba(**options):
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, **options))


def mamba2(**options):
    sizes = {"num_heads": 4, "head_dim": 16, "state_size": 12, "n_groups": 2, "chunk_size": 8}
    return Mamba2ForCausalLM(
        Mamba2Config(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, **{**sizes, **options})
    )


def rwkv(**options):
    return RwkvForCausalLM(
        RwkvConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, rescale_every=0, **options)
    )


def recurrent_gemma(**options):
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 96, "attention_window_size": 6}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": VOCAB, "pad_token_id": None}
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**{**sizes, **options}))


MODELS = {
    "mamba": mamba,
    "mamba, other sizes": lambda: mamba(
        state_size=5, expand=3, conv_kernel=3, time_step_rank=3, tie_word_embeddings=False, layer_norm_epsilon=1e-3
    ),
    "mamba2": mamba2,
    "mamba2, other sizes": lambda: mamba2(
        num_heads=6, n_groups=1, expand=3, conv_kernel=3, tie_word_embeddings=True, layer_norm_epsilon=1e-3
    ),
    "rwkv": rwkv,
    "rwkv, other sizes": lambda: rwkv(attention_hidden_size=64, intermediate_size=40),
    "recurrent_gemma": recurrent_gemma,
    "recurrent_gemma, other sizes": lambda: recurrent_gemma(
        lru_width=48,
        attention_bias=True,
        num_key_value_heads=4,
        logits_soft_cap=7.0,
        conv1d_width=3,
        num_hidden_layers=5,
    ),
    "hawk": lambda: recurrent_gemma(block_types=["recurrent"]),
}
STEPPED = {"mamba": "cache_params", "mamba2": "cache_params"}  # by transformers, with the name of the cache


def tokens(B=2):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(1))


def shaken(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def compare(theirs, ours):
    """In one go, ours also in pieces; theirs with a cache where transformers keeps it right."""
    x, state = tokens(), None
    with torch.no_grad():
        want = theirs(x, use_cache=False).logits
        torch.testing.assert_close(ours(x)[0], want, **CLOSE)
        for part, expected in zip(x.split([9, 1, 1, 9], dim=1), want.split([9, 1, 1, 9], dim=1), strict=True):
            got, state = ours(part, state)
            torch.testing.assert_close(got, expected, **CLOSE)
    if (name := STEPPED.get(theirs.config.model_type)) is None:
        return
    with torch.no_grad():
        _, state = ours(x[:, :9])
        cache = getattr(theirs(x[:, :9], use_cache=True), name)
        for step in (9, 10):
            out = theirs(x[:, step : step + 1], use_cache=True, **{name: cache})
            got, state = ours(x[:, step : step + 1], state)
            torch.testing.assert_close(got, out.logits, **CLOSE)
            cache = getattr(out, name)


def same_model(one, two):
    assert one.config == two.config
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    for name, x in a.items():
        # a gain is stored less one, which costs a rounding
        torch.testing.assert_close(x, b[name], rtol=0, atol=2e-7, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    """(transformers' model, the folder it was saved in, as several shards)"""
    torch.manual_seed(0)
    model = shaken(MODELS[request.param]())
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    return model, tmp_path


def test_theirs_to_ours(saved, capsys):
    model, folder = saved
    assert len(list((folder / "theirs").glob("*.safetensors"))) > 1
    ours = load(folder / "theirs")
    compare(model, ours)
    assert capsys.readouterr().err == ""
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in model.parameters())


def test_ours_to_theirs(saved):
    """transformers' Auto class loads what `save` writes, as a model of the same class."""
    model, folder = saved
    ours = load(folder / "theirs")
    save(ours, folder / "out", layout="huggingface")
    again = AutoModelForCausalLM.from_pretrained(folder / "out").eval()
    assert type(again) is type(model)
    compare(again, ours)
    same_model(load(folder / "out"), ours)


def test_through_ours_and_back(saved):
    _, folder = saved
    convert(folder / "theirs", folder / "ours", shard_bytes=20_000)
    convert(folder / "ours", folder / "back", layout="huggingface", shard_bytes=20_000)
    same_model(load(folder / "back"), load(folder / "theirs"))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_authors_files(tmp_path, name, capsys):
    """As state-spaces published them: a pickle, another name of the embedding, other settings."""
    model = shaken(MODELS[name]() if name == "mamba" else mamba2(n_groups=1, tie_word_embeddings=True))
    tensors = {key.replace("embeddings", "embedding"): x.clone() for key, x in model.state_dict().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    settings = {"d_model": 32, "n_layer": 2, "vocab_size": VOCAB, "ssm_cfg": {}, "rms_norm": True}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_embeddings": True}))
    ours = load(tmp_path)
    compare(model, ours)
    assert ours.head.weight is ours.embed.weight
    assert "layer_norm_epsilon 1e-05" in capsys.readouterr().err


def model_of(*blocks, **options):
    return LM(LMConfig(vocab_size=VOCAB, width=32, blocks=blocks, **options))


def block(name, mlp=None, **options):
    return BlockConfig(mixer=MIXERS[name](**options), mlp=mlp)


RMS = {"norm": "rms"}
RWKV_MODEL = {"norm_bias": True, "embed_norm": True}
PAIR = (block("rwkv4"), block("rwkv_channel"))
GEMMA_MLP = MLPConfig(hidden=48, activation="gelu_tanh", bias=True)
GEMMA = {**RMS, "logit_cap": 30.0, "embed_scale": 5.65625}
INEXPRESSIBLE = {
    "mamba with an MLP": ([block("mamba", GEMMA_MLP)], RMS, "the MLP of block 0 is MLPConfig"),
    "mamba with norms inside": ([block("mamba", norm_dtbc=True)], RMS, "norm_dtbc is True; with this layout it has to"),
    "mamba of an odd width": (
        [block("mamba", up_factor=1.5)],
        RMS,
        "the inner width is 48; .* a multiple of the width",
    ),
    "mamba2 with two eps": ([block("mamba2")], {**RMS, "norm_eps": 1e-6}, "norm_eps of the mixers is 1e-05; with this"),
    "two kinds": ([block("mamba"), block("mamba2")], RMS, "block 1 differs from block 0; this layout has blocks"),
    "half a layer": ([*PAIR, PAIR[0]], RWKV_MODEL, "there are 3 blocks; with this layout they have to be pairs"),
    "the wrong half": ([PAIR[0], PAIR[0]], RWKV_MODEL, "block 1 is RWKV4Config; .* it has to be RWKVChannelConfig"),
    "no norm of the embedding": (PAIR, {"norm_bias": True}, "embed_norm is False; with this layout it has to be True"),
    "another version": (
        [PAIR[0], block("rwkv_channel", share="past")],
        RWKV_MODEL,
        "share is 'past'; with this layout it has to be",
    ),
    "no cap": ([block("rglru", GEMMA_MLP)], {**GEMMA, "logit_cap": None}, "logit_cap is None; with this layout there"),
    "no scale": ([block("rglru", GEMMA_MLP)], {**GEMMA, "embed_scale": None}, "embed_scale is None; with this layout"),
    "no window": (
        [block("rglru", GEMMA_MLP), block("attention", GEMMA_MLP, out_bias=True)],
        GEMMA,
        "a window is False; with this",
    ),
    "another mixer": (
        [block("rglru", GEMMA_MLP), block("mamba")],
        GEMMA,
        "block 1 is MambaConfig without an MLP; this",
    ),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_transformers_cannot_express(tmp_path, case):
    """One sentence, and nothing is written."""
    blocks, options, message = INEXPRESSIBLE[case]
    with pytest.raises(ValueError, match=message) as error:
        save(model_of(*blocks, **options), tmp_path / "out", layout="huggingface")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "mamba",
            {"model_type": "falcon_mamba"},
            r"is of a model of type 'falcon_mamba'; of transformers' models are k",
        ),
        ("mamba2", {"n_groups": 0}, r"has n_groups 0; it has to be a whole number of at least 1"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, r"has time_step_limit \[0.0, 0.1\]; this version has no limit of"),
        ("rwkv", {"layer_norm_epsilon": 1e-6}, r"has layer_norm_epsilon 1e-06; this version computes with 1e-05 only"),
        (
            "recurrent_gemma",
            {"hidden_activation": "silu"},
            r"has hidden_activation 'silu'; this version has 'gelu_pyto",
        ),
        ("recurrent_gemma", {"attention_window_size": 0}, r"has attention_window_size 0; it has to be a whole number"),
    ],
)
def test_odd_values_in_a_config(tmp_path, name, settings, message):
    shaken(MODELS[name]()).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, **settings}))
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv", "recurrent_gemma"])
def test_damaged_weights(tmp_path, name):
    shaken(MODELS[name]()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    last = sorted(tensors)[-1]
    for changed, message in (
        ({last: None}, "is missing"),
        ({"blocks.0.x": torch.ones(3)}, rf"mixes layouts: .* is of '(exlstm|huggingface \({name}\))'"),
    ):
        kept = {key: x for key, x in {**tensors, **changed}.items() if x is not None}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    assert lm_from_pattern(name if name in MIXERS else "rglru", vocab_size=VOCAB, width=32)
