"""Every tokenizer gives back every byte, and says how many bytes each of its tokens is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from exlstm.data import progress
from exlstm.data import tokenizer as subject
from exlstm.data.decoder import Decoder
from exlstm.data.text import documents
from exlstm.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    tokenizer_from_json,
    tokenizer_from_spec,
    train_bpe,
)

ROOT = Path(__file__).parents[2]
SOURCE = [path.read_bytes() for path in sorted((ROOT / "src").rglob("*.py"))]
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
TEXT = st.text(alphabet=st.one_of(st.sampled_from(" \n\tae'_<|>07\u2581"), st.characters(exclude_categories=["Cs"])))


def byte_level() -> dict[str, Any]:
    """Like GPT-2's and GPT-NeoX's files: special tokens, NFC, a prefix space, truncation."""
    library = Library(
        models.BPE({c: i for i, c in enumerate([*sorted(ALPHABET), "ab", "Ġa"])}, [("a", "b"), ("Ġ", "a")])
    )
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|padding|>", "<|endoftext|>"])
    library.add_tokens(["    "])
    library.enable_truncation(5)
    return json.loads(library.to_str())


def sentence_piece() -> dict[str, Any]:
    """Like Llama 2's file: spaces as U+2581, one put in front, bytes as <0x00>."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581a"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocabulary, [("a", "b"), ("\u2581", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    library = Library(model)
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])
    return json.loads(library.to_str())


def metaspace() -> dict[str, Any]:
    """Unigram with Metaspace, no special tokens and no tokens for bytes."""
    tokens = [("<unk>", 0.0), ("\u2581", -1.0), ("a", -1.0), ("b", -2.0), ("\u2581ab", -1.5), ("\n", -3.0)]
    library = Library(models.Unigram(tokens, unk_id=0, byte_fallback=False))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace()
    return json.loads(library.to_str())


def word_piece() -> dict[str, Any]:
    library = Library(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return json.loads(library.to_str())


def saved(tmp_path: Path, data: Any) -> str:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    return str(path)


@pytest.fixture(scope="module")
def trained() -> BPETokenizer:
    return train_bpe(SOURCE, 600)


@pytest.fixture(scope="module", params=["bytes", "trained", "byte_level", "sentence_piece"])
def lossless(request: pytest.FixtureRequest, trained: BPETokenizer) -> Tokenizer:
    foreign = {"byte_level": (byte_level, 259), "sentence_piece": (sentence_piece, 1)}
    if request.param in foreign:
        make, boundary = foreign[request.param]
        return BPETokenizer(make(), boundary)
    return trained if request.param == "trained" else ByteTokenizer()


def check_round_trip(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    assert tokenizer.boundary not in ids
    assert tokenizer.byte_lengths[ids].sum() == len(data)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@given(
    data=st.one_of(st.binary(), TEXT.map(str.encode), st.tuples(st.binary(), TEXT).map(lambda x: x[0] + x[1].encode()))
)
def test_any_bytes_come_back(lossless: Tokenizer, data: bytes) -> None:
    if "\u2581" in data.decode("utf-8", "ignore") and "<0x00>" in json.dumps(lossless.to_json()):
        return  # SentencePiece writes spaces with this character: texts that contain it are the one exception
    check_round_trip(lossless, data)


@pytest.mark.parametrize(
    "text",
    [
        "<|endoftext|>",
        "a<|padding|>b",
        "<s></s> <0x41>",
        " a",
        "a ",
        "e\u0301 is not \u00e9",
        "x\r\n\r\n\t  y",
        "        if a:\n            b",
        "abc" * 40,
    ],
)
def test_nothing_is_special_in_a_text(lossless: Tokenizer, text: str) -> None:
    check_round_trip(lossless, text.encode())


@given(texts=st.lists(st.binary(max_size=20), max_size=6))
def test_encoding_many_is_encoding_each(lossless: Tokenizer, texts: list[bytes]) -> None:
    assert [ids.tolist() for ids in lossless.encode_documents(texts)] == [lossless.encode(data) for data in texts]


def test_the_size_of_groups_changes_nothing(trained: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*SOURCE[:6], b"", b"\xff" * 50, "\u00fc".encode() * 200, *SOURCE[6:8]]
    before = [ids.tolist() for ids in trained.encode_documents(texts)]
    monkeypatch.setattr(subject, "GROUP_CHARS", 100)
    assert [ids.tolist() for ids in trained.encode_documents(texts)] == before


def test_boundaries_stand_for_nothing(lossless: Tokenizer) -> None:
    boundary = lossless.boundary
    assert lossless.decode([boundary, *lossless.encode(b"ab"), boundary]) == b"ab"
    assert lossless.byte_lengths.shape == (lossless.vocab_size,)
    assert lossless.byte_lengths[boundary] == 0


def test_long_texts_are_cut_at_line_ends(trained: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PIECE_CHARS", 7)
    text = "one two\nthree\n\n" + "\u00fc" * 20
    pieces = list(subject._pieces(text.encode() + b"\xff\xfe" + b"end"))
    assert pieces == ["one two", "\nthree\n", "\n", "\u00fc" * 7, "\u00fc" * 7, "\u00fc" * 6, b"\xff\xfe", "end"]
    check_round_trip(trained, text.encode())


def test_json_round_trip(lossless: Tokenizer) -> None:
    again = tokenizer_from_json(json.loads(json.dumps(lossless.to_json())))
    data = b"def f(a):\n    return ab\xff\n"
    assert again.encode(data) == lossless.encode(data)
    assert (again.vocab_size, again.boundary) == (lossless.vocab_size, lossless.boundary)
    assert np.array_equal(again.byte_lengths, lossless.byte_lengths)


@given(data=st.one_of(st.binary(), TEXT.map(str.encode)))
def test_the_stream_is_the_text(trained: BPETokenizer, data: bytes) -> None:
    for tokenizer in (trained, ByteTokenizer()):
        decoder = Decoder(tokenizer)
        parts = [decoder.feed(token) for token in [tokenizer.boundary, *tokenizer.encode(data)]]
        assert "".join([*parts, decoder.finish()]) == data.decode("utf-8", "replace")


def test_the_stream_holds_back_half_a_character() -> None:
    decoder = Decoder(ByteTokenizer())
    assert [decoder.feed(byte) for byte in "a\u20acb".encode()] == ["a", "", "", "\u20ac", "b"]
    assert decoder.feed(0xE2) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.feed(ord("x")) == "x"


def test_bpe_has_the_size_asked_for_and_is_the_same_every_time(trained: BPETokenizer) -> None:
    assert trained.vocab_size == 600
    assert trained.boundary == 599
    assert train_bpe(SOURCE, 600).to_json() == trained.to_json()
    assert train_bpe([b"abab", b"\xff"], 5000).vocab_size == 258
    assert train_bpe([], 257).vocab_size == 257


def test_bpe_compresses_python() -> None:
    """Pieces that split indentation from line ends, or words from what precedes them, cost more tokens than this."""
    docs = [document.data for document in documents() if document.name.startswith(("json/", "email/", "http/"))]
    tokenizer = train_bpe(docs, 2048)
    size = sum(map(len, docs))
    assert size / sum(len(ids) for ids in tokenizer.encode_documents(docs)) > 3.75
    (ids,) = tokenizer.encode_documents([b"):\n        return"])
    assert len(ids) == 2


@pytest.mark.parametrize("vocab_size", [0, 256])
def test_a_bpe_too_small_for_bytes(vocab_size: int) -> None:
    with pytest.raises(ValueError, match=rf"a BPE of {vocab_size} tokens cannot hold .* use 257 or more"):
        tokenizer_from_spec(f"bpe:{vocab_size}", SOURCE)


@pytest.mark.parametrize("token", [-1, 600])
def test_a_token_outside_the_vocabulary(trained: BPETokenizer, token: int) -> None:
    with pytest.raises(ValueError, match=rf"token {token} is outside the vocabulary of 600"):
        trained.decode([5, token])
    with pytest.raises(ValueError, match="token 257 is outside the vocabulary of 257"):
        ByteTokenizer().decode([257])


def test_specs(tmp_path: Path, trained: BPETokenizer) -> None:
    assert isinstance(tokenizer_from_spec("bytes", []), ByteTokenizer)
    assert tokenizer_from_spec("bpe:600", SOURCE).to_json() == trained.to_json()
    for tokenizer in (ByteTokenizer(), trained):
        assert tokenizer_from_spec(saved(tmp_path, tokenizer.to_json()), []).to_json() == tokenizer.to_json()


@pytest.mark.parametrize(("make", "boundary"), [(byte_level, 259), (sentence_piece, 1)])
def test_foreign_files_are_used_as_they_are(tmp_path: Path, make: Any, boundary: int) -> None:
    spec = saved(tmp_path, make())
    tokenizer = tokenizer_from_spec(spec, SOURCE)
    assert tokenizer.boundary == boundary
    assert tokenizer.vocab_size == Library.from_file(spec).get_vocab_size()
    check_round_trip(tokenizer, SOURCE[0])


def test_a_foreign_file_without_a_boundary_gets_one(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_spec(saved(tmp_path, metaspace()), [b"ab a\n"])
    assert (tokenizer.boundary, tokenizer.vocab_size) == (6, 7)
    check_round_trip(tokenizer, b"ab  ba ab\n")
    with pytest.raises(
        ValueError, match=r"the bytes b'\\xff' are not UTF-8 and this tokenizer has no tokens for single"
    ):
        tokenizer.encode(b"ab\xff")


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (word_piece, b"a Ab", "turns b'"),
        (metaspace, b"ab c", "turns b'c' into b'<unk>'"),
    ],
)
def test_a_lossy_file_is_refused(tmp_path: Path, make: Any, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message + ".* use a lossless one"):
        tokenizer_from_spec(saved(tmp_path, make()), [data])


@pytest.mark.parametrize("data", [[], 3, {}, {"model": {"vocab": {}}}, {"added_tokens": [{}]}])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, data: Any) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a usable tokenizer\.json"):
        tokenizer_from_spec(saved(tmp_path, data), [])


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"a\.json is not a usable tokenizer\.json"):
        tokenizer_from_spec(str(path), [])


@pytest.mark.parametrize("spec", ["", "byte", "bpe", "bpe:many", "bpe:-4", "missing/tokenizer.json"])
def test_an_unknown_spec(spec: str) -> None:
    with pytest.raises(ValueError, match=f'the tokenizer \'{spec}\' is unknown; name "bytes", "bpe:4096"'):
        tokenizer_from_spec(spec, [])


@pytest.mark.parametrize("boundary", [-1, True, 10**12])
def test_a_boundary_that_is_no_token(boundary: int) -> None:
    with pytest.raises(ValueError, match=rf"the boundary is {boundary}; it must be a token, from 0 to 16777215\.$"):
        tokenizer_from_json({"kind": "bpe", "tokenizers": {}, "boundary": boundary})


@pytest.mark.parametrize("data", [{}, {"kind": "words"}, {"kind": "bpe"}, {"kind": "bpe", "tokenizers": {}}])
def test_an_unknown_kind(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a tokenizer of kind .* is unknown or incomplete"):
        tokenizer_from_json(data)


def test_a_long_text_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every few seconds; a short one is quiet."""
    texts = [b"the cat sat on a mat\n" * 1000] * 3
    train_bpe(texts, 270)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(progress, "UNIT", 1000)
    monkeypatch.setattr(subject, "UNIT", 1000)
    monkeypatch.setattr(subject, "GROUP_CHARS", 1000)
    trained = train_bpe(texts, 270)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        *(f"[training a tokenizer of 270 tokens: {done} of 63 MB]" for done in (21, 42, 63)),
        "[training a tokenizer of 270 tokens: all 63 MB read, merging pairs]",
    ]
    list(trained.encode_documents(texts))
    assert "[encoding the text: 63 MB]" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("size", [10**12, int("1" * 23)])
def test_a_bpe_that_no_memory_holds(size: int) -> None:
    with pytest.raises(ValueError, match=f"a BPE of {size} tokens is more than any text fills; use 1048576 or fewer"):
        tokenizer_from_spec(f"bpe:{size}", [b"text"])
