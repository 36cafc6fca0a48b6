"""The language model: one call for training, prefill and decoding, and what it says to input that does not fit."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from exlstm.mixers.state import detach, leaves, map_state, rows, state_nbytes
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern

VOCAB = 19


def build(pattern="msMal", dtype=torch.float64, **options):
    """A small model with every parameter away from the zeros and ones it starts from."""
    torch.manual_seed(3)
    config = lm_from_pattern(pattern, vocab_size=VOCAB, width=32)
    model = LM(LMConfig(**{**vars(config), **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def tokens(B=2, T=20, seed=0):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cuts", [[1] * 20, [7, 1, 12]], ids=str)
def test_token_by_token_is_the_whole(cuts):
    model, x = build(), tokens()
    want, state = model(x)
    after, logits = None, []
    for piece in x.split(cuts, dim=1):
        part, after = model(piece, after)
        logits.append(part)
    assert_close(torch.cat(logits, dim=1), want)
    assert_close(model(x, after)[0], model(x, state)[0])


@pytest.mark.parametrize("cap", [None, 3.0])
def test_hidden_states_read_out_are_the_logits(cap):
    """Also in pieces, and a state goes in and out of both alike; input that does not fit is told by both."""
    model, x = build(logit_cap=cap), tokens()
    reset, lengths = torch.rand(2, 20) < 0.2, torch.tensor([20, 11])
    _, noise = model(tokens(seed=3))
    want, after = model(x, noise, reset_BT=reset, lengths_B=lengths)
    hidden, state = model.hidden(x, noise, reset_BT=reset, lengths_B=lengths)
    assert torch.equal(model.read_out(hidden), want)
    assert_close(torch.cat([model.read_out(part) for part in hidden.flatten(0, 1).split(7)]), want.flatten(0, 1))
    assert_close(model(x, state)[0], model(x, after)[0])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.hidden(x + VOCAB)


def test_documents_in_one_row_do_not_see_each_other():
    """Packed with resets, three documents give the logits and the gradients that they give apart."""
    model, documents = build(), [tokens(1, n, seed=n) for n in (5, 1, 9)]
    packed = torch.cat(documents, dim=1)
    reset = torch.zeros(1, 15, dtype=torch.bool)
    reset[0, [0, 5, 6]] = True
    _, noise = model(tokens(1))
    together, _ = model(packed, noise, reset_BT=reset)
    apart = torch.cat([model(document)[0] for document in documents], dim=1)
    assert_close(together, apart)
    for logits in (together, apart):
        model.zero_grad()
        cross_entropy(logits.flatten(0, 1), packed.flatten()).backward(retain_graph=True)
        gradients = [p.grad.clone() for p in model.parameters()]
        if logits is together:
            first = gradients
    for got, want in zip(first, gradients, strict=True):
        assert_close(got, want)


def test_ragged_rows_are_as_alone():
    """Prompts of several lengths in one batch, then one decoding step for each."""
    model, x, lengths = build(), tokens(4), [20, 3, 0, 11]
    logits, state = model(x, lengths_B=torch.tensor(lengths))
    step, _ = model(tokens(4, 1, seed=7), state)
    for row, length in enumerate(lengths):
        alone = None
        if length:
            want, alone = model(x[row : row + 1, :length])
            assert_close(logits[row : row + 1, :length], want)
        assert_close(step[row : row + 1], model(tokens(4, 1, seed=7)[row : row + 1], alone)[0])


def test_rows_of_a_state():
    model, x = build(), tokens(3)
    _, state = model(x)
    picked = torch.tensor([2, 0, 0])
    assert_close(model(x[picked], rows(state, picked))[0], model(x, state)[0][picked])


def test_the_state_is_a_value():
    model, x = build(), tokens()
    _, state = model(x)
    before = [t.clone() for t in leaves(state)]
    model(x, state)[0].sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), before, strict=True))
    assert isinstance(state, tuple)
    assert len(state) == 5


def test_no_state_means_the_zero_state():
    model, x = build(), tokens()
    assert_close(model(x, model.zero_state(2))[0], model(x)[0])


@pytest.mark.parametrize("T", [1, 20])
def test_state_bytes(T):
    model = build(dtype=torch.float32)
    _, state = model(tokens(2, T))
    assert state_nbytes(state) == 2 * model.state_bytes(T)


def test_truncated_backpropagation():
    """A detached state carries the values on and no graph; an undetached one carries gradients to the first window."""
    model, x = build(), tokens(2, 8)
    embedded = []
    model.embed.register_forward_hook(lambda module, args, out: embedded.append(out) or out.retain_grad())
    _, state = model(x)
    model(x, detach(state))[0].sum().backward()
    assert embedded[0].grad is None
    _, state = model(x)
    model(x, state)[0].sum().backward()
    assert embedded[2].grad.any()


def test_causal():
    model, x = build(), tokens()
    other = x.clone()
    other[:, 10:] = (other[:, 10:] + 1) % VOCAB
    got, want = model(other)[0], model(x)[0]
    assert torch.equal(got[:, :10], want[:, :10])
    assert (got[:, 10:] != want[:, 10:]).any(-1).all()


def test_every_parameter_learns():
    model = build()
    cross_entropy(model(tokens())[0].flatten(0, 1), tokens(seed=1).flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_the_sum_that_a_block_is():
    """x + mixer(norm(x)), then x + mlp(norm(x)); a block without an MLP stops after the first."""
    model = build("sm")
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    block = model.blocks[0]
    middle = x + block.mixer(block.mixer_norm(x))[0]
    assert_close(block(x)[0], middle + block.mlp(block.mlp_norm(middle)))
    block = model.blocks[1]
    assert_close(block(x)[0], x + block.mixer(block.mixer_norm(x))[0])
    assert block.mlp is None


def test_embed_blocks_norm_head():
    model, x = build("m"), tokens()
    hidden, _ = model.blocks[0](model.embed(x))
    assert_close(model(x)[0], model.norm(hidden) @ model.head.weight.mT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_logit_cap(dtype):
    """cap * tanh(x / cap), float32 or wider: large logits of bfloat16 would be a few coarse steps."""
    plain, capped = build("M", dtype), build("M", dtype, logit_cap=2.0)
    x, _ = plain(tokens())
    y, _ = capped(tokens())
    wide = torch.promote_types(dtype, torch.float32)
    assert y.dtype == wide
    assert y.abs().max() <= 2
    torch.testing.assert_close(y, 2 * torch.tanh(x.to(wide) / 2), rtol=1e-6, atol=1e-6)


def test_tied_embeddings():
    model = build("m", tie_embeddings=True)
    assert model.head.weight is model.embed.weight
    free = build("m")
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in model.parameters()) == VOCAB * 32
    model(tokens())[0].sum().backward()
    assert model.embed.weight.grad.any()


def test_initial_embedding_and_head():
    """N(0, 2 / (5 width)), and gated MLPs: up small, down by the depth."""
    config = lm_from_pattern("ss", vocab_size=2000, width=128)
    model = LM(config)
    for x, deviation in (
        (model.embed.weight, (2 / 640) ** 0.5),
        (model.head.weight, (2 / 640) ** 0.5),
        (model.blocks[1].mlp.up.weight, (2 / 640) ** 0.5),
        (model.blocks[1].mlp.down.weight, 2 / (2 * 128**0.5)),
    ):
        assert abs(x.std() / deviation - 1) < 0.02
    assert (model.norm.weight == 1).all()


def test_two_models_of_one_seed_are_the_same_and_start_near_ignorance():
    torch.manual_seed(5)
    one = LM(lm_from_pattern("msMal", vocab_size=VOCAB, width=64))
    torch.manual_seed(5)
    two = LM(lm_from_pattern("msMal", vocab_size=VOCAB, width=64))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    loss = cross_entropy(one(tokens(8, 50))[0].flatten(0, 1), tokens(8, 50, seed=1).flatten())
    assert loss < torch.tensor(VOCAB).log() + 0.5


def test_dropout():
    """In training only, on the embedding and on what each mixer and MLP adds; the state's path is left alone."""
    model, x = build("ms", dropout=0.5), tokens()
    want = build("ms")(x)[0]
    assert torch.equal(model(x)[0], want)
    model.train()
    one, two = model(x)[0], model(x)[0]
    assert not torch.equal(one, two)
    torch.manual_seed(1)
    one = model(x)[0]
    torch.manual_seed(1)
    assert torch.equal(model(x)[0], one)


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_half_the_bits(mode):
    """Logits and loss stay near those of float64, and every gradient is finite."""
    exact = build()(tokens())[0]
    model = build(dtype=torch.bfloat16 if mode == "bfloat16" else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        logits, _ = model(tokens())
    assert (logits - exact).norm() <= 0.05 * exact.norm()
    cross_entropy(logits.flatten(0, 1).float(), tokens(seed=1).flatten()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_padding_may_be_anything(dtype):
    """Also a token whose embedding is not a number: no logits of others, no state and no gradient see it."""
    model, lengths, found = build(dtype=dtype), torch.tensor([20, 0, 7]), []
    x = tokens(3).clamp(max=VOCAB - 2)
    padding = torch.arange(20) >= lengths[:, None]
    for noise in (0.0, torch.nan, torch.inf):
        with torch.no_grad():
            model.embed.weight[VOCAB - 1] = noise
        model.zero_grad()
        logits, state = model(x.masked_fill(padding, VOCAB - 1), lengths_B=lengths)
        logits[~padding].square().sum().backward()
        found.append([logits[~padding], *leaves(state), *(p.grad for p in model.parameters())])
    assert all(t.isfinite().all() for t in found[0])
    for other in found[1:]:
        assert all(torch.equal(got, want) for got, want in zip(other, found[0], strict=True))


def test_no_rows():
    """Empty logits and states, with gradients of zero; also token after token."""
    model = build(dtype=torch.float32)
    logits, state = model(tokens(0, 5), lengths_B=torch.zeros(0).long(), reset_BT=torch.zeros(0, 5) > 0)
    more, _ = model(tokens(0, 1), state)
    (logits.sum() + more.sum()).backward()
    assert logits.shape == (0, 5, VOCAB)
    assert more.shape == (0, 1, VOCAB)
    assert all(len(leaf) == 0 for leaf in leaves(state))
    assert not any(p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("pattern", ["m", "s", "M", "a", "l"])
def test_states_of_other_dtypes(pattern):
    """A state of fewer bits is read as what it is; one of a float64 model is refused until it is converted."""
    wide, x = build(pattern), tokens()
    _, state = wide(x[:, :12])
    want, _ = wide(x[:, 12:], state)
    narrow = build(pattern, torch.float32)
    with pytest.raises(ValueError, match=r"block 0 is torch.float64, and this model needs torch.float32") as error:
        narrow(x[:, 12:], state)
    assert one_sentence(error)
    single = map_state(lambda t: t.float() if t.is_floating_point() else t, state)
    torch.testing.assert_close(narrow(x[:, 12:], single)[0].double(), want, rtol=1e-3, atol=1e-4)
    short = map_state(lambda t: t.bfloat16() if t.is_floating_point() else t, state)
    again = map_state(lambda t: t.float() if t.is_floating_point() else t, short)
    assert torch.equal(narrow(x[:, 12:], short)[0], narrow(x[:, 12:], again)[0])
    with pytest.raises(ValueError, match="on meta; to fit the input it must be"):
        narrow(x[:, 12:], map_state(lambda t: t.to("meta"), again))


def one_sentence(error):
    """What a user reads: one line that ends once, with a stop."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text.replace("e.g. ", "")
    return True


BAD = {
    "floats": (lambda m: m(torch.zeros(2, 5)), "tokens are torch.float32; pass a tensor of integers"),
    "booleans": (lambda m: m(torch.zeros(2, 5, dtype=torch.bool)), "tokens are torch.bool; pass a tensor of integers"),
    "bytes": (lambda m: m(tokens().to(torch.uint8)), r"tokens are torch.uint8; .*integers \(int32 or int64\)"),
    "a list": (lambda m: m([[1, 2]]), "tokens are list; pass a tensor of integers"),
    "one axis": (lambda m: m(tokens()[0]), r"tokens have shape \(20,\); pass \[batch, time\]"),
    "no steps": (lambda m: m(tokens()[:, :0]), r"tokens have shape \(2, 0\); .*with a time of at least 1"),
    "large": (lambda m: m(tokens() + VOCAB), "token [0-9]+ is outside the vocabulary of 19; use the model's own token"),
    "negative": (lambda m: m(tokens() - VOCAB), "token -[0-9]+ is outside the vocabulary of 19"),
    "reset shape": (
        lambda m: m(tokens(), reset_BT=torch.zeros(2, 19) > 0),
        r"reset_BT is torch.bool of shape \(2, 19\) on cpu; .* must be torch.bool of shape \(2, 20\) on cpu",
    ),
    "reset dtype": (
        lambda m: m(tokens(), reset_BT=torch.zeros(2, 20)),
        r"reset_BT is torch.float32 of shape \(2, 20\) on cpu; .* must be torch.bool of shape \(2, 20\)",
    ),
    "lengths shape": (
        lambda m: m(tokens(), lengths_B=torch.ones(3).long()),
        r"lengths_B is torch.int64 of shape \(3,\) on cpu; .* it must be torch.int64 of shape \(2,\)",
    ),
    "lengths dtype": (lambda m: m(tokens(), lengths_B=torch.ones(2)), r"lengths_B is torch.float32 of shape \(2,\)"),
    "too long": (
        lambda m: m(tokens(), lengths_B=torch.tensor([3, 21])),
        "lengths_B holds 21; it must lie between 0 and the 20 steps of these tokens",
    ),
    "less than nothing": (lambda m: m(tokens(), lengths_B=torch.tensor([-1, 3])), "lengths_B holds -1; it must lie"),
    "short state": (lambda m: m(tokens(), m(tokens())[1][:3]), "the state has 3 entries for 5 blocks"),
    "no state": (lambda m: m(tokens(), torch.zeros(1)), "the state has Tensor entries for 5 blocks"),
    "batch": (lambda m: m(tokens(3), m(tokens())[1]), r"past_BSD in the state of block 0 has shape \(2, 3, 64\)"),
    "order": (lambda m: m(tokens(), m(tokens())[1][::-1]), "the state of block 0 is a LSTMState, not a MLSTMLay"),
    "width": (
        lambda m: m(tokens(), build_wide()(tokens())[1]),
        r"past_BSD in the state of block 0 has shape \(2, 3, 128\), and this model and batch need \(2, 3, 64\)",
    ),
}  # fmt: skip


def build_wide():
    return LM(lm_from_pattern("msMal", vocab_size=VOCAB, width=64)).double()


@pytest.mark.parametrize("case", BAD)
def test_errors(case):
    call, message = BAD[case]
    model = build()
    with pytest.raises(ValueError, match=message) as error:
        call(model)
    assert one_sentence(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number from 1 to"),
        ({"width": 0}, "width is 0; it must be a whole number from 1 to"),
        ({"blocks": ()}, r"blocks is \(\); a model needs at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be a number of at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_config_errors(change, message):
    config = lm_from_pattern("m", vocab_size=VOCAB, width=32)
    with pytest.raises(ValueError, match=message) as error:
        LMConfig(**{**vars(config), **change})
    assert one_sentence(error)


def test_blocks_are_values():
    block = BlockConfig(mixer=lm_from_pattern("l", vocab_size=3, width=8).blocks[0].mixer, mlp=MLPConfig(hidden=4))
    model = LM(LMConfig(vocab_size=3, width=8, blocks=(block, block)))
    assert model.blocks[0].mlp.up.weight is not model.blocks[1].mlp.up.weight
