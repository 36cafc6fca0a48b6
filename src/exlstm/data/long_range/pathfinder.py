"""Paths of dashes with two marks: are the marks at the ends of one path? A generator of ours, as Pathfinder is.

An image has two long paths of dashes that bend a little from dash to dash, and shorter ones besides. Marked are both
ends of one long path, or an end of each. It is read pixel by pixel, in nine shades. Linsley et al. (2018) made the
original, of which the Long Range Arena has images; these are not they.
"""

from math import isqrt, pi

import numpy as np
from numpy.typing import NDArray

from exlstm.data.long_range.contract import ClassTask, Sampled
from exlstm.data.tasks.contract import SplitName

SHADES = 9
_GAP, _DASH = 1.2, 1.6  # pixels between dashes, and of a dash
_BEND = 0.45  # radians from one dash to the next, at most
_APART = 2.2  # pixels between two paths
_TRIES, _TRIES_OF_OTHERS = 8, 2  # fifties of paths that are drawn until one has room
_AT_ONCE = 50

Points = NDArray[np.float64]


def _drawn(random: np.random.Generator, side: int, dashes: int) -> Points:
    """Paths that begin anywhere in an image: ends of their dashes [_AT_ONCE, dashes, 2, 2]."""
    bends = random.uniform(-_BEND, _BEND, size=(_AT_ONCE, dashes))
    bends[:, 0] = random.uniform(0, 2 * pi, size=_AT_ONCE)
    angle = bends.cumsum(1)
    way = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    end = random.uniform(2, side - 3, size=(_AT_ONCE, 1, 2)) + (_DASH + _GAP) * way.cumsum(1) - _GAP * way
    return np.stack([end - _DASH * way, end], axis=2)


def _have_room(paths: Points, side: int, taken: Points) -> NDArray[np.bool_]:
    """Which paths stay inside, away from points that are taken, and away from themselves but for two dashes before."""
    dashes = paths.shape[1]
    inside = (paths.min((1, 2, 3)) >= 1) & (paths.max((1, 2, 3)) <= side - 2)
    between = np.linalg.norm(paths[:, :, None, :, None] - paths[:, None, :, None], axis=-1).min((3, 4))
    near = (between < _APART) & np.tri(dashes, k=-3, dtype=bool)
    away = np.linalg.norm(paths[..., None, :] - taken, axis=-1).min((1, 2, 3), initial=np.inf) >= _APART
    found: NDArray[np.bool_] = inside & ~near.any((1, 2)) & away
    return found


def _path(random: np.random.Generator, side: int, dashes: int, taken: Points, tries: int) -> Points | None:
    """Ends of dashes [dashes, 2, 2] of a path with room, or None."""
    for _ in range(tries):
        paths = _drawn(random, side, dashes)
        have_room: Points = paths[_have_room(paths, side, taken)]
        if len(have_room):
            path: Points = have_room[0]
            return path
    return None


def _paths(random: np.random.Generator, side: int, lengths: list[int]) -> list[Points]:
    """Paths of these numbers of dashes, the first two for certain, others where there is room."""
    while True:
        found: list[Points] = []
        for number, dashes in enumerate(lengths):
            taken = np.concatenate([path.reshape(-1, 2) for path in found]) if found else np.empty((0, 2))
            path = _path(random, side, dashes, taken, _TRIES if number < 2 else _TRIES_OF_OTHERS)
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
