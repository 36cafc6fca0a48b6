"""Numbers in lines of text, and errors that name a line of a file."""

import math
from collections.abc import Collection


def error_at(place: str, number: int, what: str, remedy: str) -> ValueError:
    """A mistake in line `number` of the file `place`."""
    return ValueError(f"line {number} of {place} {what}; {remedy}.")


def number_of(word: str, missing: Collection[str]) -> float | None:
    """The number that a word means, NaN for one of `missing`, in small letters; None for what is no finite number."""
    if word.lower() in missing:
        return math.nan
    try:
        found = float(word)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
