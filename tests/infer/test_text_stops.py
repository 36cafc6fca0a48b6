"""Text up to a stop string: never contains one, holds back what might become one, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.data.tokenizer import ByteTokenizer
from exlstm.infer.stopping import TextStream


def stream(text, stop):
    """(pieces, the stop string that was met) of a text that comes byte by byte."""
    found, pieces = TextStream(ByteTokenizer(), stop), []
    for token in text.encode():
        piece, met = found.feed(token)
        pieces.append(piece)
        if met is not None:
            return pieces, met
    piece, met = found.finish()
    return [*pieces, piece], met


def by_definition(text, stop):
    """The shortest beginning of the text that has a stop string decides."""
    for size in range(len(text) + 1):
        found = [(text[:size].find(each), each) for each in stop if each in text[:size]]
        if found:
            place, met = min(found, key=lambda each: each[0])
            return text[:place], met
    return text, None


words = st.text(alphabet="ab\né", max_size=12)


@settings(max_examples=100)
@given(text=words, stop=st.lists(st.text(alphabet="ab\né", min_size=1, max_size=4), max_size=3))
def test_equals_the_definition(text, stop):
    pieces, met = stream(text, stop)
    assert ("".join(pieces), met) == by_definition(text, stop)


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("abcd", ["zz"], ["a", "b", "c", "d", ""]),
        ("abcd", ["bx"], ["a", "", "bc", "d", ""]),
        ("aab", ["aab"], ["", "", ""]),
        ("aaab", ["aab"], ["", "", "a", ""]),
        ("xab", ["abc"], ["x", "", "", "ab"]),
    ],
)
def test_what_is_held_back(text, stop, pieces):
    assert stream(text, stop)[0] == pieces


def test_a_character_that_is_not_complete():
    found = TextStream(ByteTokenizer(), ["\ufffd"])
    assert found.feed("é".encode()[0]) == ("", None)
    assert found.finish() == ("", "\ufffd")
