"""The n-gram model against its definition, and gzip and xz against the tools' own settings."""

import gzip
import lzma
import math
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.data import baselines as subject
from exlstm.data.baselines import Baselines, NGram, baselines, gzip_bits, xz_bits
from exlstm.data.text import Document

# few different bytes, so that contexts repeat; NUL among them, because documents end with it
TEXTS = st.lists(st.lists(st.sampled_from(b"abc\0\xff"), max_size=40).map(bytes), max_size=5)


class Definition:
    """Witten-Bell interpolation, one byte at a time, as the module's docstring has it."""

    def __init__(self, texts: list[bytes], order: int) -> None:
        self.order = order
        self.followers: dict[bytes, Counter[int]] = defaultdict(Counter)
        for text in texts:
            for history, byte in self.steps(text):
                for length in range(order + 1):
                    self.followers[history[order - length :]][byte] += 1

    def steps(self, text: bytes) -> list[tuple[bytes, int]]:
        padded = bytes(self.order) + text + b"\0"
        return [(padded[t - self.order : t], padded[t]) for t in range(self.order, len(padded))]

    def probability(self, history: bytes, byte: int) -> float:
        shorter = self.probability(history[1:], byte) if history else 1 / 256
        if not (seen := self.followers.get(history)):
            return shorter
        return (seen[byte] + len(seen) * shorter) / (seen.total() + len(seen))

    def bits_per_byte(self, texts: list[bytes]) -> float:
        bits = [-math.log2(self.probability(*step)) for text in texts for step in self.steps(text)]
        return sum(bits) / sum(map(len, texts))


@pytest.mark.parametrize("order", range(8))
@settings(max_examples=30)
@given(train=TEXTS, val=TEXTS, chunk=st.sampled_from([1, 7, 1 << 24]))
def test_the_model_is_its_definition(train: list[bytes], val: list[bytes], order: int, chunk: int) -> None:
    val = [*val, b"abcabd"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "CHUNK_BYTES", chunk)
        fast = NGram(train, order=order).bits_per_byte(val)
    assert fast == pytest.approx(Definition(train, order).bits_per_byte(val), rel=1e-12)


@given(train=TEXTS, context=st.binary(max_size=4) | st.lists(st.sampled_from(b"abc"), max_size=9).map(bytes))
def test_probabilities_sum_to_one(train: list[bytes], context: bytes) -> None:
    for order in (0, 2, 3, 5):
        probabilities = NGram(train, order=order).probabilities(context)
        assert probabilities.shape == (256,)
        assert (probabilities > 0).all()
        assert probabilities.sum() == pytest.approx(1, rel=1e-12)
        definition = Definition(train, order)
        history = (bytes(order) + context)[len(context) :]
        assert probabilities[97] == pytest.approx(definition.probability(history, 97), rel=1e-12)


def test_a_case_by_hand() -> None:
    """Train "ab": a, b and the end follow once each. P(a) = (1 + 3/256) / 6; after "a" came b: (1 + P(b)) / 2."""
    once = (1 + 3 / 256) / 6
    model = NGram([b"ab"], order=1)
    assert model.probabilities(b"a")[98] == pytest.approx((1 + once) / 2)
    assert model.probabilities(b"x")[97] == pytest.approx(once)
    assert model.probabilities(b"")[97] == pytest.approx((1 + once) / 2)


def test_documents_do_not_see_each_other() -> None:
    apart = NGram([b"ab"] * 3 + [b"cd"] * 3, order=2)
    joined = NGram([b"abcd" * 3], order=2)
    assert apart.probabilities(b"ab").argmax() == 0
    assert joined.probabilities(b"ab").argmax() == ord("c")


def test_compressors_are_the_tools_at_their_best() -> None:
    source = Path(subject.__file__).read_bytes()
    texts = [source[:1000], source[1000:], source[::-1], source]
    joined = b"".join(texts)
    assert gzip_bits(texts) == 8 * len(gzip.compress(joined, 9)) / len(joined)
    assert xz_bits(texts) == pytest.approx(8 * len(lzma.compress(joined, preset=9)) / len(joined), rel=1e-3)
    assert xz_bits([source, source]) < 0.6 * xz_bits([source])


def test_all_three() -> None:
    train = [Document("a", b"the cat sat on the mat\n" * 20)]
    val = [Document("b", b"the mat sat on the cat\n")]
    assert baselines(train, val) == Baselines(
        trigram=NGram([train[0].data], order=2).bits_per_byte([val[0].data]),
        gzip=gzip_bits([val[0].data]),
        xz=xz_bits([val[0].data]),
    )


@pytest.mark.parametrize("texts", [[], [b""]])
def test_no_bytes(texts: list[bytes]) -> None:
    for measure in (gzip_bits, xz_bits, NGram([b"a"], order=2).bits_per_byte):
        with pytest.raises(ValueError, match="bits per byte of 0 bytes mean nothing"):
            measure(texts)


@pytest.mark.parametrize("order", [-1, 8])
def test_an_impossible_order(order: int) -> None:
    with pytest.raises(ValueError, match=f"order={order} does not fit one 64-bit number; use 0 to 7"):
        NGram([b"a"], order=order)
