"""A process for a chat template, which may be hostile: bounded in time and memory, ended and started anew at will."""

import json
import select
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any

CHILD = Path(__file__).with_name("sandbox_child.py")
SECONDS, START_SECONDS = 2.0, 20.0
MOST_BYTES = 1 << 25  # of an answer


class Sandbox:
    """A template in a process of its own. Raises ValueError, in one sentence, for one that cannot be read."""

    def __init__(self, source: str) -> None:
        self.source, self.lock = source, Lock()
        self.process: subprocess.Popen[bytes] | None = None
        with self.lock:
            self.variables = frozenset(self.started()["variables"])

    def render(self, values: dict[str, Any]) -> str:
        """The text that the template makes of these values. ValueError if it fails or takes too long."""
        with self.lock:
            if self.process is None:
                self.started()
            answer = self.ask(values, SECONDS)
        if "text" not in answer:
            raise ValueError(f"the chat template refuses the messages: {one_line(answer['error'])}")
        return str(answer["text"])

    def started(self) -> dict[str, Any]:
        """Starts the process; what it says of the template."""
        # -I: neither the folder nor the environment adds to what it imports
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        answer = self.ask(self.source, START_SECONDS)
        if "error" in answer:
            self.close()
            raise ValueError(f"the chat template cannot be read: {one_line(answer['error'])}")
        return answer

    def ask(self, value: Any, seconds: float) -> dict[str, Any]:
        """The answer to a line; an error in its place if the process does not give one in time."""
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        until, found = time.monotonic() + seconds, bytearray()
        try:
            rest = memoryview(json.dumps(value).encode() + b"\n")
            while rest:
                rest = rest[process.stdin.write(rest) :]
            while not found.endswith(b"\n"):
                left = until - time.monotonic()
                ready = left > 0 and select.select([process.stdout], [], [], left)[0]
                part = process.stdout.read(1 << 16) if ready else b""
                if not part or len(found) > MOST_BYTES:
                    self.close()
                    return {"error": "it takes too much time or memory"}
                found += part
        except OSError:
            self.close()
            return {"error": "it has ended its process"}
        answer: dict[str, Any] = json.loads(found)
        return answer

    def close(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def one_line(text: str) -> str:
    """The end of a sentence."""
    return " ".join(text.split()).rstrip(".") + "."
