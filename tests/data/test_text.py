"""Sources, splits and fingerprints of text."""

import bz2
import gzip
import json
import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.data.text import (
    Document,
    cut_at_line,
    documents,
    fingerprint,
    looks_like_text,
    read_source,
    split_documents,
)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(docs: list[Document]) -> list[str]:
    return [document.name for document in docs]


@pytest.fixture(scope="module")
def library() -> list[Document]:
    return documents()


def test_the_standard_library_is_complete_sorted_and_without_packages(library: list[Document]) -> None:
    found = names(library)
    assert {"ast.py", "json/decoder.py", "asyncio/base_events.py"} <= set(found)
    assert found == sorted(found)
    assert len(found) == len(set(found))
    assert all(name.endswith(".py") and "-packages" not in name and "__pycache__" not in name for name in found)
    path = Path(sysconfig.get_path("stdlib"), "json", "decoder.py")
    assert {document.name: document.data for document in library}["json/decoder.py"] == path.read_bytes()


def test_the_standard_library_splits_by_file_near_the_shares(library: list[Document]) -> None:
    split = split_documents(library)
    assert split.by == "file"
    assert sorted(names([*split.train, *split.val, *split.test])) == names(library)
    total = sum(len(document.data) for document in library)
    for part in (split.val, split.test):
        assert 0.01 * total < sum(len(document.data) for document in part) < 0.16 * total


def test_the_split_never_moves() -> None:
    """The hash of the first version split these names so; the validation part of saved runs depends on it."""
    split = split_documents([Document(f"file{i}.py", b"x" * 100) for i in range(120)])
    assert names(split.val) == ["file0.py", "file69.py", "file90.py"]
    assert names(split.test) == ["file11.py", "file24.py", "file37.py", "file50.py", "file63.py", "file71.py"]


def test_other_files_do_not_move_a_file() -> None:
    docs = [Document(f"file{i}.py", b"x" * 100) for i in range(400)]
    whole, half = split_documents(docs), split_documents(docs[::2])
    assert whole.by == half.by == "file"
    for part_of_half, part_of_whole in zip(half[:3], whole[:3], strict=True):
        assert set(names(part_of_half)) <= set(names(part_of_whole))


@settings(max_examples=40)
@given(
    name=st.text(),
    # lines of at most 30 bytes in at least 880: a share of 0.04 always holds a line end
    text=st.lists(st.binary(min_size=10, max_size=29), min_size=80, max_size=120).map(b"\n".join),
    val=st.sampled_from([0.0, 0.04, 0.3]),
    test=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_one_document_is_cut_at_line_ends(name: str, text: bytes, val: float, test: float) -> None:
    split = split_documents([Document(name, text)], val=val, test=test)
    assert split.by == "line" or val == test == 0
    parts = [b"".join(document.data for document in part) for part in split[:3]]
    assert b"".join(parts) == text
    assert all(part.endswith(b"\n") for part, rest in pairwise(parts) if part and rest)
    assert [bool(part) for part in parts] == [True, val > 0, test > 0]


def test_few_documents_are_each_cut() -> None:
    docs = [Document(name, b"one line\n" * 1000) for name in ("a", "b", "c")]
    split = split_documents(docs, val=0.1, test=0.2)
    assert split.by == "line"
    assert [[len(document.data) for document in part] for part in split[:3]] == [[6300] * 3, [900] * 3, [1800] * 3]


def test_cut_at_line() -> None:
    assert [cut_at_line(b"ab\ncd", position) for position in range(7)] == [0, 0, 0, 3, 3, 5, 5]


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0)])
def test_impossible_shares(val: float, test: float) -> None:
    with pytest.raises(ValueError, match=rf"val={val} and test={test} leave nothing to train on"):
        split_documents([Document("a", b"a\nb\n")], val=val, test=test)


@pytest.mark.parametrize("docs", [[], [Document("a", b"one line without an end")]])
def test_a_part_that_would_be_empty(docs: list[Document]) -> None:
    with pytest.raises(
        ValueError, match=rf"the \w+ part of {len(docs)} document\(s\) .* would be empty; give more text"
    ):
        split_documents(docs)


def test_a_file_keeps_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) + b"\r\n\xff"
    assert documents(str(write(tmp_path / "a.bin", data)), binary=True) == [Document("a.bin", data)]
    latin = "Grüße\r\n".encode("latin-1")
    assert documents(write(tmp_path / "a.txt", latin)) == [Document("a.txt", latin)]


TEXTS = {
    "empty": b"", "ASCII": b"a\tb\r\n\f\v\x1b[1mbold\x1b[0m\x07\n", "UTF-8": "\ufeffzwei: ü, 二, 😀".encode(),
    "cut off": "ü".encode()[:1], "Latin-1": "Grüße".encode("latin-1"), "Shift JIS": "日本語の文章".encode("shift_jis"),
    "UTF-8 with a control": "ü \x01".encode(),
}  # fmt: skip
BINARIES = {
    "UTF-16": "text".encode("utf-16"), "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "gzip": gzip.compress(b"text" * 99),
    "bzip2": bz2.compress(b"text, text, text"), "weights": safetensors.numpy.save({"x": np.ones(3)}),
    "Latin-1 with a control": "Grüße \x01".encode("latin-1"), "one NUL": b"text" * 99 + b"\0",
}  # fmt: skip


@pytest.mark.parametrize("name", [*TEXTS, *BINARIES])
def test_what_looks_like_text(name: str) -> None:
    assert looks_like_text((TEXTS | BINARIES)[name]) == (name in TEXTS)


@pytest.mark.parametrize("pattern", ["", "*"])
def test_what_does_not_look_like_text_is_left_out(tmp_path: Path, pattern: str) -> None:
    for index, data in enumerate(BINARIES.values()):
        write(tmp_path / f"{index}.bin", data)
    write(tmp_path / "notes.txt", b"text")
    write(tmp_path / "more.jsonl", b'{"text": "a \\u0000"}')
    text = read_source(tmp_path / pattern)
    assert names(text.documents) == ["more.jsonl:000000001", "notes.txt"]
    assert text.note() == "7 of 9 files do not look like text: 0.bin, 1.bin, 2.bin, ..."
    assert names(documents(tmp_path / pattern)) == names(text.documents)
    everything = read_source(tmp_path / pattern, binary=True)
    assert [len(everything.documents), everything.note()] == [9, ""]
    assert everything.documents[0].data == BINARIES["UTF-16"]


def test_a_source_of_nothing_else_names_the_flag(tmp_path: Path) -> None:
    """Also a file that the user has named."""
    file = write(tmp_path / "photo.jpg", BINARIES["JPEG"])
    for source in (tmp_path, file):
        with pytest.raises(ValueError, match=r"\(1 of 1 file does not look like text: photo.jpg; --binary, or binary"):
            documents(source)
    assert documents(file, binary=True) == [Document("photo.jpg", BINARIES["JPEG"])]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("data", [b"text", b"text" * (1 << 19)], ids=len)
def test_a_pipe_is_read_once(tmp_path: Path, data: bytes) -> None:
    """A pipe, as in --data <(zcat notes.gz), of more than the bytes that are probed."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as other:
        written = other.submit((tmp_path / "pipe").write_bytes, data)
        assert documents(tmp_path / "pipe") == [Document("pipe", data)]
        written.result()


def test_a_folder_is_read_below_sorted_and_without_hidden_or_empty_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", ".git/x", "a/.hidden", "a/__pycache__/m.txt"):
        write(tmp_path / name, name.encode())
    write(tmp_path / "empty.txt", b"")
    found = documents(tmp_path)
    assert names(found) == ["a/b/c.txt", "a/z.txt", "b.txt"]
    assert [document.data for document in found] == [b"a/b/c.txt", b"a/z.txt", b"b.txt"]


def test_a_glob_names_files_from_its_fixed_part(tmp_path: Path) -> None:
    for name in ("x/a.txt", "x/y/b.txt", "x/y/c.md"):
        write(tmp_path / name, b"text")
    assert names(documents(str(tmp_path / "x" / "**" / "*.txt"))) == ["a.txt", "y/b.txt"]
    assert names(documents(str(tmp_path / "*" / "y" / "[bc].*"))) == ["x/y/b.txt", "x/y/c.md"]
    write(tmp_path / "odd[1].txt", b"a name that looks like a pattern")
    assert names(documents(str(tmp_path / "odd[1].txt"))) == ["odd[1].txt"]


def test_json_lines_keep_their_order(tmp_path: Path) -> None:
    texts = [f"text {i}\nzwei: ü" for i in range(12)]
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
    path = write(tmp_path / "a.jsonl", "\n\n".join(lines).encode() + b'\n{"text": ""}\n{"text": "\\ud800"}\n')
    assert [document.data.decode("utf-8", "surrogatepass") for document in documents(path)] == [*texts, "\ud800"]
    assert documents(tmp_path) == documents(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"body": "a"}', "has no text"),
        (b'{"text": 3}', "has no text"),
        (b'["text"]', "has no text"),
        (b"7", "has no text"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 3 {message}"):
        documents(path)


def test_missing_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"there is no file or folder '.*nothing\.txt'; give"):
        documents(tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match=r"there is no file or folder ''; give"):
        documents("")
    with pytest.raises(ValueError, match=r"no file matches '.*\*\.txt'; check the pattern"):
        documents(str(tmp_path / "*.txt"))
    with pytest.raises(ValueError, match="holds no text; give a file"):
        documents(tmp_path)
    with pytest.raises(ValueError, match=r"empty\.txt holds no text"):
        documents(write(tmp_path / "empty.txt", b""))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"the Python standard library at .* holds no text"):
        documents()


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", b"text")

    def refuse(self: Path, *_: Any, **__: Any) -> bytes:
        raise PermissionError(13, "Permission denied", os.fspath(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=r"a\.txt cannot be read \(Permission denied\); check its permissions"):
        documents(path)


def test_a_fingerprint_sees_everything() -> None:
    docs = [Document("a", b"bc"), Document("d", b"e")]
    assert fingerprint(docs) == "65d2539f9d1f1f0050ed5160e2a09110d9e04a97e5f60122927bc9681ee607c9"
    changed = [
        docs[::-1],
        docs[:1],
        [Document("ab", b"c"), docs[1]],
        [Document("a", b"bcd"), Document("", b"e")],
        [Document("a", b"bC"), docs[1]],
    ]
    assert len({fingerprint(other) for other in [docs, *changed]}) == 1 + len(changed)
