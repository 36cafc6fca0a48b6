"""Which prompts are read in a step, and how much of each: pure functions of what is left.

While sequences are decoded, a step reads at most a budget of tokens, so that they keep their pace. Within it the
shortest go first, so that a short prompt does not wait for a long one; a prompt that has been passed over often goes
before them; and the oldest long one always gets a quarter, so that a stream of short ones does not starve it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE = 8  # steps in which a prompt may be passed over
SHARE = 4  # a prompt that is longer than a budget gets at least one part in so many
MOST_WASTE = 2  # padded tokens of a call, in units of those that are read


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What is left of a prompt. left: tokens. chunk: of these, those that a call may read. passed: steps without."""

    left: int
    chunk: int
    passed: int = 0


def shares(prompts: Sequence[Waiting], budget: int) -> list[int]:
    """Tokens that each prompt, in order of arrival, gets of a budget; their sum is at most that."""
    given, rest = [0] * len(prompts), budget
    oldest = next((place for place, prompt in enumerate(prompts) if prompt.left > budget), None)
    if oldest is not None:
        given[oldest] = min(prompts[oldest].chunk, max(1, budget // SHARE))
        rest -= given[oldest]
    # the first of equal ones came first
    order = sorted(range(len(prompts)), key=lambda place: (prompts[place].passed < PATIENCE, prompts[place].left))
    for place in order:
        more = min(prompts[place].chunk - given[place], rest)
        given[place] += more
        rest -= more
    return given


def calls(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Groups of prompts, by place, that are read in one call each; those with nothing to read are in none.

    Rows of a call are padded to its longest, so only prompts of like sizes go together. most: prompts of a call.
    """
    order = sorted((place for place, size in enumerate(sizes) if size), key=lambda place: sizes[place])
    groups: list[list[int]] = []
    read = 0
    for place in order:
        size = sizes[place]
        fits = bool(groups) and len(groups[-1]) < most
        if fits and size * (len(groups[-1]) + 1) <= MOST_WASTE * (read + size):
            groups[-1].append(place)
            read += size
        else:
            groups.append([place])
            read = size
    return [sorted(group) for group in groups]
