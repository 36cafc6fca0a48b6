"""Several sources of a text: what they are called, their shares, their splits."""

import shutil
from pathlib import Path

import pytest

from exlstm.data.corpus import read_corpus
from exlstm.data.text import documents, fingerprint, split_documents
from exlstm.data.tokenizer import ByteTokenizer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders code, of about three times the size of notes; notes holds a picture, too."""
    for name, size in (("code", 600), ("notes", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("".join(f"{name} {line}\n" for line in range(size)))
    (tmp_path / "notes/b.png").write_bytes(b"\x89PNG\0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "shares"),
    [
        ("code", [1]),
        (("code", "notes:0.3"), [0.7, 0.3]),
        (("code:.25", "notes/:0.75"), [0.25, 0.75]),
        (("code/*:1e-1", "notes"), [0.1, 0.9]),
        (("code", "notes"), [0.74, 0.26]),
        (("code", "notes", "more:0.5"), [0.37, 0.13, 0.5]),
        (("code:0.333", "notes:0.333", "more:0.333"), [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_shares(here: Path, data: tuple[str, ...] | str, shares: list[float]) -> None:
    """A number is the share of the training tokens; what is left goes to the others by size."""
    shutil.copytree(here / "code", here / "more")
    mixture = read_corpus(data).mixture(ByteTokenizer())
    assert sum(mixture.shares) == pytest.approx(1)
    assert list(mixture.shares) == pytest.approx(shares, abs=0.01)


def test_a_file_whose_name_ends_like_a_share_is_that_file(here: Path) -> None:
    (here / "notes:0.3").write_text("one line\n" * 99)
    assert read_corpus(("code", "notes:0.3")).sources[1].share is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (("code:0.5", "notes:0.6"), r"^the shares of --data, 0.5, 0.6, sum to 1.1; make the sum 1, or leave out a"),
        (("code:0.5", "notes:0.3"), r"sum to 0.8; make the sum 1"),
        ("notes:0.3", r"sum to 0.3; make the sum 1"),
        (("code", "notes:1"), r"sum to 1 and leave nothing for the others; make the sum 1"),
        (("code", "notes:0"), r"^--data 'notes:0' has the share 0; write one between 0 and 1, such as notes:0.3\.$"),
        (("code", "notes:3"), r"has the share 3"),
        (("code", "notes:nan"), r"has the share nan"),
        (("code", "nowhere:0.3"), r"there is no file or folder 'nowhere'"),
        (("code", "code/"), r"and one is in the other; name each text once\.$"),
        (("notes/a.txt:0.5", "notes"), r"and one is in the other"),
    ],
)
def test_sources_that_do_not_go_together(data: tuple[str, ...] | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_corpus(data)


def test_each_source_is_split_as_it_is_alone() -> None:
    """Every part has documents of both sources, and another source moves none of them."""
    split = read_corpus(("code", "notes:0.9")).split
    alone = [split_documents(documents(name)) for name in ("code", "notes")]
    for part, one, other in zip(split[:3], *(parts[:3] for parts in alone), strict=True):
        assert part == one + other


def test_the_fingerprint_of_one_source_is_that_of_its_documents(here: Path) -> None:
    """And of several, it tells which is whose."""
    assert read_corpus("code").fingerprint() == fingerprint(documents("code"))
    before = read_corpus(("code", "notes")).fingerprint()
    assert read_corpus(("code", "notes:0.3")).fingerprint() == before
    (here / "notes/a.txt").rename(here / "code/b.txt")
    (here / "notes/a.txt").write_text("text")
    moved = read_corpus(("code", "notes")).fingerprint()
    assert moved != before
    assert read_corpus(("notes", "code")).fingerprint() != moved


def test_what_they_are_called_and_what_was_left_out(here: Path) -> None:
    corpus = read_corpus((str(here / "code"), "notes:0.3"))
    assert corpus.names == ["code", "notes"]
    assert corpus.notes() == ["1 of 2 files does not look like text: b.png"]
    assert read_corpus(("code", "notes"), binary=True).notes() == []
    assert read_corpus(("code/a.txt", "notes/a.txt")).names == ["code/a.txt", "notes/a.txt"]
