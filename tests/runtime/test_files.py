"""Files and folders are there as a whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from exlstm.runtime import files
from exlstm.runtime.files import beside, put_in_place, scratch_inside, write_atomically, write_or_explain


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, "né\n")
    assert path.read_bytes() == b"n\xc3\xa9\n"
    write_atomically(path, b"\x00\xff", durable=False)
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["pathlib.Path.write_bytes", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, place):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            write_atomically(path, "new")
        with pytest.raises(ValueError, match=r"^could not write .*file: No space left on device; free some space or"):
            write_or_explain(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch):
    """A file, and everything in a folder; the folder around it afterwards."""
    seen = []
    monkeypatch.setattr(files, "sync", lambda path: seen.append((path.name, (tmp_path / "made").exists())))
    write_atomically(tmp_path / "made", "x")
    assert seen == [("made", False), (tmp_path.name, True)]
    (tmp_path / "made").unlink()
    seen.clear()
    with beside(tmp_path / "made") as new:
        new.mkdir()
        (new / "a").touch()
        (new / "b").touch()
    assert sorted(seen[:2]) == [("a", False), ("b", False)]
    assert seen[2:] == [("made", False), (tmp_path.name, True)]
    seen.clear()
    write_atomically(tmp_path / "other", "x", durable=False)
    assert seen == []


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def fail():
        with beside(tmp_path / "made") as new:
            new.mkdir()
            (new / "a").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_several_files_are_moved_up_together(tmp_path):
    folder = tmp_path / "a" / "b"
    with scratch_inside(folder) as scratch:
        for name in ("one", "two"):
            (scratch / name).write_text(name)
        assert not (folder / "one").exists()
        put_in_place([scratch / "one", scratch / "two"], folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"one": "one", "two": "two"}


@pytest.mark.parametrize("there", [True, False])
def test_scratch_that_fails_leaves_what_was_there(tmp_path, there):
    folder = tmp_path / "folder"
    if there:
        folder.mkdir()

    def fail():
        with scratch_inside(folder) as scratch:
            (scratch / "one").touch()
            full_disk()

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert folder.exists() == there
    assert not there or list(folder.iterdir()) == []


# train/checkpoint.py: puts old checkpoints and the link "best" in their places
# the last two have a folder for a moment
RENAMING = {"runtime/files.py", "train/checkpoint.py", "study/downstream.py", "exporting/onnx_file.py"}


def test_files_are_replaced_in_one_place():
    package = Path(files.__file__).parents[1]
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in ("tempfile", "os.replace", "os.rename", "shutil.move"))
    }
    assert found <= RENAMING
