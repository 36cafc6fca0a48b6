"""Paths of dashes with two marks: are the marks at the ends of one path? A generator of ours, as Pathfinder is.

An image has two long paths of dashes that bend a little from dash to dash, and shorter ones besides. Marked are both
ends of one long path, or an end of each. It is read pixel by pixel, in nine shades. Linsley et al. (2018) made the
original, of which the Long Range Arena has images; these are not they.
"""

from math import cos, isqrt, pi, sin

import numpy as np
from numpy.typing import NDArray

from exlstm.data.long_range.contract import ClassTask, Sampled
from exlstm.data.tasks.contract import SplitName

SHADES = 9
_GAP, _DASH = 1.2, 1.6  # pixels between dashes, and of a dash
_BEND = 0.45  # radians from one dash to the next, at most
_APART = 2.2  # pixels between two paths
_TRIES = 400

Points = NDArray[np.float64]


def _path(random: np.random.Generator, side: int, dashes: int, taken: Points) -> Points | None:
    """Ends of dashes [dashes, 2, 2] of a path that stays inside and away from points that are taken; or None."""
    place, angle = random.uniform(2, side - 3, size=2), random.uniform(0, 2 * pi)
    found: list[Points] = []
    for _ in range(dashes):
        way = np.array([cos(angle), sin(angle)])
        dash = np.stack([place, place + _DASH * way])
        if dash.min() < 1 or dash.max() > side - 2:
            return None
        if len(taken) and np.linalg.norm(taken[:, None] - dash[None], axis=-1).min() < _APART:
            return None
        own = np.reshape(found, (-1, 2))[:-4]  # of this path, what is not just before
        if len(own) and np.linalg.norm(own[:, None] - dash[None], axis=-1).min() < _APART:
            return None
        found.append(dash)
        place, angle = dash[1] + _GAP * way, angle + random.uniform(-_BEND, _BEND)
    return np.array(found)


def _paths(random: np.random.Generator, side: int, lengths: list[int]) -> list[Points]:
    """Paths of these numbers of dashes, the first two for certain, others where there is room."""
    while True:
        found: list[Points] = []
        for number, dashes in enumerate(lengths):
            taken = np.concatenate([path.reshape(-1, 2) for path in found]) if found else np.empty((0, 2))
            drawn = (_path(random, side, dashes, taken) for _ in range(_TRIES))
            path = next((path for path in drawn if path is not None), None)
            if path is not None:
                found.append(path)
            elif number < 2:
                break
        if len(found) >= 2:
            return found


def _image(side: int, paths: list[Points], marks: list[Points]) -> NDArray[np.float64]:
    """Brightness [side, side] of 0 to 1: dashes a pixel thick, marks as discs."""
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)[..., None, :].astype(float)
    dashes = np.concatenate(paths)
    start, way = dashes[:, 0], dashes[:, 1] - dashes[:, 0]
    along = np.clip(((grid - start) * way).sum(-1) / (way**2).sum(-1), 0, 1)[..., None]
    near = np.linalg.norm(grid - (start + along * way), axis=-1).min(-1)
    drawn: NDArray[np.float64] = 0.7 * np.clip(1 - near, 0, 1)
    disc = np.linalg.norm(grid - np.array(marks), axis=-1).min(-1)
    image: NDArray[np.float64] = np.maximum(drawn, np.clip(1.9 - disc, 0, 1))
    return image


def _sample(split: SplitName, random: np.random.Generator, low: int, high: int) -> Sampled:
    side = isqrt(high)
    if side * side != high or low != high or side < 12:
        raise ValueError(f"an image of {low} to {high} pixels is no square of at least 12 by 12; ask for 256 or 1024.")
    long = max(3, round(side * 0.28))
    paths = _paths(random, side, [long, long, *([max(2, long // 3)] * (side // 8))])
    connected = int(random.integers(2))
    first, second = (int(x) for x in random.integers(2, size=2))
    ends = [[path[0, 0], path[-1, 1]] for path in paths[:2]]
    marks = ends[first] if connected else [ends[0][first], ends[1][second]]
    image = _image(side, paths, marks)
    return 1 + np.rint(image * (SHADES - 1)).astype(np.int64).ravel(), connected


PATHFINDER = ClassTask(
    name="pathfinder_own",
    about="two marks on paths of dashes: is it one path? A generator of ours; 32 by 32 pixels are 1,024 tokens",
    vocab_size=1 + SHADES,
    classes=2,
    sample=_sample,
)
