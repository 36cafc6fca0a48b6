"""Commands in the documents: lines of shell blocks as words, and a list of those that no test runs."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "study/README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# programs that are not run: they change the machine, or are make, whose targets are looked up, or tests/integrations
# runs them; tests/serve/test_serve_page.py sends what curl does, and tests/serve/test_clients.py what lm_eval does
PROGRAMS = {"make", "pip", ".venv/bin/pre-commit", ".venv-integrations/bin/python", "curl", "lm_eval"}
NOT_RUN = {
    "exlstm serve runs/demo": "serves until it is stopped; tests/serve runs the page against a server",
    "exlstm replay answer.json --model runs/demo": "takes an answer; tests/serve/test_replay.py replays some",
    "exlstm export runs/demo": "takes a run; tests/cli exports one",
    "exlstm export runs/demo --part chunk --steps 64": "takes a run; tests/cli exports one",
    "exlstm export runs/demo --int8": "takes a run; tests/cli exports one",
    "exlstm export runs/demo --format torch": "takes a run; tests/cli exports one",
    "exlstm lm-eval --model exlstm --model_args pretrained=runs/demo --tasks lambada_openai,hellaswag --batch_size 16":
        "downloads two data sets",
    "exlstm study run gates --overwrite": "takes half an hour; tests/study runs its quick size",
    "exlstm study run gates --size small": "takes half an hour; tests/study runs its quick size",
    "exlstm study plan language --size paper": "takes a minute; tests/study plans every study",
    "exlstm study report": "writes into the folder of results; tests/study makes the page",
    "exlstm study report gates": "writes into the study's own folder; tests/study reports",
}  # fmt: skip


def blocks(page):
    """(language, text, line number) of every fenced block."""
    text = page.read_text()
    return [(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in FENCE.finditer(text)]


def commands(language, text):
    """The words of every command in a shell block. In a console, lines without a `$` are output.

    A line that ends with a backslash goes on in the next one.
    """
    lines = text.replace("\\\n", " ").splitlines() if language in ("console", "sh") else []
    if language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_of(page):
    """The commands of a page."""
    return [words for language, text, _ in blocks(page) for words in commands(language, text)]


def runs(words):
    """Whether a test runs this command of exlstm."""
    return words[0] == "exlstm" and shlex.join(words) not in NOT_RUN


def name(page):
    return str(page.relative_to(ROOT))
