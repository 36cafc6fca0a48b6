"""Classification of source text, in bytes: stand-ins for LRA's Text and Retrieval, whose texts have to be downloaded.

    stdlib_package    which of ten packages of the standard library is this window from?
    stdlib_match      two windows: are they from one file?

Files of a split are in no other, by a hash of their name.
"""

from functools import lru_cache

import numpy as np

from exlstm.data.long_range.contract import ClassTask, Sampled
from exlstm.data.tasks.contract import SplitName
from exlstm.data.text import Document, documents, split_documents

PACKAGES = (
    "asyncio",
    "concurrent",
    "distutils",
    "email",
    "encodings",
    "html",
    "http",
    "idlelib",
    "importlib",
    "json",
    "lib2to3",
    "logging",
    "multiprocessing",
    "tkinter",
    "unittest",
    "urllib",
    "xml",
)
CLASSES = 10
_LEAST = 4  # files of a class in each split
_BORDER = 257  # between the two windows of a pair; bytes are 1 to 256


@lru_cache(maxsize=1)
def _files() -> dict[SplitName, list[Document]]:
    found = [document for document in documents() if "test" not in document.name]
    split = split_documents(found, val=0.15, test=0.15)
    return {"train": split.train, "validation": split.val, "test": split.test}


@lru_cache(maxsize=1)
def packages() -> tuple[str, ...]:
    """The ten packages with the most text that have files in every split."""
    sizes: dict[str, int] = {}
    for package in PACKAGES:
        own = {split: _of(package, split) for split in _files()}
        if all(len(files) >= 1 for files in own.values()) and sum(map(len, own.values())) >= _LEAST:
            sizes[package] = sum(len(document.data) for files in own.values() for document in files)
    return tuple(sorted(sorted(sizes, key=lambda name: -sizes[name])[:CLASSES]))


@lru_cache(maxsize=64)
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
    about="which of ten packages of the standard library a window of bytes is from; in the place of LRA's Text",
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
