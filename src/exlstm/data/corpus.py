"""The text of a run: one source or several, each with a share of the training tokens and a split of its own.

A source is written as `documents` takes it, with or without a share behind a colon: `notes/:0.3`. Sources without a
share divide the remaining tokens by their size.
"""

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from exlstm.data.mixture import Mixture
from exlstm.data.packing import TokenStream, pack
from exlstm.data.text import Data, Document, Split, Text, fingerprint, read_source, split_documents
from exlstm.data.tokenizer import Tokenizer

ROUNDING = 1e-3  # tolerance of the sum of all shares


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source and its text. share: the part of the training tokens that the user asked for, if any."""

    path: str | None
    share: float | None
    text: Text


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All sources of a run, in the order given."""

    sources: tuple[Source, ...]

    @property
    def documents(self) -> list[Document]:
        """Documents of all sources, in order."""
        return [document for source in self.sources for document in source.text.documents]

    @property
    def names(self) -> list[str]:
        """Names of the sources without their folders; full paths where two names would be equal."""
        paths = ["the Python standard library" if source.path is None else source.path for source in self.sources]
        names = [Path(path).name or path for path in paths]
        return names if len(set(names)) == len(names) else paths

    @cached_property
    def splits(self) -> list[Split]:
        """The split of each source."""
        return [split_documents(source.text.documents) for source in self.sources]

    @property
    def split(self) -> Split:
        """The splits of all sources joined. Shares apply to training: validation and test text go by size."""
        train, val, test = ([document for part in parts for document in part] for parts in zip(
            *(split[:3] for split in self.splits), strict=True
        ))  # fmt: skip
        return Split(train, val, test, "line" if any(split.by == "line" for split in self.splits) else "file")

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal): equal exactly when the documents and their division into sources are equal."""
        found = [fingerprint(source.text.documents) for source in self.sources]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    def mixture(self, tokenizer: Tokenizer) -> Mixture:
        """The encoded training text of all sources, with the share of each."""
        streams = tuple(pack(split.train, tokenizer) for split in self.splits)
        return Mixture(streams, tuple(_shares([source.share for source in self.sources], streams)))

    def notes(self) -> list[str]:
        """Notes for the user: which files of which source were left out."""
        return [note for source in self.sources if (note := source.text.note())]


def read_corpus(data: Data, *, binary: bool = False) -> Corpus:
    """Reads all sources of a run. binary: as in `documents`.

    Raises ValueError as `documents` does, and for shares that do not sum to 1. Raises ValueError for a source inside
    another one, since the same document could then be in the training and the validation part.
    """
    words = (data,) if isinstance(data, str) else data
    named = [(None, None)] if words is None else [_path_and_share(word) for word in words]
    given = [share for _, share in named if share is not None]
    if given and (abs(sum(given) - 1) > ROUNDING if len(given) == len(named) else sum(given) >= 1):
        rest = "" if len(given) == len(named) else " and leave nothing for the others"
        raise ValueError(
            f"the shares of --data, {', '.join(map(str, given))}, sum to {sum(given):g}{rest}; make the sum 1, or "
            "leave out a share, which is then what the others leave."
        )
    _check_apart([path for path, _ in named if path is not None])
    sources = (Source(path=path, share=share, text=read_source(path, binary=binary)) for path, share in named)
    return Corpus(sources=tuple(sources))


def _path_and_share(word: str) -> tuple[str, float | None]:
    """The path and the share of a word such as `notes/:0.3`; the word of an existing file is all path."""
    path, colon, number = word.rpartition(":")
    try:
        share = float(number)
    except ValueError:
        return word, None
    if not (colon and path) or Path(word).expanduser().exists():
        return word, None
    if not 0 < share <= 1:
        raise ValueError(f"--data {word!r} has the share {share:g}; write one between 0 and 1, such as {path}:0.3.")
    return path, share


def _check_apart(paths: Sequence[str]) -> None:
    real = [Path(path).expanduser().resolve() for path in paths if not glob.has_magic(path)]
    for index, path in enumerate(real):
        for other in real[index + 1 :]:
            if path == other or path in other.parents or other in path.parents:
                raise ValueError(f"--data names {path} and {other}, and one is in the other; name each text once.")


def _shares(given: Sequence[float | None], streams: Sequence[TokenStream]) -> list[float]:
    """Shares that sum to 1. Sources without a given share divide the remainder by size."""
    total = sum(share for share in given if share is not None)
    rest = sum(len(stream) for share, stream in zip(given, streams, strict=True) if share is None)
    scale = 1 if rest else 1 / total
    return [
        (1 - total) * len(stream) / rest if share is None else share * scale
        for share, stream in zip(given, streams, strict=True)
    ]
