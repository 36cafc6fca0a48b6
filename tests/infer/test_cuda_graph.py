"""Steps as CUDA graphs: the model's own numbers. On a CPU the graph is a stand-in, and models are in float64, for which
there are no kernels but torch's; tests marked `gpu` capture real graphs."""  # fmt: skip

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from fake_cuda_graph import FakeCudaGraph, install_fake_cuda, tensors_of
from torch.utils._python_dispatch import TorchDispatchMode

from exlstm.infer import token_loop
from exlstm.infer.cuda_graph import CUDAGraphStep
from exlstm.infer.generate import stream
from exlstm.infer.quantize import quantize
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers import MIXERS
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.mixers.state import leaves, map_state
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern

VOCABULARY = 40
MIXED = lm_from_pattern("ms", vocab_size=VOCABULARY, width=16, heads=2)
LARGE = LMConfig(
    vocab_size=VOCABULARY, width=16, norm="rms", logit_cap=30.0,
    blocks=(BlockConfig(mixer=MLSTMLargeConfig(heads=2), mlp=MLPConfig(hidden=24, activation="silu")),) * 2,
)  # fmt: skip
# their states grow, so no step has the shapes of the last
GROWING = {
    name for name, config in MIXERS.items() if config().build(32).state_bytes(9) > config().build(32).state_bytes(8)
}
ENDING = {"linformer"}  # a step asks whether its sequence is at its end: a number, on a GPU
VARIANTS = {name: config() for name, config in MIXERS.items() if name not in GROWING | ENDING} | {
    "slstm no conv": SLSTMConfig(conv_width=0, recurrence="none"),
    "mlstm_large no normaliser": MLSTMLargeConfig(input_gate="sigmoid", normalize=False, gate_cap=None),
}


@pytest.fixture
def graphs(monkeypatch):
    """Loops on a CPU make stand-ins of graphs; how many they have made is `graphs.made`."""
    install_fake_cuda(monkeypatch)
    monkeypatch.setitem(token_loop.STEP_CLASSES, "cpu", CUDAGraphStep)
    return FakeCudaGraph


def build(config, seed=0, dtype=torch.float64, device="cpu"):
    """Weights of which all matter."""
    torch.manual_seed(seed)
    model = LM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(device, dtype).eval()


def tokens(B, T, seed=1, device="cpu"):
    return torch.randint(VOCABULARY, (B, T), generator=torch.Generator().manual_seed(seed)).to(device)


def run(loop, tokens_BT):
    return torch.stack([loop(tokens_B) for tokens_B in tokens_BT.T], dim=1)


def called(model, state, tokens_BT):
    """(logits, state) of the model's own calls."""
    logits = []
    with torch.no_grad():
        for tokens_B in tokens_BT.T:
            logits_B1C, state = model(tokens_B[:, None], state)
            logits.append(logits_B1C[:, 0])
    return torch.stack(logits, dim=1), state


def assert_equal_states(got, want):
    for x, y in zip(leaves(got), leaves(want), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("B", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_replayed_steps_are_called_ones(name, B, graphs):
    model = build(replace(LARGE, blocks=(BlockConfig(mixer=VARIANTS[name], mlp=MLPConfig(hidden=20)),) * 2))
    with torch.no_grad():
        _, state = model(tokens(B, 5, seed=2))
    loop = TokenLoop(model, state)
    want_BTC, last = called(model, state, tokens(B, 8))
    torch.testing.assert_close(run(loop, tokens(B, 8)), want_BTC, rtol=1e-12, atol=1e-12)
    assert_equal_states(loop.state, last)
    assert loop.why_not is None
    assert graphs.made == 1


@pytest.mark.parametrize("config", [MIXED, LARGE, replace(LARGE, tie_embeddings=True)], ids=["ms", "large", "tied"])
def test_a_loop_that_begins_with_nothing(config, graphs):
    model = build(config)
    want_BTC, _ = called(model, None, tokens(2, 4))
    torch.testing.assert_close(run(TokenLoop(model), tokens(2, 4).int()), want_BTC, rtol=1e-12, atol=1e-12)
    assert graphs.made == 1


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_weights(weights, graphs):
    model = quantize(build(LARGE), weights)
    want_BTC, _ = called(model, None, tokens(2, 4))
    loop = TokenLoop(model)
    torch.testing.assert_close(run(loop, tokens(2, 4)), want_BTC, rtol=1e-12, atol=1e-12)
    assert loop.why_not is None


def test_states_and_logits_are_values(graphs):
    model, tokens_BT = build(MIXED), tokens(2, 6)
    _, given = called(model, None, tokens_BT[:, :2])
    before = map_state(torch.clone, given)
    loop = TokenLoop(model, given)
    logits_BC, state = loop(tokens_BT[:, 2]), loop.state
    kept, copied = logits_BC.clone(), map_state(torch.clone, state)
    run(loop, tokens_BT[:, 3:])
    assert torch.equal(logits_BC, kept)
    assert all(map(torch.equal, leaves(state), leaves(copied)))
    assert all(map(torch.equal, leaves(given), leaves(before)))


def test_a_state_is_handed_over_to_another_loop(graphs):
    model, tokens_BT = build(MIXED), tokens(2, 6)
    want_BTC, last = called(model, None, tokens_BT)
    first = TokenLoop(model)
    got_BTC = run(first, tokens_BT[:, :3])
    later = TokenLoop(model, first.state)
    got_BTC = torch.cat([got_BTC, run(later, tokens_BT[:, 3:])], dim=1)
    torch.testing.assert_close(got_BTC, want_BTC, rtol=1e-12, atol=1e-12)
    assert_equal_states(later.state, last)
    run(first, tokens_BT[:, :2])
    assert_equal_states(later.state, last)


CHANGES = {
    "in place": (1, lambda model: model.head.weight.mul_(2)),
    "another parameter": (2, lambda model: setattr(model.head, "weight", torch.nn.Parameter(2 * model.head.weight))),
    "other memory": (2, lambda model: setattr(model.blocks[0].mlp.up.weight, "data", torch.randn(48, 16).double())),
    "loaded": (2, lambda model: model.load_state_dict(build(LARGE, seed=3).state_dict(), assign=True)),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_have_moved_make_another_graph(change, graphs):
    model, tokens_BT = build(LARGE), tokens(1, 4)
    loop, (count, apply) = TokenLoop(model), CHANGES[change]
    before = run(loop, tokens_BT)
    state = loop.state
    apply(model)
    got_BTC, (want_BTC, _) = run(loop, tokens_BT), called(model, state, tokens_BT)
    torch.testing.assert_close(got_BTC, want_BTC, rtol=1e-12, atol=1e-12)
    assert (got_BTC - before).abs().max() > 0.01
    assert graphs.made == count


def test_rows_that_leave_and_wrong_input(graphs):
    """One row stops at once, one in the middle: two graphs for the batch, and two for those that go on alone."""
    model, tokens_BT = build(MIXED), tokens(3, 5, seed=2)
    options = {"max_tokens": 12, "stop_tokens": range(4)}
    together = [(event.request, event.token) for event in stream(model, tokens_BT.tolist(), seeds=[0, 1, 2], **options)]
    alone = [
        (n, event.token)
        for n, row in enumerate(tokens_BT.tolist())
        for event in stream(model, [row], seeds=[n], **options)
    ]
    assert sorted(together, key=str) == sorted(alone, key=str)
    assert graphs.made == 4
    loop = TokenLoop(model)
    loop(torch.tensor([1, 2]))
    for wrong, words in {(VOCABULARY, 0): "outside the vocabulary", (1,): "shape"}.items():
        with pytest.raises(ValueError, match=words):
            loop(torch.tensor(wrong))


def with_a_look_at_the_host(model):
    """A step that asks for a number, as no step of a graph may."""
    norm = model.norm.forward
    model.norm.forward = lambda x: norm(x) * (1.0 if x.sum().item() < 1e9 else 2.0)
    return model


def test_what_is_called_says_why(graphs):
    attention = build(replace(LARGE, blocks=(BlockConfig(mixer=AttentionConfig(heads=4)),)))
    for model, words in (
        (attention, r"shape \(1, 0, 4, 4\) becomes torch.float64 and \(1, 1, 4, 4\)"),
        (with_a_look_at_the_host(build(LARGE)), r"cannot be captured: aten._local_scalar_dense.*capturing$"),
    ):
        loop = TokenLoop(model)
        assert loop.why_not is None
        torch.testing.assert_close(run(loop, tokens(1, 3)), called(model, None, tokens(1, 3))[0], rtol=0, atol=1e-12)
        assert re.search(words, loop.why_not), loop.why_not
    hooked, spread = build(LARGE), build(LARGE)
    hooked.blocks[1].register_forward_hook(lambda *_: None)
    assert "hooks" in TokenLoop(hooked).why_not
    spread.head.weight = torch.nn.Parameter(spread.head.weight.to("meta"))
    assert "['cpu', 'meta']" in TokenLoop(spread).why_not
    assert "meta, where no step can be captured" in TokenLoop(copy.deepcopy(spread).to("meta")).why_not
    assert graphs.made == 0


def test_dropout_draws_anew(graphs):
    """A model that goes to training is called from then on."""
    model = build(replace(LARGE, dropout=0.5))
    loop = TokenLoop(model)
    loop(tokens(1, 1)[0])
    assert loop.why_not is None
    model.train()
    state = loop.state
    drawn = [TokenLoop(model, state)(tokens(1, 1)[0]) for _ in range(2)]
    assert not torch.equal(*drawn)
    loop(tokens(1, 1)[0])
    assert "training mode" in loop.why_not


def test_autocast_is_not_captured(graphs, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    loop = TokenLoop(build(LARGE))
    loop(tokens(1, 1)[0])
    assert "autocast" in loop.why_not


class OnlyThere(TorchDispatchMode):
    """Counts operations, and collects those that see a tensor that is not on the device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.count, self.elsewhere = device, 0, []

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += 1
        if any(x.device.type != self.device for x in tensors_of((args, kwargs, out))):
            self.elsewhere.append(str(func))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_a_step_off_the_cpu_makes_nothing_on_the_cpu_and_asks_for_no_number(name, dtype, monkeypatch):
    """On torch's meta device a number that is asked for is an error. It knows no autocast."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _device: False)
    with torch.device("meta"):
        model = LM(replace(LARGE, blocks=(BlockConfig(mixer=MIXERS[name]()),)))
    model = model.to("meta", dtype).eval()  # with buffers that the architecture determines, which are made on the CPU
    tokens_B1, state = torch.zeros(2, 1, dtype=torch.long, device="meta"), model.zero_state(2)
    with torch.no_grad(), OnlyThere("meta") as seen:
        logits_B1C, _ = model.advance(tokens_B1, state)
    assert logits_B1C.is_meta
    assert seen.count > 10
    assert seen.elsewhere == []


# xLSTM[7:1], and as the 7B, in small
REAL = {
    "7:1": lm_from_pattern("mmmmmmms", vocab_size=VOCABULARY, width=128, heads=4),
    "large": replace(LARGE, width=256, blocks=(LARGE.blocks[0],) * 4),
}
SLACK = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", SLACK, ids=str)
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("config", REAL.values(), ids=REAL)
def test_real_graphs(config, B, dtype):
    """Twenty greedy tokens: those of called steps, and their logits; then other weights, then another loop."""
    model = build(config, dtype=dtype, device="cuda")
    with torch.no_grad():
        _, state = model(tokens(B, 5, device="cuda"))
    loop, plain = TokenLoop(model, state), TokenLoop(model, state, replay=False)

    def twenty(loop, plain):
        token_B = tokens(B, 1, device="cuda")[:, 0]
        for _ in range(20):
            got_BC, want_BC = loop(token_B), plain(token_B)
            torch.testing.assert_close(got_BC, want_BC, rtol=SLACK[dtype], atol=SLACK[dtype])
            assert torch.equal(got_BC.argmax(-1), want_BC.argmax(-1))
            token_B = want_BC.argmax(-1)
        assert loop.why_not is None
        for x, y in zip(leaves(loop.state), leaves(plain.state), strict=True):
            torch.testing.assert_close(x, y, rtol=SLACK[dtype], atol=SLACK[dtype])

    twenty(loop, plain)
    steps = loop.captured
    with torch.no_grad():
        model.head.weight.mul_(-1)
    twenty(loop, plain)
    assert loop.captured is steps
    model.head.weight = torch.nn.Parameter(-2 * model.head.weight.detach())
    twenty(loop, plain)
    assert loop.captured is not steps
    twenty(TokenLoop(model, loop.state), plain)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in MIXERS if name not in ENDING])
def test_a_step_never_waits_for_the_gpu(name):
    config = replace(LARGE, width=64, blocks=(BlockConfig(mixer=MIXERS[name]()),))
    model, tokens_B1 = build(config, dtype=torch.float32, device="cuda"), tokens(2, 1, device="cuda")
    with torch.no_grad():
        _, state = model.advance(tokens_B1, model.zero_state(2))
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.advance(tokens_B1, state)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_every_mixer_whose_state_does_not_grow_is_captured():
    for name, mixer in MIXERS.items():
        config = replace(LARGE, width=64, blocks=(BlockConfig(mixer=mixer()),))
        model, tokens_BT = build(config, dtype=torch.float32, device="cuda"), tokens(2, 6, device="cuda")
        loop = TokenLoop(model)
        want_BTC, _ = called(model, None, tokens_BT)
        torch.testing.assert_close(run(loop, tokens_BT), want_BTC, rtol=1e-4, atol=1e-4)
        assert (loop.why_not is None) == (name not in GROWING | ENDING), (name, loop.why_not)


@pytest.mark.gpu
def test_real_graphs_from_several_threads():
    model, tokens_BT = build(REAL["large"], dtype=torch.float32, device="cuda"), tokens(2, 10, device="cuda")
    want_BTC, _ = called(model, None, tokens_BT)
    with ThreadPoolExecutor(3) as pool:
        for got_BTC in pool.map(lambda _: run(TokenLoop(model), tokens_BT), range(6)):
            torch.testing.assert_close(got_BTC, want_BTC, rtol=1e-4, atol=1e-4)
