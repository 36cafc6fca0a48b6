"""lm-evaluation-harness's model: its numbers are the definition's, whatever is shared, batched, carried or cut."""

import json

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import exlstm
from exlstm.data.tokenizer import train_bpe
from exlstm.harness import scoring
from exlstm.harness.model import HarnessModel

PAIRS = [
    ("the cat", " sat"),
    ("the cat", " sat on the mat"),
    ("a", "b"),
    ("", "hello"),
    ("the cat", " ran"),
    ("one two three four five six seven ", "eight"),
    ("the cat", ""),
    ("the cat", " sat"),
]
TEXTS = [("a text of some length, longer than others",), ("",), ("q",), ("another text",), ("é漢",)]


@pytest.fixture(scope="module")
def lm():
    torch.manual_seed(0)
    return exlstm.LM(exlstm.lm_from_pattern("msMal", vocab_size=260, width=32)).double().eval()


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    exlstm.save(lm, place)
    return str(place)


def open_model(folder, **options):
    return HarnessModel(folder, **{"tokenizer": "bytes", "batch_size": 3, "device": "cpu", **options})


def requests(kind, arguments):
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


def defined(lm, context, continuation):
    """The definition: (sum of log probabilities of the continuation after the context, is each the most likely)."""
    tokens_BT = torch.tensor([[*context, *continuation]])
    log_probs_BTC = lm(tokens_BT)[0].log_softmax(-1)[:, len(context) - 1 : -1]
    targets_BT = tokens_BT[:, len(context) :]
    total = log_probs_BTC.gather(2, targets_BT[..., None]).sum().item()
    return total, bool((log_probs_BTC.argmax(-1) == targets_BT).all())


def ids(text):
    return [256, *text.encode()]


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_log_likelihoods(lm, folder, batch_size, monkeypatch):
    # texts in several pieces, and logits a few at a time
    monkeypatch.setattr(scoring, "STEPS", 5)
    monkeypatch.setattr(scoring, "LOGITS", 260 * 7)
    model = open_model(folder, batch_size=batch_size)
    found = model.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        space = len(context) - len(context.rstrip())
        context, continuation = context[: len(context) - space], context[len(context) - space :] + continuation
        expected = defined(lm, ids(context), list(continuation.encode()))
        assert (total, greedy) == (pytest.approx(expected[0], abs=1e-9), expected[1])


def test_the_most_likely_continuation_is_greedy(lm, folder):
    context, greedy = ids("the cat"), []
    for _ in range(3):
        greedy.append(int(lm(torch.tensor([context + greedy]))[0][0, -1].argmax()))
    other = [*greedy[:-1], (greedy[-1] + 1) % 256]
    found = open_model(folder)._loglikelihood_tokens(
        [(None, context, greedy), (None, context, other)], disable_tqdm=True
    )
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_a_context_is_read_once(folder, monkeypatch):
    """Four choices of one context: its tokens go through the model once, not four times."""
    model, seen = open_model(folder, batch_size=8), []
    stack = model.model.stack
    monkeypatch.setattr(
        model.model, "stack", lambda x, *rest, **named: seen.append(x.numel()) or stack(x, *rest, **named)
    )
    pairs = [("c" * 100, letter) for letter in "abcd"]
    model.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert sum(seen) == 100 + 4  # the boundary and 99 letters, then the last one with each choice


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_text_is_read_whole(lm, folder, batch_size, monkeypatch):
    monkeypatch.setattr(scoring, "STEPS", 7)
    found = open_model(folder, batch_size=batch_size).loglikelihood_rolling(
        requests("rolling", TEXTS), disable_tqdm=True
    )
    for (text,), total in zip(TEXTS, found, strict=True):
        assert total == pytest.approx(defined(lm, [256], list(text.encode()))[0] if text else 0.0, abs=1e-9)


def test_a_window_forgets_what_is_before_it(lm, folder):
    """Windows of 8 that do not overlap: the first predicts 8 tokens after the boundary, the next 8 after its last."""
    text = list(b"abcdefghijklmnopqrst")
    expected = defined(lm, [256], text[:8])[0] + defined(lm, [text[7]], text[8:16])[0]
    # the last window is as long as the others and counts only what is new
    expected += defined(lm, text[11:16], text[16:])[0]
    model = open_model(folder, window=8)
    (found,) = model.loglikelihood_rolling(requests("rolling", [(bytes(text).decode(),)]), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-9)
    ((cut, _),) = model.loglikelihood(requests("choice", [("a long context", "xyz")]), disable_tqdm=True)
    assert cut == pytest.approx(defined(lm, list(b"ontext"), list(b"xyz"))[0], abs=1e-9)
    assert (model.max_length, open_model(folder).max_length > 2**30) == (8, True)
    with pytest.raises(ValueError, match="9 tokens, more than the window of 8"):
        model.loglikelihood(requests("choice", [("a", "123456789")]), disable_tqdm=True)


def test_contexts_without_the_boundary(lm, folder):
    model = open_model(folder, add_bos_token=False)
    found = model.loglikelihood(requests("choice", PAIRS[:1] + PAIRS[3:4]), disable_tqdm=True)
    expected = [defined(lm, list(b"the cat"), list(b" sat")), defined(lm, [256], list(b"hello"))]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-9)


def test_answers(lm, folder):
    """Greedy answers are the model's own, up to a stop string; the rest ends at the limit."""
    context, greedy = ids("ab"), []
    for _ in range(12):
        logits_C = lm(torch.tensor([context + greedy]))[0][0, -1, :257]
        greedy.append(int(logits_C.argmax()))
    text = bytes(token for token in greedy if token < 256).decode(errors="replace")
    stop = text[5]
    model = open_model(folder)
    found = model.generate_until(
        requests(
            "generate",
            [
                ("ab", {"until": [], "max_gen_toks": 12}),
                ("ab", {"until": [stop], "max_gen_toks": 12}),
                ("ab", {"until": ["", "@@@"], "max_gen_toks": 0}),
                ("ab", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12}),
                ("ab", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12}),
                ("", {"max_gen_toks": 1}),
            ],
        ),
        disable_tqdm=True,
    )
    assert found[:3] == [text, text[: text.index(stop)], ""]
    # two samples of one prompt differ, and come again with the same seed
    assert found[3] != found[4]
    again = open_model(folder).generate_until(
        requests(
            "generate",
            [("ab", {"until": [], "max_gen_toks": 1})] * 3
            + [("ab", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12})],
        ),
        disable_tqdm=True,
    )
    assert again[3] == found[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"typical_p": 0.5}, "sets 'typical_p' for generation"),
        ({"num_beams": 4}, "num_beams is 4"),
    ],
)
def test_settings_of_generation_that_are_not_there(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        open_model(folder).generate_until(requests("generate", [("a", settings)]), disable_tqdm=True)


def test_the_tokenizer_is_the_one_in_the_folder(lm, folder, tmp_path):
    """Tokenizers in our form and in that of transformers; the one of a run is read with the run."""
    exlstm.save(lm, tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        HarnessModel(str(tmp_path))
    tokenizer = train_bpe([b"some text, some more text"] * 9, 259)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    assert HarnessModel(str(tmp_path)).tok_encode("some") == [tokenizer.boundary, *tokenizer.encode(b"some")]
    assert HarnessModel(str(tmp_path), tokenizer="bytes").tok_encode("é", False) == [0xC3, 0xA9]
    small = exlstm.LM(exlstm.lm_from_pattern("m", vocab_size=200, width=16))
    exlstm.save(small, tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="tokenizer has 257 tokens but the model only 200"):
        HarnessModel(str(tmp_path), tokenizer="bytes")


def test_a_run_with_its_own_tokenizer(lm, tmp_path):
    """The best checkpoint by validation, or the one of a step."""
    other = exlstm.LM(exlstm.lm_from_pattern("m", vocab_size=260, width=16))
    for step, model, score in ((3, lm, 1.0), (7, other, 2.0)):
        exlstm.save(model, tmp_path / f"checkpoints/step-{step:08d}")
        position = {"validation_bits_per_byte": score}
        (tmp_path / f"checkpoints/step-{step:08d}/trainer.json").write_text(json.dumps(position))
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "train": {}, "model": {}, "data": {}}))
    (tmp_path / "tokenizer.json").write_text('{"kind": "bytes"}')
    assert HarnessModel(str(tmp_path), device="cpu").model.config == lm.config
    assert HarnessModel(str(tmp_path), device="cpu", checkpoint=7).model.config == other.config
    assert HarnessModel(str(tmp_path), device="cpu", checkpoint="last").tok_encode("a") == [256, 97]


def test_by_name_and_by_words(folder):
    cls = get_model("exlstm")
    assert cls is HarnessModel
    model = cls.create_from_arg_string(
        f"pretrained={folder},tokenizer=bytes,window=64", {"batch_size": 2, "device": "cpu"}
    )
    assert (model.window, model.batch_size, str(model.device)) == (64, 2, "cpu")
    assert next(open_model(folder, weights="bfloat16").model.parameters()).dtype == torch.bfloat16
    for options, message in [
        ({"window": 0}, "window is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"weights": "int3"}, "weights are 'int3'"),
        ({"device": "nowhere"}, "is not on this machine"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_model(folder, **options)
