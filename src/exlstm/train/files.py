"""Writing files so that a crash, a kill or a full disk leaves either the old content or the new, never a torn file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def reporting_failure(path: Path, hint: str) -> Iterator[None]:
    """Turns a failed write (full disk, no permission) into a ValueError that names the path, the cause and a remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        origin = error.__cause__ or error
        cause = getattr(origin, "strerror", None) or str(origin)
        raise ValueError(f"could not write {path}: {cause}; {hint}.") from error


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk itself."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder, and needs no such thing
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes | str, *, hint: str = "free some space or change the permissions") -> None:
    """Replaces the file as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    with reporting_failure(path, hint):
        try:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
