"""The model in transformers' clothes computes what the LM computes, wherever padding is, with a cache and without."""

import pytest
import torch
from hf_cases import KINDS, VOCAB, both, build, padded, tokens
from torch.testing import assert_close

import exlstm
from exlstm.hf import ExlstmCache, ExlstmConfig, ExlstmForCausalLM, from_lm

# three rows of 7, 4 and 2 tokens in 7 columns
COLUMNS = {
    "left": [range(7), range(3, 7), range(5, 7)],
    "right": [range(7), range(4), range(2)],
    "middle": [range(7), (0, 3, 4, 6), (2, 5)],
    "mixed": [range(7), range(3, 7), (0, 1)],
}
LENGTHS = (7, 4, 2)
ROWS = [tokens(length, seed=length) for length in LENGTHS]


@pytest.mark.parametrize(
    "options", [{}, {"tie_embeddings": True, "logit_cap": 3.0, "norm": "rms"}], ids=["plain", "other"]
)
def test_logits_are_those_of_the_lm(options):
    lm, model = both(**options)
    input_ids = tokens(2, 9)
    expected, _ = lm(input_ids)
    output = model(input_ids)
    assert torch.equal(output.logits, expected)
    assert torch.equal(model(input_ids, torch.ones(2, 9), return_dict=False)[0], expected)
    assert torch.equal(model(inputs_embeds=lm.embed(input_ids)).logits, expected)
    for keep in (1, 3, torch.tensor([0, 4])):
        columns = slice(-keep, None) if isinstance(keep, int) else keep
        assert_close(model(input_ids, logits_to_keep=keep).logits, expected[:, columns])


@pytest.mark.parametrize("pattern", ["m", "lsa"])
def test_without_a_norm_at_the_end(pattern):
    lm, model = both(pattern, out_norm=False, norm_bias=True)
    input_ids = tokens(2, 5)
    output = model(input_ids, output_hidden_states=True)
    assert torch.equal(output.logits, lm(input_ids)[0])
    assert_close(lm.read_out(output.hidden_states[-1]), output.logits)


def test_hidden_states_are_the_embedding_each_block_and_the_normed_end():
    lm, model = both()
    input_ids = tokens(2, 5)
    states = model(input_ids, output_hidden_states=True).hidden_states
    assert len(states) == len(KINDS) + 1
    assert torch.equal(states[0], lm.embed(input_ids))
    x_BTD, _ = lm.blocks[0](states[0])
    assert torch.equal(states[1], x_BTD)
    assert_close(lm.read_out(states[-1]), lm(input_ids)[0])


@pytest.mark.parametrize("place", [None, *COLUMNS])
def test_gradients_reach_the_hidden_states(place):
    _, model = both("ms")
    input_ids, mask = (tokens(3, 7), None) if place is None else padded(ROWS, COLUMNS[place])
    output = model(input_ids, mask, output_hidden_states=True)
    for x_BTD in output.hidden_states:
        x_BTD.retain_grad()
    output.logits[:, -1].sum().backward()
    assert all(bool(x_BTD.grad.any(2).any(1).all()) for x_BTD in output.hidden_states)
    assert_close(model(input_ids, mask).logits, output.logits)


@pytest.mark.parametrize("tied", [False, True])
def test_what_was_trained_stays_when_the_vocabulary_grows(tied):
    _, model = both("m", torch.float32, tie_embeddings=tied)
    before = model.get_output_embeddings().weight.detach().clone(), model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(VOCAB + 9)
    model.post_init()
    for old, matrix in zip(before, (model.get_output_embeddings(), model.get_input_embeddings()), strict=True):
        assert torch.equal(matrix.weight[:VOCAB], old)
    assert model(tokens(1, 3)).logits.shape[-1] == VOCAB + 9


@pytest.mark.parametrize("place", COLUMNS)
def test_padding_changes_nothing(place):
    """Each row gives what it gives alone, and so does going on from the cache, with a mask over all that was read."""
    lm, model = both()
    # padding that is no token of the model does no harm either
    input_ids, mask = padded(ROWS, COLUMNS[place], pad=VOCAB + 5)
    output = model(input_ids, mask)
    more, more_mask = padded([tokens(3, seed=8), tokens(1, seed=9), tokens(2, seed=10)], [range(3), (1,), (0, 2)])
    after = model(more, torch.cat([mask, more_mask], 1), past_key_values=output.past_key_values)
    for row, (line, columns) in enumerate(zip(ROWS, COLUMNS[place], strict=True)):
        alone = model(line[None])
        assert_close(output.logits[row, list(columns)], alone.logits[0])
        # padding behind a token shows what follows that token: generate reads the last column
        assert_close(output.logits[row, -1], alone.logits[0, -1])
        here = more_mask[row].bool()
        next_alone = model(more[row : row + 1, here], past_key_values=alone.past_key_values)
        assert_close(after.logits[row, here], next_alone.logits[0])


def test_a_row_of_padding_leaves_its_state_as_it_was():
    _, model = both()
    cache = model(tokens(2, 4)).past_key_values
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    after = model(tokens(2, 3, seed=1), mask, past_key_values=cache).past_key_values
    again = model(tokens(2, 2, seed=2), past_key_values=after).logits[1]
    assert_close(again, model(tokens(2, 2, seed=2), past_key_values=cache).logits[1])


def test_a_cache_is_a_value():
    _, model = both()
    start = model(tokens(2, 5)).past_key_values
    first = model(tokens(2, 3, seed=1), past_key_values=start)
    model(tokens(2, 6, seed=2), past_key_values=start)
    again = model(tokens(2, 3, seed=1), past_key_values=start)
    assert torch.equal(first.logits, again.logits)
    assert (start.get_seq_length(), again.past_key_values.get_seq_length(), start.batch_size) == (5, 8, 2)


def test_rows_of_a_cache():
    _, model = both()
    one, two = tokens(1, 5), tokens(1, 5, seed=1)
    cache, following = model(torch.cat([one, two])).past_key_values, tokens(1, 2, seed=2)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    cache.reorder_cache(torch.tensor([3, 0, 1]))
    logits = model(following.expand(3, -1), past_key_values=cache).logits
    for row, prompt in enumerate((two, one, one)):
        assert_close(logits[row], model(torch.cat([prompt, following], 1)).logits[0, -2:])
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (0, -1, 0)


@pytest.mark.parametrize(("place", "use_cache"), [("left", True), ("right", True), ("right", False)])
@pytest.mark.filterwarnings("ignore:.*right-padding was detected")
def test_a_batch_generates_what_each_prompt_generates_alone(place, use_cache):
    _, model = both()
    input_ids, mask = padded(ROWS, COLUMNS[place])
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": use_cache, "pad_token_id": 0}
    together = model.generate(input_ids, attention_mask=mask, **settings)[:, input_ids.shape[1] :]
    for line, found in zip(ROWS, together, strict=True):
        alone = model.generate(line[None], attention_mask=torch.ones(1, len(line), dtype=torch.long), **settings)
        assert found.tolist() == alone[0, len(line) :].tolist()


def test_generate_takes_the_most_likely_token_of_the_lm():
    lm, model = both()
    input_ids = tokens(1, 4)
    found = model.generate(input_ids, max_new_tokens=5, do_sample=False)[0].tolist()
    expected = input_ids[0].tolist()
    for _ in range(5):
        expected.append(int(lm(torch.tensor([expected]))[0][0, -1].argmax()))
    assert found == expected


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 4, "num_return_sequences": 3}, {"num_beams": 3, "early_stopping": True}],
)
def test_beam_search_with_the_cache_is_beam_search_without(settings):
    _, model = both()
    input_ids, mask = padded(ROWS, COLUMNS["left"])
    # sharp enough that beams change places often
    model.head.weight.data.mul_(8)
    common = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 3, "pad_token_id": 0, **settings}
    with_cache, without = (
        model.generate(input_ids, attention_mask=mask, use_cache=use, **common) for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


def test_sampling_with_the_cache_is_sampling_without():
    _, model = both()
    input_ids, mask = padded(ROWS, COLUMNS["left"])
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        settings = {"do_sample": True, "top_k": 9, "temperature": 1.3, "num_return_sequences": 2, "pad_token_id": 0}
        found.append(model.generate(input_ids, attention_mask=mask, max_new_tokens=6, use_cache=use_cache, **settings))
    assert found[0].tolist() == found[1].tolist()
    assert len({tuple(row) for row in found[0].tolist()}) > 3


def test_a_conversation_goes_on_from_a_cache():
    _, model = both()
    input_ids = tokens(1, 5)
    first = model.generate(input_ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, tokens(1, 3, seed=4)], 1)
    expected = model.generate(longer, max_new_tokens=4, do_sample=False)
    found = model.generate(longer, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert found.tolist() == expected.tolist()
    chunked = model.generate(
        longer, past_key_values=ExlstmCache(), max_new_tokens=4, do_sample=False, prefill_chunk_size=3
    )
    assert chunked.tolist() == expected.tolist()


def test_the_lm_of_a_model_shares_its_weights():
    lm, model = both()
    assert model.lm is lm
    assert "_lm" not in dict(model.named_modules())
    assert list(model.state_dict()) == list(lm.state_dict())
    model.train()
    assert model.lm.training
    model.eval()
    model.resize_token_embeddings(VOCAB + 3)
    assert model.lm.config.vocab_size == VOCAB + 3
    assert_close(model.lm(tokens(1, 4))[0], model(tokens(1, 4)).logits)
    assert model.config.lm_config() == model.lm.config


def test_fresh_weights_are_those_of_a_fresh_lm():
    config = build().config
    torch.manual_seed(1)
    model = ExlstmForCausalLM(ExlstmConfig.from_lm(config))
    torch.manual_seed(1)
    expected = exlstm.LM(config).state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "both given or both missing"),
        ({"input_ids": tokens(2, 3), "inputs_embeds": torch.zeros(2, 3, 32)}, "both given or both missing"),
        ({"input_ids": tokens(3)}, r"input_ids have shape \(3,\)"),
        ({"input_ids": torch.full((1, 2), VOCAB)}, f"token {VOCAB} is outside the vocabulary of {VOCAB}"),
        ({"inputs_embeds": torch.zeros(2, 3, 31)}, r"\(2, 3, 31\); pass \[batch, time, 32\]"),
        ({"input_ids": tokens(2, 3), "attention_mask": torch.ones(2, 2)}, r"attention_mask has shape \(2, 2\)"),
        ({"input_ids": tokens(2, 3), "attention_mask": torch.ones(2, 1, 3, 3)}, r"attention_mask has shape \(2, 1"),
        ({"input_ids": tokens(2, 3), "past_key_values": ((),)}, "past_key_values is a tuple"),
        ({"input_ids": tokens(2, 3), "labels": tokens(2, 4)}, r"labels have shape \(2, 4\)"),
    ],
)
def test_input_that_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        both("m")[1](**arguments)


def test_a_cache_of_other_rows_is_refused():
    _, model = both("m")
    cache = model(tokens(2, 3)).past_key_values
    with pytest.raises(ValueError, match="for these rows"):
        model(tokens(3, 3), past_key_values=cache)
    with pytest.raises(ValueError, match="cannot forget its last 2 tokens"):
        cache.crop(2)


def test_what_transformers_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="int8 weights"):
        from_lm(exlstm.quantize(build("m", torch.float32), "int8"))
    with pytest.raises(ValueError, match="no blocks"):
        ExlstmConfig().lm_config()
