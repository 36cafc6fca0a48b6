"""The chooser of backends."""

import pytest

from exlstm.runtime.backend import Choice, choose, recorded

CANDIDATES = [("fast", "it is Monday"), ("good", None), ("plain", None)]


def test_auto_takes_the_first_that_can_and_says_why():
    with recorded() as choices:
        assert choose("op", "auto", CANDIDATES) == "good"
        assert choose("op", "auto", CANDIDATES[1:]) == "good"
        assert choose("op", "plain", CANDIDATES) == "plain"
    assert choices == [
        Choice("op", "good", "not fast: it is Monday"),
        Choice("op", "good", "the fastest that there is for this device and dtype"),
        Choice("op", "plain", "asked for by name"),
    ]


def test_a_named_backend_that_cannot_run_is_an_error():
    """Only "auto" falls back."""
    with pytest.raises(ValueError, match=r"^backend 'fast' of op cannot run: it is Monday; use backend='auto'\.$"):
        choose("op", "fast", CANDIDATES)
    with pytest.raises(ValueError, match=r"^op has no backend 'quick'; use one of \['auto', 'fast', 'good', 'plain'\]"):
        choose("op", "quick", CANDIDATES)


def test_a_record_ends_with_its_block():
    with recorded() as outer:
        choose("a", "auto", CANDIDATES)
        with recorded() as inner:
            choose("b", "auto", CANDIDATES)
        choose("c", "auto", CANDIDATES)
    choose("d", "auto", CANDIDATES)
    assert [c.op for c in inner] == ["b"]
    assert [c.op for c in outer] == ["a", "c"]
