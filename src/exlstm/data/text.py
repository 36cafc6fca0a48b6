"""Where text comes from, and how it is divided into train, validation and test.

A document is a name and its bytes. Names are relative to the source (with `/` on every system), so that an order or a
split that depends on names is the same on every machine. Bytes are kept as they are: nothing is decoded here, except
JSON lines, which are UTF-8 by definition.

A file looks like text if its beginning has no NUL byte and is either UTF-8 or free of the control characters that no
text has. So texts in Latin-1, Shift JIS and the like are text; UTF-16, pictures, archives and weights are not.
"""

import codecs
import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from exlstm.nn.fields import json_value

Data = str | tuple[str, ...] | None  # what names a text: a source, several, or the Python standard library

# A part of a split by file may be this many times smaller or larger than asked for; otherwise documents are cut.
SPLIT_TOLERANCE = 4.0
BEGINNING = 1 << 20  # bytes of a file that tell whether it is text
# but for bell, backspace, tab, line feed, vertical tab, form feed, carriage return and escape
CONTROLS = bytes({*range(32), 127} - {7, 8, 9, 10, 11, 12, 13, 27})
NAMED = 3  # files that are named as left out; of more, so many


@dataclass(frozen=True)
class Document:
    """One text: `name` relative to its source, `data` its bytes (never empty when it comes from `documents`)."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Text:
    """The non-empty documents of a source, sorted by name, of `files` files; `left_out` do not look like text."""

    documents: list[Document]
    files: int
    left_out: list[str]

    def note(self) -> str:
        """What was left out, for the user; empty if nothing was."""
        count = len(self.left_out)
        if not count:
            return ""
        names = ", ".join([*self.left_out[:NAMED], *["..."] * (count > NAMED)])
        files = "files do" if count > 1 else "file does" if self.files == 1 else "files does"
        return f"{count} of {self.files} {files} not look like text: {names}"


class Split(NamedTuple):
    """Three disjoint lists of documents; `by` says whether whole documents were dealt out or each one was cut."""

    train: list[Document]
    val: list[Document]
    test: list[Document]
    by: Literal["file", "line"]


def documents(source: str | os.PathLike[str] | None = None, *, binary: bool = False) -> list[Document]:
    """All non-empty documents of a source, sorted by name.

    source  None: the Python standard library of the running interpreter (`*.py`, without installed packages);
            otherwise a file, a folder (with its subfolders, hidden names skipped) or a glob pattern such as
            `notes/**/*.txt`. Every file is one document, but each line of a `.jsonl` file is one: its `text` field.
    binary  Take files that do not look like text, too. They are left out otherwise; `read_source` says which.

    Raises ValueError for a source that does not exist, cannot be read, holds no text, or has a malformed JSON line.
    """
    return read_source(source, binary=binary).documents


def read_source(source: str | os.PathLike[str] | None = None, *, binary: bool = False) -> Text:
    """The `documents` of a source, with the names of what was left out."""
    label = f"the Python standard library at {sysconfig.get_path('stdlib')}" if source is None else os.fspath(source)
    found: list[Document] = []
    left_out: list[str] = []
    files = 0
    for name, path in _standard_library() if source is None else _files(label):
        files += 1
        data = _read(path, binary=binary or source is None or path.suffix == ".jsonl")
        if data is None:
            left_out.append(name)
        else:
            found += _documents_of(name, path, data)
    found = sorted((document for document in found if document.data), key=lambda document: document.name)
    text = Text(found, files, sorted(left_out))
    if not found:
        hint = f" ({text.note()}; --binary, or binary=True, takes their bytes as they are)" if left_out else ""
        raise ValueError(
            f"{label} holds no text{hint}; give a file, a folder, a glob or a .jsonl file with something in it."
        )
    return text


def looks_like_text(beginning: bytes) -> bool:
    """Whether a file that begins so is text; the last character may be cut off."""
    if b"\0" in beginning:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return len(beginning.translate(None, CONTROLS)) == len(beginning)
    return True


def split_documents(docs: Sequence[Document], *, val: float = 0.04, test: float = 0.04) -> Split:
    """Divide documents into train, validation and test; `val` and `test` are shares of the bytes, met approximately.

    By file: a document goes where the hash of its name says, so adding or removing others does not move it. Where that
    misses a share by more than SPLIT_TOLERANCE (one document, or a few of very unequal size), every document
    is cut instead, at line ends: its beginning trains, its end is validation and then test.

    Raises ValueError for shares outside [0, 1) or summing to 1 or more, and when a part would be empty.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(
            f"val={val} and test={test} leave nothing to train on; use shares of at least 0 that sum to less than 1."
        )
    parts = _split_by_name(docs, val, test)
    by: Literal["file", "line"] = "file"
    total = sum(len(document.data) for document in docs)
    shares = (1 - val - test, val, test)
    if not all(_close_enough(part, share * total) for part, share in zip(parts, shares, strict=True)):
        parts = _split_by_line(docs, val, test)
        by = "line"
    for name, part, share in zip(("train", "val", "test"), parts, shares, strict=True):
        if share > 0 and not part:
            raise ValueError(
                f"the {name} part of {len(docs)} document(s) with {total} bytes would be empty; "
                "give more text (lines to cut at, or more files), or another share."
            )
    train_part, val_part, test_part = parts
    return Split(train_part, val_part, test_part, by)


def fingerprint(docs: Iterable[Document]) -> str:
    """SHA-256 (hexadecimal) over names and bytes in order: equal exactly when the corpus is."""
    digest = hashlib.sha256()
    for document in docs:
        name = document.name.encode("utf-8", "surrogateescape")
        digest.update(len(name).to_bytes(8, "little") + name)
        digest.update(len(document.data).to_bytes(8, "little") + document.data)
    return digest.hexdigest()


def cut_at_line(data: bytes, position: int) -> int:
    """The last place at or before `position` where a line ends (0 when there is none)."""
    return len(data) if position >= len(data) else data.rfind(b"\n", 0, position) + 1


def _standard_library() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for name, path in _walk(root, skip={"site-packages", "dist-packages"}):
        if path.suffix == ".py":
            yield name, path


def _files(source: str) -> Iterator[tuple[str, Path]]:
    path = Path(source).expanduser()
    if source and path.is_dir():
        yield from _walk(path)
    elif source and path.exists():
        yield path.name, path
    elif glob.has_magic(source):
        root = _glob_root(path)
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        files = [match for match in matches if match.is_file()]
        if not files:
            raise ValueError(f"no file matches {source!r}; check the pattern, and quote it so that the shell keeps it.")
        yield from ((file.relative_to(root).as_posix(), file) for file in files)
    else:
        raise ValueError(f"there is no file or folder {source!r}; give a file, a folder, a glob or a .jsonl file.")


def _walk(root: Path, skip: Set[str] = frozenset()) -> Iterator[tuple[str, Path]]:
    """Every file below `root` with its relative name; links to folders are not followed, they may form circles."""
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skip | {"__pycache__"}]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path


def _glob_root(pattern: Path) -> Path:
    root = pattern
    while glob.has_magic(str(root)):
        root = root.parent
    return root


def _read(path: Path, *, binary: bool) -> bytes | None:
    """The content; None, after the beginning, for a file that does not look like text."""
    try:
        with path.open("rb", buffering=0) as file:
            beginning = file.read(BEGINNING)
            if not binary and not looks_like_text(beginning):
                return None
            if not file.seekable():  # a pipe
                return beginning + file.readall()
            file.seek(0)
            return file.readall()
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from error


def _documents_of(name: str, path: Path, data: bytes) -> Iterator[Document]:
    if path.suffix != ".jsonl":
        yield Document(name, data)
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            # zero-padded, so that sorting by name keeps the order of the lines
            yield Document(f"{name}:{number:09d}", _text_field(line, path, number))


def _text_field(line: bytes, path: Path, number: int) -> bytes:
    try:
        # JSON can spell half of a surrogate pair, which UTF-8 cannot; its three bytes are kept
        data: bytes = json_value(line)["text"].encode("utf-8", "surrogatepass")
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error}); each line must be one JSON object.") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f'{path}, line {number} has no text; each line must be an object like {{"text": "..."}}.'
        ) from error
    return data


def _position(name: str) -> float:
    """A name's place in [0, 1), the same on every machine."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _split_by_name(docs: Iterable[Document], val: float, test: float) -> tuple[list[Document], ...]:
    parts: tuple[list[Document], ...] = ([], [], [])
    for document in docs:
        place = _position(document.name)
        parts[1 if place < val else 2 if place < val + test else 0].append(document)
    return parts


def _split_by_line(docs: Iterable[Document], val: float, test: float) -> tuple[list[Document], ...]:
    parts: tuple[list[Document], ...] = ([], [], [])
    for document in docs:
        data = document.data
        first = cut_at_line(data, round(len(data) * (1 - val - test)))
        second = cut_at_line(data, round(len(data) * (1 - test)))
        for part, piece in zip(parts, (data[:first], data[first:second], data[second:]), strict=True):
            if piece:
                part.append(Document(document.name, piece))
    return parts


def _close_enough(part: Sequence[Document], wanted: float) -> bool:
    size = sum(len(document.data) for document in part)
    return wanted / SPLIT_TOLERANCE <= size <= wanted * SPLIT_TOLERANCE
