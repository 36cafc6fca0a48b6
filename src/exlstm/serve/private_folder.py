"""Folder of the server alone: files with names of its own making, written whole, and no links followed."""

import os
import re
import shutil
import stat
from pathlib import Path

from exlstm.runtime.files import SCRATCH, beside, sync


class PrivateFolder:
    """Files in one folder whose names match a pattern: no path ever comes from a request.

    The folder is made with the mode 0700, its files with 0600. Raises ValueError where it cannot be.
    """

    def __init__(self, path: Path, pattern: re.Pattern[str]) -> None:
        self.path, self.pattern = path, pattern
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise ValueError(f"{path} cannot be the server's folder ({error.strerror}); name another.") from error

    def names(self) -> list[str]:
        """The names of its files."""
        return sorted(name for name in os.listdir(self.path) if self.pattern.fullmatch(name))

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file as a whole, and waits until it is on the disk itself. OSError if that fails."""
        with beside(self._place(name)) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)

    def read(self, name: str, most: int | None = None) -> tuple[bytes, int]:
        """The bytes of a file, or its first ones, and the size of the whole.

        OSError for a missing file and for a link, ValueError for what is no file.
        """
        with os.fdopen(self._open(name), "rb") as file:
            return file.read(-1 if most is None else most), os.fstat(file.fileno()).st_size

    def delete(self, name: str) -> None:
        """Removes a file for good, if it is there."""
        self._place(name).unlink(missing_ok=True)
        sync(self.path)

    def sweep(self) -> None:
        """Removes what a process that was killed has left half written."""
        for path in self.path.glob(f"{SCRATCH}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, name: str) -> Path:
        if not self.pattern.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is no name of a file here.")
        return self.path / name

    def _open(self, name: str) -> int:
        """A handle of a regular file. A pipe is opened without waiting for a writer, and refused."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(self._place(name), flags)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise ValueError(f"{name} is no file.")
        return handle
