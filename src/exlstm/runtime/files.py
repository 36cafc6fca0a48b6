"""Files and folders written whole: a crash, a kill or a full disk leaves the old content or the new, never half of it.

New content is written to a hidden folder beside its target, and renamed when it is complete.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# the names of hidden folders begin with it; a process that was killed leaves one behind
SCRATCH = ".saving-"


def write_atomically(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replaces the file as a whole; text is UTF-8. OSError, and the old content, if that fails."""
    with beside(path, durable=durable) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_or_explain(path: Path, data: bytes | str, *, hint: str = "free some space or change the permissions") -> None:
    """`write_atomically`, with the ValueError of `reporting_failure`."""
    with reporting_failure(path, hint):
        write_atomically(path, data)


@contextmanager
def beside(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path in a hidden folder beside `path`, for a new file or folder, which takes the place of `path` at the end.

    Nothing is left of it after an error. durable: it is put on the disk itself before the renaming, a folder with its
    files, so that it survives a power cut. A folder takes the place of an empty one at most.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=SCRATCH) as scratch:
        new = Path(scratch, path.name)
        yield new
        if durable:
            for entry in new.iterdir() if new.is_dir() else ():
                sync(entry)
            sync(new)
        os.replace(new, path)
        if durable:
            sync(path.parent)


@contextmanager
def scratch_inside(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder`, for files that are moved up together by `put_in_place`.

    An error leaves nothing, not even a folder that was not there.
    """
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            yield Path(scratch)
    except BaseException:
        if fresh:
            folder.rmdir()
        raise


def put_in_place(files: Iterable[Path], folder: Path) -> None:
    """Moves files into a folder of the same disk, one after another, in place of those of their names."""
    for file in files:
        os.replace(file, folder / file.name)


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk itself."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder, and needs no such thing
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def reporting_failure(path: Path, hint: str, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) into a ValueError with the path, the cause and a remedy."""
    try:
        yield
    except errors as error:
        origin = error.__cause__ or error
        cause = getattr(origin, "strerror", None) or str(origin)
        raise ValueError(f"could not write {path}: {cause}; {hint}.") from error
