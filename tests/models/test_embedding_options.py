"""What some models have between embedding and first block: a scale, learned positions, a norm."""

from dataclasses import replace

import pytest
import torch

from exlstm import generate, load, load_state, save, save_state
from exlstm.hf import ExlstmConfig, from_lm
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.state import leaves, rows
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.summary import flops_per_token, parameters
from exlstm.ops.position_table import PositionState, add_positions
from exlstm.train.optimizer import decay_groups

VOCAB, WIDTH, COUNT = 23, 32, 24
GPT = LMConfig(
    vocab_size=VOCAB,
    width=WIDTH,
    norm_bias=True,
    positions=COUNT,
    blocks=(
        BlockConfig(
            mixer=AttentionConfig(rope_base=None, bias=True),
            mlp=MLPConfig(hidden=48, activation="gelu_tanh", gated=False, bias=True),
        ),
    )
    * 2,
)
ALL = replace(GPT, embed_scale=2.5, embed_norm=True)
MIXED = replace(lm_from_pattern("ms", vocab_size=VOCAB, width=WIDTH), positions=COUNT, embed_norm=True)
CONFIGS = {"gpt": GPT, "all": ALL, "mixed": MIXED, "scale": replace(GPT, positions=None, embed_scale=0.3)}
every = pytest.mark.parametrize("name", CONFIGS)


def build(config, dtype=torch.float64):
    torch.manual_seed(3)
    model = LM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def tokens(B=2, T=20, seed=0):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_what_enters_the_first_block():
    """norm(scale * E[token] + P[t]), t from 0 on."""
    model, x = build(ALL), tokens()
    got, (position,) = model.enter(model.embed(x))
    want = model.embed_norm(2.5 * model.embed.weight[x] + model.positions.weight[:20])
    assert_close(got, want)
    assert position.next_B.tolist() == [20, 20]
    plain = LM(replace(GPT, positions=None))
    got, after = plain.enter(plain.embed(x))
    assert torch.equal(got, plain.embed(x))
    assert after == ()


@every
@pytest.mark.parametrize("cuts", [[1] * 20, [7, 1, 12]], ids=str)
def test_token_by_token_is_the_whole(name, cuts):
    model, x = build(CONFIGS[name]), tokens()
    want, state = model(x)
    after, logits = None, []
    for piece in x.split(cuts, dim=1):
        part, after = model(piece, after)
        logits.append(part)
    assert_close(torch.cat(logits, dim=1), want)
    for got, expected in zip(leaves(after), leaves(state), strict=True):
        assert_close(got, expected)
    assert_close(model(x, model.zero_state(2))[0], want)


@every
def test_documents_in_one_row_do_not_see_each_other(name):
    """Positions restart: more steps in a row than the table has are none in a document."""
    model, documents = build(CONFIGS[name]), [tokens(1, n, seed=n) for n in (15, 1, 19)]
    reset = torch.zeros(1, 35, dtype=torch.bool)
    reset[0, [0, 15, 16]] = True
    _, noise = model(tokens(1))
    together, state = model(torch.cat(documents, dim=1), noise, reset_BT=reset)
    assert_close(together, torch.cat([model(document)[0] for document in documents], dim=1))
    following = tokens(1, 5, seed=9)
    assert_close(model(following, state)[0], model(torch.cat([documents[-1], following], dim=1))[0][:, -5:])


@every
def test_ragged_rows_are_as_alone(name):
    """Padding counts no steps, also beyond the end of the table, and a row without any step keeps its state."""
    model, lengths = build(CONFIGS[name]), [7, 0, 4]
    _, before = model(tokens(3, 16, seed=2))
    x, lengths_B = tokens(3, 12, seed=1), torch.tensor(lengths)
    logits, after = model(x, before, lengths_B=lengths_B)
    more, _ = model(tokens(3, 1, seed=4), after)
    for row, length in enumerate(lengths):
        state = rows(before, torch.tensor([row]))
        if length:
            want, state = model(x[row : row + 1, :length], state)
            assert_close(logits[row : row + 1, :length], want)
        assert_close(more[row : row + 1], model(tokens(3, 1, seed=4)[row : row + 1], state)[0])


@pytest.mark.parametrize("name", ["gpt", "mixed"])
def test_steps_beyond_the_table_are_refused(name):
    model = build(CONFIGS[name])
    said = rf"^a row has {COUNT + 1} steps since its beginning, and this model has positions for {COUNT}; cut texts to"
    _, state = model(tokens(2, COUNT))
    for call in (
        lambda: model(tokens(2, COUNT + 1)),
        lambda: model(tokens(2, 1), state),
        lambda: model.hidden(tokens(2, 1), state),
        lambda: model.read(tokens(1, COUNT + 1), chunk_len=5),
        lambda: model(tokens(2, COUNT + 1), lengths_B=torch.tensor([3, COUNT + 1])),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    model(tokens(2, COUNT + 1), lengths_B=torch.tensor([3, COUNT]))
    model(tokens(2, COUNT + 1), state, reset_BT=torch.arange(COUNT + 1).expand(2, -1) % 20 == 0)


def test_generation_is_refused_before_it_starts():
    model = build(GPT, torch.float32)
    with pytest.raises(ValueError, match=r"^prompt 1 and max_tokens need 25 positions, and the model has 24; shorten"):
        generate(model, [[1], [1, 2, 3]], max_tokens=22)
    (completion,) = generate(model, [[1, 2, 3]], max_tokens=21)
    assert len(completion.tokens) == 21
    with pytest.raises(ValueError, match=r"prompt 0 and max_tokens need 25 positions"):
        generate(model, [model.read([1, 2, 3])], max_tokens=22)


def test_a_token_loop_calls_a_model_with_positions_and_replays_others():
    """A replay would read beyond the table without notice."""
    for name, config in {"mixed": MIXED, "norm": replace(MIXED, positions=None, embed_scale=3.0)}.items():
        model = build(config, torch.float32)
        loop, called = TokenLoop(model), TokenLoop(model, replay=False)
        for token_B in tokens(2, 6).unbind(1):
            torch.testing.assert_close(loop(token_B), called(token_B), rtol=1e-4, atol=1e-4)
        if name == "norm":
            assert loop.why_not is None
            continue
        assert "positions" in loop.why_not
        for _ in range(COUNT - 6):
            loop(torch.zeros(2, dtype=torch.long))
        with pytest.raises(ValueError, match="has positions for 24"):
            loop(torch.zeros(2, dtype=torch.long))


def test_a_state_that_does_not_fit():
    model = build(MIXED)
    _, state = model(tokens())
    with pytest.raises(ValueError, match="the state has 2 entries for 2 blocks and positions; pass the state"):
        model(tokens(), state[:2])
    with pytest.raises(ValueError, match="the state of the positions is a MLSTMLayerState, not a PositionState"):
        model(tokens(), (*state[:2], state[0]))
    x, elsewhere = torch.zeros(2, 3, WIDTH), PositionState(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"next_B of the state is torch.int64 of shape \(3,\)"):
        add_positions(x, torch.zeros(COUNT, WIDTH), elsewhere)


@every
def test_every_parameter_learns(name):
    model, x = build(CONFIGS[name]), tokens(2, COUNT)
    model(x)[0].square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("mixer.k.bias"):
            continue  # without rotary positions it adds the same number to all scores of a step
        assert parameter.grad.abs().max() > 1e-9, parameter_name


@every
def test_counts(name):
    config = CONFIGS[name]
    model, plain = LM(config), LM(replace(config, positions=None, embed_norm=False, embed_scale=None))
    norm = WIDTH * (2 if config.norm_bias else 1) if config.embed_norm else 0
    assert parameters(model) - parameters(plain) == norm + (config.positions or 0) * WIDTH
    assert model.state_bytes() - plain.state_bytes() == (8 if config.positions else 0)
    assert len(model.zero_state(2)) == len(config.blocks) + (config.positions is not None)
    assert flops_per_token(model, "decode", 10) == flops_per_token(plain, "decode", 10)
    assert {n for n in decay_groups(model)[0] if not n.startswith(("blocks", "head"))} == set()
    assert (f"positions {COUNT} x {WIDTH} = {COUNT * WIDTH} parameters" in model.summary()) == bool(config.positions)


@every
def test_in_transformers_clothes(name):
    """The same logits, whole, in pieces, and with padding on the left."""
    lm = build(CONFIGS[name])
    model, x = from_lm(lm), tokens(2, 9)
    want, _ = lm(x)
    assert torch.equal(model(x).logits, want)
    assert_close(model(inputs_embeds=lm.embed(x)).logits, want)
    first = model(x[:, :4], use_cache=True)
    assert_close(model(x[:, 4:], past_key_values=first.past_key_values).logits, want[:, 4:])
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    padded = torch.cat([tokens(2, 3, seed=5), x], dim=1)
    assert_close(model(padded, mask).logits[0, 3:], want[0])
    config = ExlstmConfig.from_lm(lm.config)
    assert config.lm_config() == lm.config
    if lm.config.positions is not None:
        assert config.max_position_embeddings == COUNT


@every
def test_saved_and_loaded(tmp_path, name):
    model = build(CONFIGS[name])
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again(tokens())[0], model(tokens())[0])
    snapshot = model.read(tokens(1, 5)[0])
    save_state(snapshot, tmp_path / "state")
    found = load_state(tmp_path / "state", model)
    assert_close(model(tokens(1, 3), found.state)[0], model(tokens(1, 3), snapshot.state)[0])
