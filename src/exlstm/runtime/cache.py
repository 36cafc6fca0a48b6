"""What was measured on a machine, kept in the user's cache folder for the next process: one JSON file for each kind.

Whatever goes wrong with such a file, nothing fails: it is measured again, or what holds for every machine is taken.
"""

import json
import platform
import sys
from contextlib import suppress
from pathlib import Path

from exlstm.runtime.files import write_atomically


def folder() -> Path:
    """Where this user's caches belong."""
    if sys.platform == "win32":
        return Path.home() / "AppData" / "Local" / "exlstm"
    return Path.home() / ("Library/Caches" if platform.system() == "Darwin" else ".cache") / "exlstm"


def remembered(kind: str) -> dict[str, object]:
    """What the file of this kind says; nothing if there is none or it is damaged."""
    # RuntimeError: a user without a home
    with suppress(OSError, ValueError, RuntimeError):
        found = json.loads((folder() / f"{kind}.json").read_text())
        if isinstance(found, dict):
            return found
    return {}


def remember(kind: str, key: str, value: object) -> Path | None:
    """Adds to the file, where that can be done; returns where it is."""
    with suppress(OSError, RuntimeError):
        folder().mkdir(parents=True, exist_ok=True)
        file = folder() / f"{kind}.json"
        content = json.dumps({**remembered(kind), key: value}, indent=1) + "\n"
        write_atomically(file, content, durable=False)
        return file
    return None
