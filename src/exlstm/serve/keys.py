"""API keys: a file with a name and a key per line, so that no key is in a list of processes."""

import hashlib
import hmac
import re
import stat
from collections.abc import Mapping
from pathlib import Path


def keys_in(file: str | Path) -> dict[str, str]:
    """Key -> name from a file of lines `name:key`. ValueError for other lines, equal keys, and a file others may read.

    Lines that are empty or begin with # are left out. A key has at least 16 characters.
    """
    path = Path(file)
    try:
        mode, lines = path.stat().st_mode, path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}); name a file with a line name:key for each user.") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"{file} can be read by others; run: chmod 600 {file}")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9_.-]{1,64}):([\x21-\x7e]{16,256})", line.strip())
        if match is None:
            raise ValueError(f"line {number} of {file} is not name:key with a key of 16 characters or more; mend it.")
        name, key = match.groups()
        if key in found or name in found.values():
            raise ValueError(f"line {number} of {file} has a name or a key that is there before; each needs its own.")
        found[key] = name
    if not found:
        raise ValueError(f"{file} has no key; write a line name:key for each user.")
    return found


class Keys:
    """Keys with their names. None of them: everybody is the owner ""."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.digests = [(hashlib.sha256(key.encode()).digest(), name) for key, name in keys.items()]

    def __bool__(self) -> bool:
        return bool(self.digests)

    @property
    def owners(self) -> list[str]:
        """Names of all that may send requests."""
        return [name for _, name in self.digests] or [""]

    def owner(self, key: bytes | None) -> str | None:
        """The name of a key; None for a wrong one. Takes the same time for all: every key is compared, as digests."""
        if not self.digests:
            return ""
        given, found = hashlib.sha256(key or b"").digest(), None
        for digest, name in self.digests:
            if hmac.compare_digest(given, digest):
                found = name
        return found
