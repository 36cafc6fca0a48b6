"""Classification of source text, in bytes: stand-ins for LRA's Text and Retrieval, whose texts have to be downloaded.

    stdlib_package    which of eight packages of the standard library is this window from?
    stdlib_match      two windows: are they from one file?

Files of a split are in no other, by a hash of their name.
"""

from functools import lru_cache

import numpy as np

from exlstm.data.long_range.contract import ClassTask, Sampled
from exlstm.data.tasks.contract import SplitName
from exlstm.data.text import Document, source_code, split_documents

CLASSES = 8
_BORDER = 257  # between the two windows of a pair; bytes are 1 to 256


@lru_cache(maxsize=1)
def _files() -> dict[SplitName, list[Document]]:
    split = split_documents(source_code(), val=0.15, test=0.15)
    return {"train": split.train, "validation": split.val, "test": split.test}


@lru_cache(maxsize=1)
def packages() -> tuple[str, ...]:
    """The packages with the most text, of those that have files in every split."""
    sizes: dict[str, int] = {}
    for name in {document.name.split("/")[0] for document in _files()["test"] if "/" in document.name}:
        own = [_of(name, split) for split in _files()]
        if all(own):
            sizes[name] = sum(len(document.data) for files in own for document in files)
    if len(sizes) < CLASSES:
        raise ValueError(f"this standard library has {len(sizes)} large packages, not {CLASSES}; use another.")
    return tuple(sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:CLASSES]))


@lru_cache(maxsize=256)
def _of(package: str, split: SplitName) -> list[Document]:
    return [document for document in _files()[split] if document.name.split("/")[0] == package]


def _window(random: np.random.Generator, data: bytes, length: int) -> list[int]:
    start = int(random.integers(max(1, len(data) - length)))
    return [1 + byte for byte in data[start : start + length]]


def _drawn(random: np.random.Generator, files: list[Document]) -> Document:
    """A file, with a probability like its size."""
    sizes = np.array([len(document.data) for document in files], dtype=float)
    return files[int(random.choice(len(files), p=sizes / sizes.sum()))]


def _package(split: SplitName, random: np.random.Generator, low: int, high: int) -> Sampled:
    names = packages()
    label = int(random.integers(len(names)))
    length = int(random.integers(low, high + 1))
    return _window(random, _drawn(random, _of(names[label], split)).data, length), label


def _match(split: SplitName, random: np.random.Generator, low: int, high: int) -> Sampled:
    length = int(random.integers(low, high + 1)) // 2
    files = [document for document in _files()[split] if len(document.data) > 3 * length]
    if len(files) < 2:
        raise ValueError(f"no two files have more than {3 * length} bytes; ask for shorter rows.")
    same = int(random.integers(2))
    first = _drawn(random, files)
    second = first if same else _drawn(random, [document for document in files if document is not first])
    # windows of one file do not overlap
    middle = len(first.data) // 2
    parts = (first.data[:middle], second.data[middle:]) if same else (first.data, second.data)
    a, b = (_window(random, part, length) for part in parts)
    return [*a, _BORDER, *b], same


STDLIB_PACKAGE = ClassTask(
    name="stdlib_package",
    about="which of eight packages of the standard library a window of bytes is from; in the place of LRA's Text",
    vocab_size=257,
    classes=CLASSES,
    sample=_package,
)
STDLIB_MATCH = ClassTask(
    name="stdlib_match",
    about="whether two windows are from one file of the standard library; in the place of LRA's Retrieval",
    vocab_size=258,
    classes=2,
    sample=_match,
)
