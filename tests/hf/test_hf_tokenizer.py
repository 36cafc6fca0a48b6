"""Tokenizers in transformers' files give the ids that ours give."""

import json

import pytest
import torch
import transformers
from hf_cases import build

import exlstm
from exlstm.data.tokenizer import BPETokenizer, ByteTokenizer, tokenizer_from_spec, train_bpe
from exlstm.hf import from_lm, save_tokenizer

TEXTS = [
    "hello  world\n\n\tdef f(x): return 1234567  # é 漢字 😀 e\u0301",
    "",
    " leading and trailing ",
    "<|endoftext|> is text here, and so is <s>",
    "x" * 300,
    "\ufeff\u2581\x00\r\n",
]


def bpe():
    return train_bpe([text.encode() * 20 for text in TEXTS], 400)


def name_of(description, token):
    return next(name for name, id_ in description["model"]["vocab"].items() if id_ == token)


def other_boundary():
    """A tokenizer of the library whose boundary is a special token in the middle of its vocabulary."""
    description = bpe().to_json()["tokenizers"]
    boundary = 7
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    description["added_tokens"] = [{"id": boundary, "content": name_of(description, boundary), "special": True, **off}]
    return BPETokenizer(description, boundary)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), bpe(), other_boundary()], ids=["bytes", "bpe", "other"])
def test_ids_are_the_same(tmp_path, tokenizer):
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == tokenizer.boundary
    for text in TEXTS:
        ids = tokenizer.encode(text.encode())
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs(text).input_ids == [tokenizer.boundary, *ids]
        assert theirs.decode([tokenizer.boundary, *ids], skip_special_tokens=True) == tokenizer.decode(ids).decode()
    batch = theirs(["a", "bcd"], padding=True)
    assert [sum(row) for row in batch["attention_mask"]] == [2, 4]
    assert batch["input_ids"][0][:2] == [tokenizer.boundary] * 2
    theirs.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [again(text).input_ids for text in TEXTS] == [theirs(text).input_ids for text in TEXTS]


def test_ours_reads_what_it_wrote_for_transformers(tmp_path):
    for number, tokenizer in enumerate((ByteTokenizer(), bpe())):
        folder = tmp_path / str(number)
        save_tokenizer(tokenizer, folder)
        back = tokenizer_from_spec(str(folder / "tokenizer.json"), [text.encode() for text in TEXTS])
        assert back.boundary == tokenizer.boundary
        assert all(back.encode(text.encode()) == tokenizer.encode(text.encode()) for text in TEXTS)


def test_without_the_boundary_in_front(tmp_path):
    save_tokenizer(ByteTokenizer(), tmp_path, begin_with_boundary=False)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("ab").input_ids == [97, 98]


def test_generate_stops_at_the_boundary(tmp_path):
    config = exlstm.lm_from_pattern("m", vocab_size=257, width=16)
    lm = exlstm.LM(config)
    with torch.no_grad():
        lm.head.weight.zero_()
        lm.head.weight[256] = 1
    exlstm.save(lm, tmp_path)
    save_tokenizer(ByteTokenizer(), tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.norm.weight.fill_(0)  # every logit is 0, and the first of the largest is taken
        assert model.generate(torch.tensor([[256, 97]]), max_new_tokens=3, do_sample=False).shape == (1, 5)
    assert model.generation_config.eos_token_id == 256


def test_other_settings_of_generation_stay(tmp_path):
    from_lm(build("m")).save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "top_k": 7}))
    save_tokenizer(ByteTokenizer(), tmp_path)
    data = json.loads(file.read_text())
    assert (data["top_k"], data["eos_token_id"]) == (7, 256)


def test_a_tokenizer_in_our_own_form_is_not_overwritten(tmp_path):
    content = json.dumps(ByteTokenizer().to_json())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="own form and would be lost"):
        save_tokenizer(ByteTokenizer(), tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_boundary_that_the_files_cannot_hold(tmp_path):
    description = bpe().to_json()["tokenizers"]
    with pytest.raises(ValueError, match="the boundary is token 900"):
        save_tokenizer(BPETokenizer(description, 900), tmp_path / "new")
    assert not (tmp_path / "new").exists()
