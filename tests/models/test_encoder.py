"""The encoder of continuous inputs: the contract over time, both directions, and what torch's modules can do."""

import copy
import itertools
import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from encoder_cases import INPUT, WIDTH, assert_close, build, inputs, resets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

import exlstm
from exlstm.mixers import MIXERS
from exlstm.mixers.state import detach, leaves, rows
from exlstm.models.checkpoints.own import config_from_json, config_to_json, encoder_config_from_json
from exlstm.models.encoder import EncoderConfig, encoder_from_pattern
from exlstm.nn.borders import Reversal

EVERY = [*(pytest.param(name, marks=pytest.mark.slow) for name in MIXERS), "msMl", "ms,attention"]


def assert_same_memory(model, got, want):
    """Two states that nothing that follows can tell apart."""
    x = inputs(len(leaves(want)[0]), 4, model.input_size, seed=5)
    assert_close(model(x, got)[0], model(x, want)[0])


@pytest.mark.parametrize("pattern", EVERY)
@pytest.mark.parametrize("input_size", [INPUT, WIDTH])
def test_cuts_resets_and_lengths(pattern, input_size):
    """A ragged batch with resets, in one call, in pieces, and each part of each row alone."""
    model, x = build(pattern, input_size), inputs(4, input_size=input_size)
    lengths, reset = torch.tensor([12, 0, 1, 7]), resets(4)
    before = model(inputs(4, 5, input_size, seed=8))[1]
    y, after = model(x, before, lengths=lengths, reset=reset)

    state, parts, start = before, [], 0
    for size in (1, 6, 5):
        part, state = model(
            x[:, start : start + size], state,
            lengths=(lengths - start).clamp(0, size), reset=reset[:, start : start + size],
        )  # fmt: skip
        parts, start = [*parts, part], start + size
    assert_close(torch.cat(parts, dim=1), y)
    assert_same_memory(model, state, after)

    for row, length in enumerate(lengths.tolist()):
        alone = rows(before, torch.tensor([row]))
        starts = [0, *(t for t in range(1, length) if reset[row, t]), length]
        for first, end in itertools.pairwise(starts if length else []):
            alone = None if first or reset[row, 0] else alone
            z, alone = model(x[row : row + 1, first:end], alone)
            assert_close(y[row : row + 1, first:end], z)
        assert not y[row, length:].any()
        assert_same_memory(model, rows(after, torch.tensor([row])), alone)


def test_rows_are_independent_and_nothing_is_changed():
    model, x, reset, lengths = build(), inputs(), resets(), torch.tensor([12, 9, 0])
    y, state = model(x, reset=reset)
    kept = [x, reset, lengths, *leaves(state)]
    before = [t.detach().clone() for t in kept]
    z, _ = model(x, detach(state), lengths=lengths, reset=reset)
    z.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    loud = x.clone()
    loud[1] *= 100
    assert_close(model(loud, reset=reset)[0][[0, 2]], y[[0, 2]])
    assert model(x[:0])[0].shape == (0, 12, WIDTH)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=["forward", "both"])
@pytest.mark.parametrize("input_size", [INPUT, WIDTH])
def test_padding_may_be_anything(input_size, options):
    """NaN there reaches neither outputs, nor states, nor the gradient of anything; that of padding is 0."""
    model, lengths = build("msl", input_size, **options), torch.tensor([6, 0, 2])
    padding = torch.arange(6) >= lengths[:, None]
    found = []
    for noise in (0.0, torch.nan, torch.inf):
        x = inputs(3, 6, input_size)
        x[padding] = noise
        x.requires_grad_()
        y, state = model(x, lengths=lengths, reset=resets(3, 6))
        gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
        assert not gradients[0][padding].any()
        assert gradients[0][~padding].any(-1).all()
        found.append([y, *leaves(state), *gradients])
    assert all(t.isfinite().all() for t in found[0])
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def by_hand(model, x_TI, reset):
    """Both directions for one row, cut at its resets, each part by blocks and flips alone."""
    parts = []
    for part in torch.tensor_split(x_TI, [t for t in range(1, len(x_TI)) if reset[t]]):
        h = part[None] if model.projection is None else model.projection(part[None])
        for index, block in enumerate(model.blocks):
            turn = index % 2 == 1
            h = block(h.flip(1) if turn else h)[0]
            h = h.flip(1) if turn else h
        parts.append(model.norm(h)[0])
    return torch.cat(parts)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=3, max_size=3), seed=st.integers(0, 2**31),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_both_directions(lengths, seed, share):
    """Against flips by hand of every row alone; resets after a row's end mean nothing."""
    model, x, reset = build("msl", bidirectional=True), inputs(3, 7, seed=seed), resets(3, 7, share, seed)
    y, state = model(x, lengths=lengths, reset=reset)
    assert state == ()
    for row, length in enumerate(lengths):
        assert not y[row, length:].any()
        if length:
            assert_close(y[row, :length], by_hand(model, x[row, :length], reset[row]), 1e-12)


def test_both_directions_without_borders():
    """An even number of layers, whose last is turned back, and inputs as wide as the model."""
    model, x = build("ms", WIDTH, bidirectional=True), inputs(2, 6, WIDTH)
    assert_close(model(x)[0], torch.stack([by_hand(model, row, [False] * 6) for row in x]), 1e-12)
    assert_close(Reversal.of(torch.tensor([6, 6]), 6)(x), x.flip(1), 0)


def test_a_partner_reads_in_the_direction_of_its_mixer():
    blocks = encoder_from_pattern("rwkv4", input_size=8, width=WIDTH, num_layers=2).blocks
    assert len(blocks) == 4
    model = exlstm.XLSTM(8, WIDTH, pattern="rwkv4,m,s", bidirectional=True)
    assert model.turned == [False, False, True, False]
    assert model.num_layers == 3
    assert exlstm.XLSTM(8, WIDTH, pattern="rwkv4").turned == [False, False]


def test_patterns_are_repeated():
    def kinds(*sizes, **options):
        return "".join(type(block.mixer).__name__[0] for block in exlstm.XLSTM(3, WIDTH, *sizes, **options).blocks)

    assert kinds() == "MS"
    assert kinds(1) == "M"
    assert kinds(5) == "MSMSM"
    assert kinds(pattern="smmm") == "SMMM"
    assert kinds(3, pattern="lstm*2,slstm") == "LLS"


X = inputs(2, 4)
WRONG = {
    r"x has shape \(4, 5\); pass \[batch, time, 5\]": lambda m: m(X[0]),
    r"x has shape \(2, 0, 5\); .* at least 1": lambda m: m(X[:, :0]),
    r"x is a PackedSequence; pass \[batch, time, 5\]": lambda m: m(pack_sequence([X[0]])),
    r"x is torch.float32 on cpu, and the weights are torch.float64 on cpu; convert one": lambda m: m(X.float()),
    r"lengths holds 5; it must lie between 0 and the 4 steps": lambda m: m(X, lengths=[5, 1]),
    r"lengths is torch.int64 of shape \(3,\)": lambda m: m(X, lengths=[1, 1, 1]),
    r"reset is torch.int64 of shape \(2, 4\) .*; it must be torch.bool": lambda m: m(X, reset=torch.ones(2, 4).long()),
    r"the state has 0 entries for 2 blocks; pass the state that this model returned": lambda m: m(X, ()),
    r"shape \(3, .*; pass the state that this model returned for these rows": lambda m: m(X, m.zero_state(3)),
    r"the state is a tuple, and a bidirectional XLSTM has none .*; pass None":
        lambda m: exlstm.XLSTM(5, 8, bidirectional=True)(X.float(), ()),
    r"num_layers is 0; it must be a whole number from 1": lambda m: exlstm.XLSTM(5, 8, 0),
    r"input_size is 0; it must be a whole number from 1 to": lambda m: exlstm.XLSTM(0, 8),
    r"heads is 3; it must divide the width 16": lambda m: exlstm.XLSTM(5, WIDTH, pattern="s", num_heads=3),
    r"dropout is 1.5; it must be": lambda m: exlstm.XLSTM(5, WIDTH, dropout=1.5),
    r"the block pattern 'x' has the part 'x'": lambda m: exlstm.XLSTM(5, WIDTH, pattern="x"),
    r"input_size is 4, and that of the config 5; pass the same": lambda m: exlstm.XLSTM(4, WIDTH, config=m.config),
    r"hidden_size is 8, and that of the config 16": lambda m: exlstm.XLSTM(5, 8, config=m.config),
    r"num_layers is 2 beside a config, .*; leave num_layers out": lambda m: exlstm.XLSTM(5, WIDTH, 2, config=m.config),
    r"pattern is 'm' beside a config": lambda m: exlstm.XLSTM(5, WIDTH, pattern="m", config=m.config),
    r"blocks is \(\); an encoder needs at least 1": lambda m: replace(m.config, blocks=()),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_calls(message):
    with pytest.raises(ValueError, match=message) as error:
        WRONG[message](build("ms"))
    assert len(re.findall(r"[.!?](?: [A-Z]|$)", str(error.value))) == 1


def test_lengths_of_a_padding_mask():
    lengths = torch.tensor([3, 0, 5, 1])
    mask = torch.arange(5) >= lengths[:, None]
    assert torch.equal(exlstm.lengths_of(mask), lengths)
    for row, hole, where in ((2, 3, "between real steps"), (0, 0, "at the left")):
        wrong = mask.clone()
        wrong[row, hole] = True
        with pytest.raises(ValueError, match=rf"^row {row} of src_key_padding_mask has padding {where}; move it"):
            exlstm.lengths_of(wrong)
    for wrong in (mask.float(), mask[0], mask.tolist()):
        with pytest.raises(ValueError, match=r"pass torch.bool of \[batch, time\]"):
            exlstm.lengths_of(wrong)


def test_copies_and_files(tmp_path):
    """Equal outputs of deepcopy, pickle, a state dict, and a config of JSON; another kind of config is refused."""
    model, x = build("msM", bidirectional=True), inputs()
    y, _ = model(x)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    config = encoder_config_from_json(json.loads(json.dumps(config_to_json(model.config))))
    assert config == model.config
    other = exlstm.XLSTM(INPUT, WIDTH, config=config, dtype=torch.float64).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        assert torch.equal(copied(x)[0], y)
    with pytest.raises(ValueError, match="of type 'exlstm_encoder', format 1; this version reads 'exlstm' of format 1"):
        config_from_json(config_to_json(model.config))
    with pytest.raises(ValueError, match="this version reads 'exlstm_encoder'"):
        encoder_config_from_json(config_to_json(exlstm.lm_from_pattern("m", vocab_size=3, width=WIDTH)))


def test_config_fields_have_effect():
    config = encoder_from_pattern("ml", input_size=INPUT, width=WIDTH, heads=2)
    assert (config.norm, encoder_from_pattern("M", input_size=3, width=WIDTH).norm) == ("layer", "rms")
    changed = {"norm": "rms", "norm_bias": True, "out_norm": False, "residual": False, "dropout": 0.5}
    x = inputs(dtype=torch.float32)

    def run(config: EncoderConfig):
        torch.manual_seed(1)
        return exlstm.XLSTM(INPUT, WIDTH, config=config).train()

    plain = run(config)
    for name, value in changed.items():
        model = run(replace(config, **{name: value}))
        assert set(model.state_dict()) != set(plain.state_dict()) or not torch.equal(model(x)[0], plain(x)[0]), name


def test_devices_and_dtypes():
    model = exlstm.XLSTM(INPUT, WIDTH, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    model = exlstm.XLSTM(INPUT, WIDTH, dtype=torch.bfloat16)
    y, state = model(inputs(dtype=torch.bfloat16))
    assert y.dtype is torch.bfloat16
    assert {part.dtype for part in leaves(state)} == {torch.float32}


@pytest.mark.parametrize("input_size", [INPUT, WIDTH])
def test_autocast(input_size):
    model, x = build("ms", input_size, torch.float32), inputs(input_size=input_size, dtype=torch.float32)
    y, state = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, after = model(x)
        narrow, _ = model(x.bfloat16(), after)
    assert_close(z.float(), y, 0.1)
    assert {part.dtype for part in leaves(after)} == {torch.float32}
    assert narrow.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"dropout": 0.3}], ids=["forward", "both", "dropout"])
def test_gradient_checkpointing(options):
    """The same gradients, bit for bit, from fewer calls that keep their activations."""
    model, x = build("msl", dtype=torch.float32, **options).train(), inputs(dtype=torch.float32)
    calls = []
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    found = []
    for again in (False, True):
        model.gradient_checkpointing = again
        torch.manual_seed(3)
        y, _ = model(x, lengths=[12, 5, 0], reset=resets())
        found.append(torch.autograd.grad(y.square().sum(), list(model.parameters())))
    assert all(map(torch.equal, *found))
    assert len(calls) == 3  # the backward runs it once more


def test_functional_call():
    """Gradients by torch.func for other weights are those of a backward."""
    model, x = build("ms", dtype=torch.float64), inputs(2, 5)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, (x,), {"lengths": torch.tensor([5, 3])})[0].square().sum()

    found = torch.func.grad(loss)(weights)
    wanted = torch.autograd.grad(loss(dict(model.named_parameters())), list(model.parameters()))
    for got, want in zip(found.values(), wanted, strict=True):
        assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=["forward", "both"])
@pytest.mark.parametrize("pattern", ["m", "ms"])
def test_compiled(pattern, options):
    """One graph, forward and backward; with lengths and resets, and a state where there is one."""
    model, x = build(pattern, dtype=torch.float32, **options), inputs(2, 4, dtype=torch.float32)
    given = {"lengths": torch.tensor([4, 3]), "reset": resets(2, 4)}
    state = None if options else detach(model(x)[1])
    found = []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        y, after = call(x, state, **given)
        total = y.square().sum() + sum(part.sum() for part in leaves(after))
        found.append([y, *leaves(after), *torch.autograd.grad(total, list(model.parameters()))])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-4)
    torch._dynamo.reset()
