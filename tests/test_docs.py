"""Documents are tests: their Python runs, the tutorials' commands run, the README's commands exist, the site builds.

Blocks of one page share a namespace and run in order, in an empty folder.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from exlstm.cli import main
from exlstm.cli.commands import GROUPS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """(language, text, line number) of every fenced block."""
    text = page.read_text()
    return [(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in FENCE.finditer(text)]


def commands(text):
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in text.splitlines() if line.startswith("$ ")]


def name(page):
    return str(page.relative_to(ROOT))


RUNNABLE = [page for page in PAGES if any(language == "python" for language, _, _ in blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    """Python blocks, and between them in the tutorials the `exlstm` commands."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for language, text, line in blocks(page):
        if language == "python":
            # as many empty lines in front as make a traceback point into the page
            exec(compile("\n" * line + text, str(page), "exec"), namespace)
        elif language == "console" and page.parent.name == "tutorials":
            for program, *arguments in commands(text):
                assert program == "exlstm"
                assert main(arguments) == 0, f"{name(page)}: {arguments}\n{capsys.readouterr().err}"


def documented_commands():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for language, text, _ in blocks(page):
            if language == "console":
                yield from (pytest.param(command, id=f"{page.stem}: {' '.join(command)}") for command in commands(text))


@pytest.mark.parametrize("command", list(documented_commands()))
def test_commands_exist(command):
    """Targets of make and options of exlstm that a document names; --help ends a command before it does anything."""
    program, *arguments = command
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert targets >= {word for word in arguments if "=" not in word}
    elif program == "exlstm":
        name = arguments[: 2 if arguments[0] in GROUPS else 1]
        known = re.findall(r"--[a-z-]+", help_of(*name)) if name[0][0] != "-" else arguments
        assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= {*known, "--help", "--recipe"}
    else:
        assert program in {"git", "cd", "pip", "python3", ".venv/bin/pre-commit"}


@cache
def help_of(*command):
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*command, "--help"]) == 0
    return out.getvalue()


class Links(HTMLParser):
    """What a page loads: scripts, styles, images, fonts. Links that a reader may follow are not among them."""

    def __init__(self):
        super().__init__()
        self.loaded = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(attributes.get("href", ""))
        elif "src" in attributes:
            self.loaded.append(attributes["src"])


@pytest.mark.slow  # `make docs` builds it, too
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) / 2
    for page in pages:
        html = page.read_text()
        links = Links()
        links.feed(html)
        assert [link for link in links.loaded if link.startswith(("http", "//"))] == []
        assert "mathmlnumber" not in html
    mathml = (tmp_path / "maths/mlstm.html").read_text()
    assert mathml.count("<math") > 20
    styles = "".join(path.read_text() for path in tmp_path.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//", styles) == []
