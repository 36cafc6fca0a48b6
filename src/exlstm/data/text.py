"""Documents from files and folders, and their split into train, validation and test.

A document is a name and its bytes. Names are relative to the source, with `/` on every system, so an order or a split
by names is the same on every machine. Bytes are not decoded here, except JSON lines, which are UTF-8 by definition.

A file looks like text if its first MiB has no NUL byte and is UTF-8 or free of unusual control characters. So Latin-1
and Shift JIS are text; UTF-16, pictures, archives and weights are not.
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

Data = str | tuple[str, ...] | None  # a source, several, or the Python standard library

# A part of a split by file may miss its size by this factor; beyond it, documents are cut.
SPLIT_TOLERANCE = 4.0
PROBE_BYTES = 1 << 20  # the beginning of a file that tells whether it is text
# all but bell, backspace, tab, line feed, vertical tab, form feed, carriage return and escape
CONTROLS = bytes({*range(32), 127} - {7, 8, 9, 10, 11, 12, 13, 27})
TESTS = {"test", "tests", "idle_test"}  # folders of the standard library
MAX_NAMED = 3  # files that a note names


@dataclass(frozen=True)
class Document:
    """A text: its name relative to the source, and its bytes, which `documents` never leaves empty."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Text:
    """The non-empty documents of a source, sorted by name.

    files: how many files were looked at. left_out: names of those that do not look like text.
    """

    documents: list[Document]
    files: int
    left_out: list[str]

    def note(self) -> str:
        """A note for the user about files left out; empty if there are none."""
        count = len(self.left_out)
        if not count:
            return ""
        names = ", ".join([*self.left_out[:MAX_NAMED], *["..."] * (count > MAX_NAMED)])
        files = "files do" if count > 1 else "file does" if self.files == 1 else "files does"
        return f"{count} of {self.files} {files} not look like text: {names}"


class Split(NamedTuple):
    """Three disjoint lists of documents. by: "file" where documents are whole, "line" where each one was cut."""

    train: list[Document]
    val: list[Document]
    test: list[Document]
    by: Literal["file", "line"]


def documents(source: str | os.PathLike[str] | None = None, *, binary: bool = False) -> list[Document]:
    """All non-empty documents of a source, sorted by name.

    source: a file, a folder with its subfolders (hidden names are skipped), or a glob pattern such as `notes/**/*.txt`.
    None is the Python standard library of the running interpreter: `*.py`, without installed packages. Every file is
    one document, except that each line of a `.jsonl` file is one, its `text` field.
    binary: also take files that do not look like text. Otherwise they are left out, and `read_source` lists them.

    Raises ValueError for a source that does not exist, cannot be read, holds no text, or has a malformed JSON line.
    """
    return read_source(source, binary=binary).documents


def source_code() -> list[Document]:
    """The standard library without its tests, which some systems leave out."""
    return [document for document in documents() if not TESTS & set(document.name.split("/"))]


def read_source(source: str | os.PathLike[str] | None = None, *, binary: bool = False) -> Text:
    """The `documents` of a source, with the names of the files left out."""
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
    """Whether these first bytes of a file are text; the last character may be incomplete."""
    if b"\0" in beginning:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except UnicodeDecodeError:
        return len(beginning.translate(None, CONTROLS)) == len(beginning)
    return True


def split_documents(docs: Sequence[Document], *, val: float = 0.04, test: float = 0.04) -> Split:
    """Divides documents into train, validation and test; `val` and `test` are approximate shares of the bytes.

    A hash of its name decides where a document goes, so adding or removing others does not move it. If a part then
    misses its size by more than SPLIT_TOLERANCE, as with one document, every document is cut at line ends instead: its
    beginning is for training, its end for validation and then test.

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
    """SHA-256 (hexadecimal) of all names and bytes in order: equal exactly when the documents are."""
    digest = hashlib.sha256()
    for document in docs:
        name = document.name.encode("utf-8", "surrogateescape")
        digest.update(len(name).to_bytes(8, "little") + name)
        digest.update(len(document.data).to_bytes(8, "little") + document.data)
    return digest.hexdigest()


def cut_at_line(data: bytes, position: int) -> int:
    """The last line end at or before `position`, 0 if there is none."""
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
    """Every file below `root` with its relative name. Links to folders are not followed: they may form circles."""
    for folder, subfolders, names in os.walk(root, onerror=_raise_unreadable):
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
    """The content of a file; None for one whose first bytes do not look like text."""
    try:
        with path.open("rb", buffering=0) as file:
            beginning = file.read(PROBE_BYTES)
            if not binary and not looks_like_text(beginning):
                return None
            if not file.seekable():  # a pipe cannot go back
                return beginning + file.readall()
            file.seek(0)
            return file.readall()
    except OSError as error:
        _raise_unreadable(error)


def _raise_unreadable(error: OSError) -> NoReturn:
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
        # JSON can spell half of a surrogate pair, which UTF-8 cannot: keep its three bytes
        data: bytes = json_value(line)["text"].encode("utf-8", "surrogatepass")
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error}); each line must be one JSON object.") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f'{path}, line {number} has no text; each line must be an object like {{"text": "..."}}.'
        ) from error
    return data


def _position(name: str) -> float:
    """A hash of a name in [0, 1), the same on every machine."""
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
        for part, content in zip(parts, (data[:first], data[first:second], data[second:]), strict=True):
            if content:
                part.append(Document(document.name, content))
    return parts


def _close_enough(part: Sequence[Document], wanted: float) -> bool:
    size = sum(len(document.data) for document in part)
    return wanted / SPLIT_TOLERANCE <= size <= wanted * SPLIT_TOLERANCE
