"""Errors that name a line of a file."""


def error_at(place: str, number: int, what: str, remedy: str) -> ValueError:
    """A mistake in line `number` of the file `place`."""
    return ValueError(f"line {number} of {place} {what}; {remedy}.")
