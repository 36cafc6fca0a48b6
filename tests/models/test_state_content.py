"""Bytes of states: every bit comes back, and of bytes that anyone may have written only ValueError."""

import json
import random
import struct
from dataclasses import replace
from itertools import pairwise

import pytest
import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save as library_save

from exlstm.data.model_tokenizer import tokenizer_digest
from exlstm.data.tokenizer import BPETokenizer, ByteTokenizer, train_bpe
from exlstm.infer.engine import Engine
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY
from exlstm.mixers import MIXERS
from exlstm.mixers.state import leaves, map_state, named_leaves
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.states import content, header
from exlstm.models.states.checks import COUNTING
from exlstm.models.states.file import (
    StateMismatch,
    expected_state_bytes,
    load_state,
    save_state,
    state_from_bytes,
    state_to_bytes,
)
from exlstm.models.states.snapshot import Snapshot

VOCABULARY = 23
RAGGED = [[1, 2, 3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]
MORE = [[3], [1, 2, 3, 4, 5, 6], [2, 2]]


def build(pattern, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = LM(lm_from_pattern(pattern, vocab_size=VOCABULARY, width=16, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def models():
    return {pattern: build(pattern) for pattern in ("ms", "l", "mas")}


def assert_equal(got, want):
    assert got.counts == want.counts
    assert got.weights.fingerprint() == want.weights.fingerprint()
    pairs = zip(*(named_leaves((*each.state, each.logits_BC, each.seen_BC)) for each in (got, want)), strict=True)
    for (name, x), (same, y) in pairs:
        assert (name, x.dtype, x.shape) == (same, y.dtype, y.shape)
        assert torch.equal(x, y), name


def without_denormal(x):
    if not x.is_floating_point():
        return x
    return torch.where(x.abs() < torch.finfo(x.dtype).tiny, torch.zeros_like(x), x)


def parts_of(data):
    """The header as JSON data, and the bytes behind it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(about, body):
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_metadata(data, **changes):
    about, body = parts_of(data)
    about["__metadata__"] |= changes
    return joined(about, body)


def with_number(data, name, index, number, code):
    """The bytes with another number at a place of a tensor."""
    about, body = parts_of(data)
    start, body = about[name]["data_offsets"][0], bytearray(body)
    struct.pack_into(f"<{code}", body, start + index * struct.calcsize(code), number)
    return joined(about, bytes(body))


# -------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.breadth(4)
@pytest.mark.parametrize("name", ["mlstm", "slstm", "attention", "hyena", "mega", "retention", "rglru", "linformer",
                                  *sorted(MIXERS)])  # fmt: skip
def test_every_mixer_comes_back(name):
    """Of one row, of ragged rows that were gone on from, and of a row taken out of them; to the last bit.

    Some models have denormal numbers in their states, as those of diagonal recurrences have.
    """
    model = build(name)
    ragged = model.read(RAGGED, chunk_len=3)
    for exact in (model.read([1, 2, 3]), ragged, model.read(MORE, ragged, chunk_len=2), ragged.rows(1)):
        snapshot = replace(exact, state=map_state(without_denormal, exact.state))
        found = state_from_bytes(state_to_bytes(exact), model)
        assert_equal(found, snapshot)
        assert_equal(state_from_bytes(state_to_bytes(found), model), found)
        more = MORE[: len(snapshot)]
        assert_equal(model.read(more, found), model.read(more, snapshot))


def test_whole_numbers_are_all_checked():
    """Those of every mixer belong to states that `check_counting` knows."""
    for name in MIXERS:
        state = map_state(lambda node: (), build(name).shapes(1), kind=COUNTING)
        assert {x.dtype for x in leaves(state)} <= {torch.float32, torch.bool}, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_models_of_other_precisions(dtype):
    for pattern in ("ms", "a", "hyena,m"):
        model = build(pattern, dtype)
        snapshot = model.read([1, 2, 3])
        assert_equal(state_from_bytes(state_to_bytes(snapshot), model), snapshot)


def test_a_window_and_a_table_of_positions():
    config = lm_from_pattern("a", vocab_size=VOCABULARY, width=16, heads=2)
    windowed = replace(config.blocks[0], mixer=replace(config.blocks[0].mixer, window=4))
    for changed in (replace(config, blocks=(windowed,)), replace(config, positions=9), replace(config, logit_cap=3.0)):
        model = LM(changed).eval()
        for length in (1, 3, 9):
            snapshot = model.read(list(range(length)))
            assert_equal(state_from_bytes(state_to_bytes(snapshot), model), snapshot)
    model = LM(replace(config, blocks=build("ms").config.blocks, positions=9)).eval()
    data = state_to_bytes(model.read([1, 2, 3]))
    beyond = with_number(with_metadata(data, counts="[10]"), "state.2.next_B", 0, 10, "q")
    with pytest.raises(ValueError, match="has read 10 tokens, and the model has positions for 9"):
        state_from_bytes(beyond, model)


def test_the_library_reads_ours_and_we_read_its(models):
    for model in models.values():
        data = state_to_bytes(model.read([1, 2, 3]), notes={"more": "texts"})
        found = safetensors.torch.load(data)
        about = parts_of(data)[0]["__metadata__"]
        assert about["more"] == "texts"
        theirs = library_save(found, metadata=about)
        assert theirs[8:].replace(b" ", b"")[:2] == b'{"'
        assert_equal(state_from_bytes(memoryview(theirs), model), state_from_bytes(data, model))


def test_half_the_size_in_bfloat16(models):
    model = models["mas"]
    snapshot = model.read([1, 2, 3])
    data = state_to_bytes(snapshot, dtype=torch.bfloat16)
    found = state_from_bytes(data, model)
    assert parts_of(data)[0]["__metadata__"]["dtype"] == "bfloat16"
    assert len(parts_of(data)[1]) < 0.6 * len(parts_of(state_to_bytes(snapshot))[1])
    for x, y in zip(leaves(found.state), leaves(snapshot.state), strict=True):
        assert x.dtype is y.dtype
        torch.testing.assert_close(x, y, rtol=2**-8, atol=0)
    assert state_to_bytes(found, dtype=torch.bfloat16) == data
    huge = replace(snapshot, logits_BC=torch.full_like(snapshot.logits_BC, 3.4e38))
    assert state_from_bytes(state_to_bytes(huge, dtype=torch.bfloat16), model).logits_BC.isfinite().all()
    with pytest.raises(ValueError, match=r"dtype is torch.float16; pass None"):
        state_to_bytes(snapshot, dtype=torch.float16)


def test_sizes_are_known_before(models):
    for pattern, model in models.items():
        for dtype in (None, torch.bfloat16):
            about, body = parts_of(state_to_bytes(model.read([1, 2, 3]), dtype=dtype))
            assert expected_state_bytes(model, dtype=dtype) == (None if pattern == "mas" else len(body))
            assert len(json.dumps(about)) < content.header_bytes(model)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_differs_is_named(models):
    model = models["ms"]
    data = state_to_bytes(model.read([1, 2]), tokenizer_digest="one")
    for other in (build("ms", seed=1), build("sm")):
        with pytest.raises(StateMismatch, match="a state of another model"):
            state_from_bytes(data, other)
    with pytest.raises(StateMismatch, match="a state of another tokenizer"):
        state_from_bytes(data, model, tokenizer_digest="two")
    for digest in ("one", None):
        assert_equal(state_from_bytes(data, model, tokenizer_digest=digest), model.read([1, 2]))
    # files of before do not name one
    assert len(state_from_bytes(state_to_bytes(model.read([1])), model, tokenizer_digest="one")) == 1
    for changes, message in (
        ({"kind": "weights"}, "is not a state of format 1"),
        ({"version": "2"}, "is not a state of format 1"),
        ({"dtype": "float8"}, "has numbers in the format 'float8'"),
    ):
        with pytest.raises(ValueError, match=message) as found:
            state_from_bytes(with_metadata(data, **changes), model)
        assert not isinstance(found.value, StateMismatch)


@pytest.mark.parametrize(
    "counts", ["", "null", "[]", "[0]", "[-1]", "[1.0]", "[true]", '["2"]', "[[2]]", "{}", "2", f"[{2**53 + 1}]",
               "[NaN]", f"[{'9' * 5000}]", "[" * 10_000],
)  # fmt: skip
def test_counts(models, counts):
    data = state_to_bytes(models["ms"].read([1, 2]))
    with pytest.raises(ValueError, match="does not say how many tokens its rows have read"):
        state_from_bytes(with_metadata(data, counts=counts), models["ms"])


def test_another_number_of_rows(models):
    for model in models.values():
        data = state_to_bytes(model.read([[1, 2], [3, 4]]))
        for counts in ("[2]", "[2, 2, 2]"):
            with pytest.raises(ValueError, match="does not hold the state"):
                state_from_bytes(with_metadata(data, counts=counts), model)


def test_numbers_that_no_model_writes(models):
    model = models["ms"]
    data = state_to_bytes(model.read([1, 2]))
    names = [name for name in parts_of(data)[0] if name not in ("__metadata__", "seen_BC")]
    assert len(names) > 5
    for name in names:
        for number in (float("nan"), float("inf"), float("-inf")):
            with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
                state_from_bytes(with_number(data, name, 0, number, "f"), model)
    with pytest.raises(ValueError, match="seen_BC holds bytes that are neither 0 nor 1"):
        state_from_bytes(with_number(data, "seen_BC", 3, 2, "B"), model)


def test_denormal_numbers_become_zero(models, monkeypatch):
    """At any place, also of a tensor that is checked in several parts; zeros keep their sign, others every bit."""
    monkeypatch.setattr(content, "CHUNK", 16)
    model = models["ms"]
    data = state_to_bytes(model.read([1, 2]))
    for index in (0, 7, VOCABULARY - 1):
        for number, want in ((1e-40, 0.0), (-1e-45, 0.0), (-0.0, -0.0), (1.2e-38, 1.2e-38)):
            found = state_from_bytes(with_number(data, "logits_BC", index, number, "f"), model).logits_BC[0, index]
            assert struct.pack("f", found.item()) in (struct.pack("f", want), struct.pack("f", -want))
        found = state_from_bytes(with_number(data, "logits_BC", index, -0.0, "f"), model)
        assert found.logits_BC[0, index].signbit()
        with pytest.raises(ValueError, match="logits_BC holds NaN"):
            state_from_bytes(with_number(data, "logits_BC", index, float("nan"), "f"), model)


@pytest.mark.parametrize(
    ("pattern", "name", "index"),
    [
        ("mas", "state.1.position_BS", 0), ("mas", "state.1.position_BS", 2), ("mas", "state.1.next_B", 0),
        ("hyena", "state.0.cache.seen_B", 0), ("mega", "state.0.cache.seen_B", 0),
        ("retention", "state.0.next.next_B", 0),
    ],
)  # fmt: skip
def test_indices_are_those_of_what_was_read(pattern, name, index):
    model = build(pattern)
    data = state_to_bytes(model.read([1, 2, 3, 4]))
    about, body = parts_of(data)
    old = struct.unpack_from("<q", body, about[name]["data_offsets"][0] + 8 * index)[0]
    assert_equal(state_from_bytes(with_number(data, name, index, old, "q"), model), model.read([1, 2, 3, 4]))
    for number in (-(2**63), -1, old + 1, 7, 1 << 40, 2**63 - 1):
        with pytest.raises(ValueError, match="does not fit its counts"):
            state_from_bytes(with_number(data, name, index, number, "q"), model)


def test_a_cache_has_every_step_of_its_row():
    """A masked one is missing, though the others are in order."""
    model = build("a")
    data = state_to_bytes(model.read([1, 2, 3]))
    for index, number in enumerate((-1, 0, 1)):
        data = with_number(data, "state.0.position_BS", index, number, "q")
    with pytest.raises(ValueError, match="AttentionState in it does not fit its counts"):
        state_from_bytes(data, model)


@pytest.mark.parametrize(("pattern", "node"), [("a", "state.0"), ("hyena", "state.0.cache")])
def test_caches_have_the_steps_of_their_counts(pattern, node):
    """Neither more nor fewer, and all tensors of a cache the same."""
    model = build(pattern)
    snapshot, longer = model.read([1, 2, 3]), model.read([1, 2, 3, 4])
    data = state_to_bytes(longer)
    for counts in ("[3]", "[5]", f"[{2**53}]"):
        with pytest.raises(ValueError, match=r"bytes where .* are enough for its tokens"):
            state_from_bytes(with_metadata(data, counts=counts), model)
    if pattern == "a":
        (short,), (cache,) = snapshot.state, longer.state
        for mixed in (cache._replace(v_BSGK=short.v_BSGK), cache._replace(position_BS=short.position_BS)):
            with pytest.raises(ValueError, match="of shape"):
                state_from_bytes(state_to_bytes(replace(longer, state=(mixed,))), model)
    about, body = parts_of(data)
    name = next(name for name in about if name.startswith(node))
    about[name]["shape"] = [1, 1 << 40]
    with pytest.raises(ValueError, match="cannot be read"):
        state_from_bytes(joined(about, body), model)


def test_errors_are_one_printable_line(models):
    """Names may be long, and half of a pair of surrogates, which no answer could be encoded with."""
    data = state_to_bytes(models["ms"].read([1]))
    about, body = parts_of(data)
    for name in ("\ud800" * 5000, "x\n\x1b[1m" * 3000):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        for changed in ({name: entry, **about}, {name: {**entry, "dtype": name}, **about}, {name: 1, **about}):
            with pytest.raises(ValueError, match="the state ") as found:
                state_from_bytes(joined(changed, body), models["ms"])
            assert len(str(found.value)) < 400
            assert str(found.value).isascii()
            assert str(found.value).isprintable()
    with pytest.raises(ValueError, match="has numbers in the format"):
        state_from_bytes(with_metadata(data, dtype="\ud800" * 5000), models["ms"])


def test_tensors_that_are_not_the_model_s(models):
    model = models["ms"]
    snapshot = model.read([1, 2])
    data = state_to_bytes(snapshot)
    tensors, about = safetensors.torch.load(data), parts_of(data)[0]["__metadata__"]
    name = next(iter(sorted(tensors)))
    changed = {
        "is missing": {key: x for key, x in tensors.items() if key != "logits_BC"},
        "or not the model's": tensors | {"more": torch.zeros(2)},
        "logits_BC is torch.float32 of shape": tensors | {"logits_BC": torch.zeros(VOCABULARY)},
        "logits_BC is torch.float64": tensors | {"logits_BC": torch.zeros(1, VOCABULARY, dtype=torch.float64)},
        "logits_BC is torch.int64": tensors | {"logits_BC": torch.zeros(1, VOCABULARY, dtype=torch.long)},
        "seen_BC is torch.float32": tensors | {"seen_BC": torch.zeros(1, VOCABULARY)},
        "of shape": tensors | {name: tensors[name][..., :-1].contiguous()},
        "has the dtype 'U8'": tensors | {"seen_BC": torch.zeros(1, VOCABULARY, dtype=torch.uint8)},
    }
    for message, stored in changed.items():
        with pytest.raises(ValueError, match=message):
            state_from_bytes(library_save(stored, metadata=about), model)
    retained = build("retention")
    data = state_to_bytes(retained.read([1]))
    tensors, about = safetensors.torch.load(data), parts_of(data)[0]["__metadata__"]
    tensors["state.0.next.next_B"] = tensors["state.0.next.next_B"].float()
    with pytest.raises(ValueError, match=r"next_B is torch.float32"):
        state_from_bytes(library_save(tensors, metadata=about), retained)


def test_bytes_that_are_no_safetensors(models):
    """What the library refuses, too: holes, overlaps, other lengths; and a name twice, of which it takes the last."""
    model = models["ms"]
    data = state_to_bytes(model.read([1, 2]))
    about, body = parts_of(data)
    text = json.dumps(about).encode()
    logits = about["logits_BC"]["data_offsets"]
    moved = {key: dict(value) for key, value in about.items()}
    moved["logits_BC"]["data_offsets"] = [logits[0] + 4, logits[1] + 4]
    apart = {key: dict(value) for key, value in about.items()}
    for key in apart.keys() - {"__metadata__"}:
        apart[key]["data_offsets"] = [n + (8 if n >= logits[1] else 0) for n in about[key]["data_offsets"]]
    apart["logits_BC"]["data_offsets"] = logits
    hole = joined(apart, body[: logits[1]] + bytes(8) + body[logits[1] :])
    places = sorted(value["data_offsets"] for key, value in about.items() if key != "__metadata__")
    first, second = next(pair for pair in pairwise(places) if pair[0][1] - pair[0][0] == pair[1][1] - pair[1][0])
    less = {key: dict(value) for key, value in about.items()}
    for key in less.keys() - {"__metadata__"}:
        past = second[1] - second[0] if about[key]["data_offsets"] >= second else 0
        less[key]["data_offsets"] = [n - past for n in about[key]["data_offsets"]]
    shared = joined(less, body[: second[0]] + body[second[1] :])
    listed = {**about, "__metadata__": {**about["__metadata__"], "counts": [2]}}
    twice = text[:-1] + b',"logits_BC":' + json.dumps(about["logits_BC"]).encode() + b"}"
    cases = [
        b"", data[:5], data[:8], data[:-1], data[: len(data) // 2], data + b"\0", b"\xff" * 64, joined(b"", body),
        joined(b"[]", body), joined(b"{}", body), joined(b"nonsense", body), joined(b"\xff{}", body),
        hole, shared, joined(listed, body), joined(moved, body), joined(twice, body), joined(text, body + bytes(4)),
        joined(b"{" * 60_000, body),
        joined(b'{"a":' * 9000, body),
        joined({**about, "logits_BC": {**about["logits_BC"], "shape": [-1, -VOCABULARY]}}, body),
        joined({**about, "logits_BC": {**about["logits_BC"], "shape": [1.0, VOCABULARY]}}, body),
        joined({**about, "logits_BC": {**about["logits_BC"], "data_offsets": [0]}}, body),
        joined({**about, "logits_BC": {"dtype": "F32"}}, body), joined({**about, "logits_BC": None}, body),
        joined({**about, "logits_BC": {**about["logits_BC"], "dtype": ["F32"]}}, body),
        joined({**about, "empty": {"dtype": "F32", "shape": [0], "data_offsets": [3, 3]}}, body),
        joined({**about, "__metadata__": {"kind": 1}}, body), joined({**about, "__metadata__": [1]}, body),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(ValueError, match=r"the state (cannot be read|is not a state)") as found:
            state_from_bytes(case, model)
        assert len(str(found.value)) < 400
        if case != joined(twice, body):
            with pytest.raises((SafetensorError, OverflowError)):
                safetensors.torch.load(case)


def test_a_long_header_is_refused_before_it_is_parsed(models, monkeypatch):
    model = models["ms"]
    about, body = parts_of(state_to_bytes(model.read([1])))
    data = joined(json.dumps(about).encode().ljust(content.HEADER_BYTES + 1), body)
    with monkeypatch.context() as patch:
        patch.setattr(header.json, "loads", lambda *_, **__: pytest.fail("parsed"))
        with pytest.raises(ValueError, match=r"its header has 65,537 bytes, and 65,536 are allowed"):
            state_from_bytes(data, model)
    fits = joined(json.dumps(about).encode().ljust(content.HEADER_BYTES), body)
    assert state_from_bytes(fits, model).counts == (1,)


def test_files_may_hold_many_rows(models, tmp_path):
    """Their header is longer than that of an upload."""
    model = models["l"]
    snapshot = model.read([[n % VOCABULARY] for n in range(20)]).rows([n % 20 for n in range(30_000)])
    save_state(snapshot, tmp_path / "many")
    assert_equal(load_state(tmp_path / "many", model), snapshot)


def test_a_checksum_finds_any_changed_bit(models):
    model = models["ms"]
    data = state_to_bytes(model.read([1, 2]), checksum=True)
    assert_equal(state_from_bytes(data, model), model.read([1, 2]))
    start = len(data) - len(parts_of(data)[1])
    for place in (start, start + 101, len(data) - 30):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(ValueError, match="its checksum is another"):
            state_from_bytes(bytes(changed), model)


def test_digests_tell_tokenizers_apart(tmp_path):
    bpe = train_bpe([b"some text of some words " * 20], 300)
    again = BPETokenizer(bpe.to_json()["tokenizer"], bpe.boundary) if "tokenizer" in bpe.to_json() else bpe
    digests = {tokenizer_digest(each) for each in (ByteTokenizer(), bpe, train_bpe([b"another one " * 40], 300))}
    assert len(digests) == 3
    assert tokenizer_digest(again) == tokenizer_digest(bpe)
    assert all(len(digest) == 64 for digest in digests)
    model = build("l")
    save_state(model.read([1]), tmp_path / "s", tokenizer_digest=tokenizer_digest(bpe))
    with pytest.raises(StateMismatch, match="another tokenizer"):
        load_state(tmp_path / "s", model, tokenizer_digest=tokenizer_digest(ByteTokenizer()))


# ---------------------------------------------------------------------------------------------------------------- fuzz

SPECIAL = {
    "F32": [float("nan"), float("inf"), float("-inf"), 1e-40, -0.0, 0.0, 3.4e38, -3.4e38, 1e30, 1e9, -1.0],
    "I64": [-(2**63), -2, -1, 0, 1, 2, 3, 4, 1 << 31, 1 << 53, 2**63 - 1],
    "BOOL": [0, 1, 2, 255],
}
CODES = {"F32": "f", "I64": "q", "BOOL": "B"}
TEXTS = ["[1]", "[4]", "[4, 4]", "[-4]", "2", "", "null", "F64", "bfloat16", "state", "\ud800", "0" * 64]


def mutated(data, rng):
    """The bytes with a change of some kind."""
    return rng.choice([flipped, cut, spliced, renumbered, renumbered, reheaded, reheaded])(data, rng)


def flipped(data, rng):
    """With some changed bits, in the header or behind it."""
    header_end = 8 + int.from_bytes(data[:8], "little")
    places = rng.choice([range(header_end), range(header_end, len(data)), range(8)])
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        changed[rng.choice(places)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data, rng):
    """Cut off, or with more behind it."""
    size = rng.choice([rng.randrange(len(data)), len(data) - rng.randrange(16), 8, 9])
    return data[:size] if rng.random() < 0.7 else data + rng.randbytes(rng.randrange(1, 64))


def spliced(data, rng):
    """With a part taken out, doubled, or in another place."""
    first, second = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice([data[:first] + data[second:], data[:second] + data[first:],
                       data[:8] + data[first:second] + data[8:first] + data[second:]])  # fmt: skip


def renumbered(data, rng):
    """With another number in a tensor."""
    about, _ = parts_of(data)
    name = rng.choice([name for name in about if name != "__metadata__"])
    tag, (start, end) = about[name]["dtype"], about[name]["data_offsets"]
    code = CODES[tag]
    return with_number(
        data, name, rng.randrange((end - start) // struct.calcsize(code)), rng.choice(SPECIAL[tag]), code
    )


def reheaded(data, rng):
    """With another entry in the header."""
    about, body = parts_of(data)
    name, other = (rng.choice([name for name in about if name != "__metadata__"]) for _ in range(2))
    kind, entry, metadata = rng.randrange(7), about[name], about["__metadata__"]
    if kind == 0:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice([-1, 0, 1, 2, 5, 1 << 62, 1.5, None, "1"])
    elif kind == 1:
        entry["data_offsets"][rng.randrange(2)] = rng.choice([-1, 0, 8, len(body), 1 << 62, None])
    elif kind == 2:
        entry["dtype"] = rng.choice(["F64", "F16", "BF16", "I64", "BOOL", "U8", "F8", None, 3])
    elif kind == 3:
        about[name], about[other] = about[other], about[name]
    elif kind == 4:
        about[rng.choice([f"{name}.0", other, "", "state"])] = about.pop(name)
    elif kind == 5:
        metadata[rng.choice(list(metadata))] = rng.choice(TEXTS)
    else:
        metadata.pop(rng.choice(list(metadata)))
    return joined(about, body)


def going_on(model, snapshots):
    """Tokens of an honest sequence in an engine, beside those that go on from these snapshots."""
    engine = Engine(model, slots=1 + len(snapshots))
    honest = engine.submit(Request(prompt=[3, 1, 4], max_tokens=6, sampling=GREEDY))
    for snapshot in snapshots:
        engine.submit(Request(after=snapshot, max_tokens=4, sampling=GREEDY))
    return [event.token for event in engine.run() if event.request == honest]


@pytest.mark.parametrize(
    "cases", [pytest.param(300, id="300"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("pattern", ["ms", "l", "mas"])
def test_mutations(models, pattern, cases):
    """ValueError, or a state that the model goes on from; an honest sequence beside it keeps its tokens."""
    model, rng = models[pattern], random.Random(f"{pattern}{cases}")
    data, want = state_to_bytes(model.read([1, 2, 3, 4])), going_on(model, [])
    taken: list[Snapshot] = []
    accepted = 0
    for _ in range(cases):
        changed = mutated(data, rng)
        try:
            found = state_from_bytes(changed, model)
        except ValueError:
            continue
        # the library has nothing against what was taken
        assert safetensors.torch.load(changed).keys() == parts_of(changed)[0].keys() - {"__metadata__"}
        accepted += 1
        numbers = [x for x in (*leaves(found.state), found.logits_BC) if x.is_floating_point()]
        logits_BTC, _ = model(torch.full((len(found), 1), 5), found.state)
        # numbers beyond all that a model writes may overflow: their own row ends with an error, and no other
        assert logits_BTC.isfinite().all() or max(float(x.abs().max()) for x in numbers) >= 1e9
        taken += [found] if len(found) == 1 else []
        if len(taken) == 7:
            assert going_on(model, taken) == want
            taken = []
    assert going_on(model, taken) == want
    assert cases * 0.02 < accepted < cases * 0.6
