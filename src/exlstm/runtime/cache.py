"""Measurements of this machine, in the user's cache folder: one JSON file for each kind.

An error with such a file is ignored: callers measure again, or take their default.
"""

import json
import platform
import sys
from contextlib import suppress
from pathlib import Path

from exlstm.runtime.files import write_atomically


def folder() -> Path:
    """The folder of this user's caches."""
    if sys.platform == "win32":
        return Path.home() / "AppData" / "Local" / "exlstm"
    return Path.home() / ("Library/Caches" if platform.system() == "Darwin" else ".cache") / "exlstm"


def remembered(kind: str) -> dict[str, object]:
    """The content of the file of this kind; empty if there is none or it is damaged."""
    # RuntimeError: a user without a home
    with suppress(OSError, ValueError, RuntimeError):
        found = json.loads((folder() / f"{kind}.json").read_text())
        if isinstance(found, dict):
            return found
    return {}


def remember(kind: str, key: str, value: object) -> Path | None:
    """Adds an entry to the file of this kind; returns its path, or None if it cannot be written."""
    with suppress(OSError, RuntimeError):
        folder().mkdir(parents=True, exist_ok=True)
        file = folder() / f"{kind}.json"
        content = json.dumps({**remembered(kind), key: value}, indent=1) + "\n"
        write_atomically(file, content, durable=False)
        return file
    return None
