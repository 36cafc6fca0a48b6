"""Steps that are captured and replayed: the model's numbers, whatever the model is; else the model's own calls."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import pytest
import torch

from exlstm.infer import token_loop
from exlstm.infer.quantize import quantize
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers import MIXERS
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.elman import ElmanConfig
from exlstm.mixers.gru import GRUConfig
from exlstm.mixers.hgrn import HGRNConfig
from exlstm.mixers.hyena import HyenaConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mamba import MambaConfig
from exlstm.mixers.matrix_rnn import MatrixRNNConfig
from exlstm.mixers.mega import MegaConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.mult_lstm import MultLSTMConfig
from exlstm.mixers.rwkv_channel import RWKVChannelConfig
from exlstm.mixers.s5 import S5Config
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.mixers.state import leaves, map_state
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.runtime.availability import has_bfloat16

VOCABULARY = 40
LARGE = LMConfig(
    vocab_size=VOCABULARY, width=64, norm="rms", logit_cap=30.0,
    blocks=(BlockConfig(mixer=MLSTMLargeConfig(heads=2), mlp=MLPConfig(hidden=96, activation="silu")),) * 2,
)  # fmt: skip


def large(**options):
    """A block of MLSTMLarge with other options."""
    return BlockConfig(mixer=MLSTMLargeConfig(**options))


CONFIGS = {
    "as the 7B": LARGE,
    "layer norm, no cap": replace(LARGE, norm="layer", logit_cap=None),
    "gelu": replace(LARGE, blocks=(BlockConfig(mixer=MLSTMLargeConfig(), mlp=MLPConfig(hidden=40)),)),
    "no MLP": replace(LARGE, blocks=(large(heads=4),)),
    "sigmoid gate": replace(LARGE, blocks=(large(input_gate="sigmoid", gate_cap=None),)),
    "no normaliser": replace(LARGE, blocks=(large(input_gate="sigmoid", normalize=False),)),
    "widths that are no power of two": replace(LARGE, width=36, blocks=(large(heads=3, key_factor=1.0),)),
    "tied": replace(LARGE, tie_embeddings=True),
    "large enough for threads": replace(LARGE, width=256, blocks=(large(heads=2, key_factor=1.0),)),
}


def build(config, seed=0):
    """Weights of which all matter."""
    torch.manual_seed(seed)
    model = LM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tokens(B, T, seed=1):
    return torch.randint(VOCABULARY, (B, T), generator=torch.Generator().manual_seed(seed))


def run(loop, tokens_BT):
    return torch.stack([loop(tokens_B) for tokens_B in tokens_BT.T], dim=1)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def accuracy_cases():
    """Three models by default; the others differ in one option each."""
    default = {("as the 7B", torch.bfloat16, 3), ("sigmoid gate", torch.float32, 3), ("tied", torch.float32, 3)}
    for case in product(CONFIGS, (torch.float32, torch.bfloat16), (1, 3)):
        yield pytest.param(*case, marks=() if case in default else pytest.mark.slow)


@pytest.mark.breadth(1)
@pytest.mark.parametrize(("config", "dtype", "B"), list(accuracy_cases()))
def test_replayed_steps_are_as_accurate_as_called_ones(config, dtype, B, two_threads):
    """In the root mean square over several models: in one of them, one rounding of a gate moves the whole state."""
    found = [
        replayed_called_exact(build(CONFIGS[config], seed).to(dtype), tokens(B, 12, seed + 1)) for seed in range(8)
    ]
    for label in found[0]:
        replayed, called, exact = (torch.stack(runs) for runs in zip(*(run[label] for run in found), strict=True))
        assert replayed.dtype == called.dtype
        floor = 2 * torch.finfo(called.dtype).eps * float(exact.abs().max())
        error, allowed = largest(replayed - exact), 2 * largest(called - exact) + floor
        assert error <= allowed, f"{label}: error {error:.3e}, allowed {allowed:.3e}"


def replayed_called_exact(model, tokens_BT):
    """Of each way to run them, the logits and every tensor of the last state."""
    with torch.no_grad():
        _, state = model(tokens(len(tokens_BT), 5, seed=2))
    replayed, called = TokenLoop(model, state), TokenLoop(model, state, replay=False)
    exact = TokenLoop(copy.deepcopy(model).double(), map_state(torch.Tensor.double, state))
    loops = (replayed, called, exact)
    found = {"logits": [run(loop, tokens_BT) for loop in loops]}
    assert replayed.why_not is None
    assert called.captured is None
    states = zip(*(leaves(loop.state) for loop in loops), strict=True)
    return found | {f"state {n}": tensors for n, tensors in enumerate(states)}


def largest(errors):
    """The largest error of each model, in the root mean square over models."""
    return float(errors.flatten(1).abs().amax(1).double().square().mean().sqrt())


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantised_models_are_replayed(weights, dtype):
    model, tokens_BT = quantize(build(LARGE).to(dtype), weights), tokens(2, 9)
    replayed, room = TokenLoop(model), 3e-5 if dtype is torch.float32 else 0.1
    called_BTC = run(TokenLoop(model, replay=False), tokens_BT)
    torch.testing.assert_close(run(replayed, tokens_BT), called_BTC, rtol=0, atol=room)
    assert replayed.why_not is None


def test_the_first_step_of_a_process_is_replayed():
    """torch is asked once whether the CPU has products in bfloat16: not by the capture."""
    has_bfloat16.cache_clear()
    loop = TokenLoop(build(LARGE).bfloat16())
    run(loop, tokens(2, 2))
    assert loop.why_not is None


def test_a_step_is_the_same_whenever_its_loop_began():
    """Bit by bit: a row that leaves a batch gets the tokens it would have got."""
    model, tokens_BT = build(LARGE), tokens(1, 6)
    whole, first = TokenLoop(model), TokenLoop(model)
    wanted, got = run(whole, tokens_BT), run(first, tokens_BT[:, :3])
    later = TokenLoop(model, first.state)
    assert torch.equal(torch.cat([got, run(later, tokens_BT[:, 3:])], dim=1), wanted)
    assert all(map(torch.equal, leaves(later.state), leaves(whole.state)))
    rows = torch.cat([run(TokenLoop(model), tokens_BT), run(TokenLoop(model), tokens(1, 6, seed=9))])
    assert torch.equal(run(TokenLoop(model), torch.cat([tokens_BT, tokens(1, 6, seed=9)])), rows)


def test_states_and_logits_are_values():
    model, tokens_BT = build(LARGE), tokens(2, 4)
    _, given = model(tokens_BT)
    before = map_state(torch.clone, given)
    loop = TokenLoop(model, given)
    logits_BC, state = loop(tokens_BT[:, 0]), loop.state
    kept, copied = logits_BC.clone(), map_state(torch.clone, state)
    run(loop, tokens_BT)
    assert torch.equal(logits_BC, kept)
    assert all(map(torch.equal, leaves(state), leaves(copied)))
    assert all(map(torch.equal, leaves(given), leaves(before)))


CHANGES = {
    "in place": lambda model: model.head.weight.mul_(2),
    "another parameter": lambda model: setattr(model.head, "weight", torch.nn.Parameter(2 * model.head.weight)),
    "other memory": lambda model: setattr(model.blocks[0].mlp.up.weight, "data", torch.randn(192, 64)),
    "another dtype": lambda model: model.bfloat16(),
    "a dtype that is not replayed": lambda model: model.double(),
    "loaded": lambda model: model.load_state_dict(build(LARGE, seed=3).state_dict(), assign=True),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_weights_may_change_in_between(change):
    model, tokens_BT = build(LARGE), tokens(1, 4)
    loop = TokenLoop(model)
    before = run(loop, tokens_BT)
    state = loop.state
    CHANGES[change](model)
    got, want = run(loop, tokens_BT), run(TokenLoop(model, state, replay=False), tokens_BT)
    torch.testing.assert_close(got, want, rtol=0, atol=0.05 if model.head.weight.dtype is torch.bfloat16 else 1e-5)
    assert (got - before).abs().max() > 0.01


VARIANTS = {name: config() for name, config in MIXERS.items()} | {
    "mlstm conv of 1": MLSTMConfig(conv_width=1, heads=2),
    "mlstm sigmoid gate": MLSTMConfig(input_gate="sigmoid", normalize=False),
    "mlstm relu": MLSTMConfig(input_gate="relu2", forget_gate="exp"),
    "lstm heads": LSTMConfig(heads=2),
    "gru heads": GRUConfig(heads=2),
    "elman heads": ElmanConfig(heads=2),
    "mult_lstm heads": MultLSTMConfig(heads=2),
    "matrix_rnn elman no mixing": MatrixRNNConfig(cell="elman", mix="none", key_width=5),
    "mamba norms": MambaConfig(norm_dtbc=True, states=5),
    "slstm relu": SLSTMConfig(input_gate="relu", normalize=False, recurrent_init="uniform"),
    "slstm no conv": SLSTMConfig(conv_width=0, recurrent_init="uniform"),
    "slstm no recurrence": SLSTMConfig(recurrence="none", heads=2),
    "slstm exp forget": SLSTMConfig(forget_gate="exp", recurrent_init="uniform", heads=1),
    "mlstm blocks of 8": MLSTMConfig(qkv_block=8),
    "slstm silu": SLSTMConfig(cell_activation="silu"),
    "slstm low rank": SLSTMConfig(recurrence="low_rank", recurrence_blocks=1),
    "slstm learned": SLSTMConfig(recurrence="learned"),
    "rwkv_channel of version 7": RWKVChannelConfig(share="past", receptance=False),
    "hgrn complex": HGRNConfig(form="complex"),
    "s5 half_glu1": S5Config(activation="half_glu1"),
    "attention window": AttentionConfig(window=6, kv_heads=1, rope_share=0.5),
    "attention window of 1": AttentionConfig(window=1, rope_base=None),
    "mega laplace": MegaConfig(chunk=5, function="laplace"),
    "mega without chunks": MegaConfig(chunk=None, distances=6),
}
BREADTH = {"mega without chunks"}
BFLOAT16 = {"mlstm", "slstm", "attention window"}
NOT_REPLAYED = {"hyena", "linformer", *BREADTH, "slstm low rank", "slstm learned"}


@pytest.mark.parametrize(
    ("B", "norm"),
    [
        (3, "rms"),
        pytest.param(1, "layer", marks=pytest.mark.slow),
        pytest.param(1, "rms", marks=pytest.mark.slow),
        pytest.param(3, "layer", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in BREADTH else ()) for name in VARIANTS]
)
def test_every_mixer_replayed_or_not(name, norm, B, two_threads):
    config = replace(LARGE, norm=norm, blocks=(BlockConfig(mixer=VARIANTS[name], mlp=MLPConfig(hidden=20)),) * 2)
    model, tokens_BT = build(config), tokens(B, 8)
    with torch.no_grad():
        _, state = model(tokens(B, 5, seed=2))
    replayed, called = TokenLoop(model, state), TokenLoop(model, state, replay=False)
    torch.testing.assert_close(run(replayed, tokens_BT), run(called, tokens_BT), rtol=0, atol=1e-4)
    for got, want in zip(leaves(replayed.state), leaves(called.state), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert (replayed.why_not is None) == (name not in NOT_REPLAYED), replayed.why_not


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in BFLOAT16 else pytest.mark.slow) for name in VARIANTS],
)
def test_bfloat16_replayed_or_not(name, two_threads):
    """Whatever is replayed in float32 is in bfloat16, too; numbers are those of calls."""
    config = replace(LARGE, norm="rms", blocks=(BlockConfig(mixer=VARIANTS[name], mlp=MLPConfig(hidden=20)),) * 2)
    model, tokens_BT = build(config).bfloat16(), tokens(2, 4)
    replayed, called = TokenLoop(model), TokenLoop(model, replay=False)
    torch.testing.assert_close(run(replayed, tokens_BT), run(called, tokens_BT), rtol=0.05, atol=0.1)
    assert (replayed.why_not is None) == (name not in NOT_REPLAYED), replayed.why_not


GROWING = replace(
    LARGE, blocks=(BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2)), BlockConfig(mixer=MLSTMConfig()),
                   BlockConfig(mixer=AttentionConfig(heads=2, rope_share=0.5)))
)  # fmt: skip


@pytest.mark.parametrize("read", [0, 5])
def test_a_cache_that_grows_is_replayed_and_captured_again_when_it_is_full(read, monkeypatch):
    """Rows have read unlike many tokens, and one has forgotten the first of them."""
    monkeypatch.setattr(token_loop, "LEAST_ROOM", 3)
    model, tokens_BT, state = build(GROWING), tokens(3, 11), None
    if read:
        reset_BT = torch.zeros(3, read, dtype=torch.bool)
        reset_BT[1, 3] = True
        with torch.no_grad():
            _, state = model(tokens(3, read, seed=2), reset_BT=reset_BT, lengths_B=torch.tensor([read, read, 2]))
    replayed, called = TokenLoop(model, state), TokenLoop(model, state, replay=False)
    captured = []
    for step in range(11):
        torch.testing.assert_close(replayed(tokens_BT[:, step]), called(tokens_BT[:, step]), rtol=0, atol=1e-4)
        captured.append(replayed.captured)
        for got, want in zip(replayed.state, called.state, strict=True):
            assert type(got) is type(want)
        for got, want in zip(replayed.state[0].trimmed(), called.state[0].trimmed(), strict=True):
            assert got.shape == want.shape
    assert replayed.why_not is None
    assert len({id(step) for step in captured}) == 4  # three tokens each
    with torch.no_grad():  # a call goes on from it
        got, want = (model(tokens_BT[:, :2], loop.state)[0] for loop in (replayed, called))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_a_long_cache_is_read_by_calls(monkeypatch):
    monkeypatch.setattr(token_loop, "LEAST_ROOM", 2)
    monkeypatch.setattr(token_loop, "MOST_STEPS", 3)
    model, tokens_BT = build(GROWING), tokens(2, 9)
    loop, called = TokenLoop(model), TokenLoop(model, replay=False)
    torch.testing.assert_close(run(loop, tokens_BT), run(called, tokens_BT), rtol=0, atol=1e-4)
    assert "more than 3 steps" in loop.why_not


def test_rows_with_caches_that_grow_are_replaced():
    model = build(GROWING)
    loop, called = TokenLoop(model), TokenLoop(model, replay=False)
    with torch.no_grad():
        _, other = model(tokens(1, 9, seed=4))
    for each in (loop, called):
        run(each, tokens(2, 4))
        each.write([1], other)
    torch.testing.assert_close(run(loop, tokens(2, 5)), run(called, tokens(2, 5)), rtol=0, atol=1e-4)
    assert loop.captured is not None


def test_what_is_not_replayed_says_why():
    model = build(replace(LARGE, blocks=(BlockConfig(mixer=HyenaConfig()),)))
    loop = TokenLoop(model)
    loop(tokens(1, 1)[0])
    assert "filter" in loop.why_not
    learned = build(replace(LARGE, blocks=(BlockConfig(mixer=SLSTMConfig(recurrence="learned")),)))
    loop = TokenLoop(learned)
    loop(tokens(1, 1)[0])
    assert "aten" in loop.why_not
    assert "float64" in TokenLoop(build(LARGE).double()).why_not
    assert "Linear" in TokenLoop(torch.nn.Linear(2, 2)).why_not
    hooked = build(LARGE)
    hooked.blocks[1].register_forward_hook(lambda *_: None)
    assert "hooks" in TokenLoop(hooked).why_not


def test_input_that_does_not_fit():
    loop = TokenLoop(build(LARGE))
    loop(torch.tensor([1, 2]))
    for wrong, words in {(VOCABULARY, 0): "outside the vocabulary", (1,): "shape", (1, 2, 3): "shape"}.items():
        with pytest.raises(ValueError, match=words):
            loop(torch.tensor(wrong))
    with pytest.raises(ValueError, match="integers"):
        loop(torch.rand(2))


def test_in_inference_mode_and_from_several_threads():
    model, tokens_BT = build(LARGE), tokens(1, 8)
    want = run(TokenLoop(model), tokens_BT)
    with torch.inference_mode():
        assert torch.equal(run(TokenLoop(model), tokens_BT), want)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: run(TokenLoop(model), tokens_BT), range(8)):
            assert torch.equal(got, want)
