"""Options of a small run, and commands of exlstm in processes of their own."""

import os
import random
import subprocess
import sys

TINY = ("--preset", "laptop-tiny", "--batch", "4", "--length", "32", "--validations", "1", "--no-yardsticks")


def write_text(path, lines=2000):
    words = ["the cat", "sat on", "a mat", "while two dogs", "ran over", "green hills", "and far", "away"]
    rng = random.Random(0)
    path.write_text("\n".join(" ".join(rng.choices(words, k=5)) for _ in range(lines)))


def run_process(*words, cwd=None, standard_input="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "exlstm", *words],
        cwd=cwd, input=standard_input, capture_output=True, text=True,
        encoding="utf-8", check=False, env={**os.environ, **environment},
    )  # fmt: skip


def start_process(folder, *words):
    """Starts a command that runs beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", "exlstm", *words],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
