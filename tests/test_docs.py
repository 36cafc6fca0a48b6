"""Documents are tests: their Python runs, their commands are parsed and run, the site builds.

Where a command runs: those of the tutorials here, between their Python; the README's in test_readme.py, with a smaller
budget; those of lm-evaluation-harness in tests/harness. Commands that do not run are in document_commands.py, with the
reason. Blocks of one page share a namespace and run in order, in an empty folder.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from document_commands import NOT_RUN, OTHERS, PAGES, PROGRAMS, ROOT, blocks, commands, commands_of, name, runs
from exlstm.cli import main
from exlstm.cli.commands import COMMANDS, FOREIGN, GROUPS
from exlstm.mixers import MIXERS

# the page of the server runs beside one, in tests/serve
RUNNABLE = [
    page for page in PAGES if any(language == "python" for language, _, _ in blocks(page)) and page.name != "serve.md"
]


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    """Python blocks, and between them in the tutorials the `exlstm` commands."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for language, text, line in blocks(page):
        if language == "python":
            # as many empty lines in front as make a traceback point into the page
            exec(compile("\n" * line + text, str(page), "exec"), namespace)
        elif page.parent.name == "tutorials":
            for program, *arguments in commands(language, text):
                assert program == "exlstm"
                assert main(arguments) == 0, f"{name(page)}: {arguments}\n{capsys.readouterr().err}"


DOCUMENTED = [(page, words) for page in [*PAGES, *OTHERS] for words in commands_of(page)]
OURS = [words[1:] for _, words in DOCUMENTED if words[0] == "exlstm" and words[1] not in FOREIGN]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_commands_are_parsed(words, monkeypatch, tmp_path):
    """By the parser itself, names and values of all options, up to where the command would begin."""
    begun = []
    monkeypatch.chdir(tmp_path)
    if "--config" in words:  # it is read by the parser
        file = tmp_path / words[words.index("--config") + 1]
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    for table in (COMMANDS, *(group.commands for group in GROUPS.values())):
        for command in table:
            monkeypatch.setitem(table, command, replace(table[command], run=begun.append))
    assert main(words) == 0
    assert len(begun) == (words != ["--help"])


def test_every_command_runs_or_is_named():
    """A command on a page that no test runs is in NOT_RUN, and nothing else is."""
    run_here = {ROOT / "README.md", ROOT / "docs/harness.md", *ROOT.glob("docs/tutorials/*.md")}
    known = {shlex.join(words) for page, words in DOCUMENTED if page in run_here and runs(words)}
    documented = {shlex.join(words) for _, words in DOCUMENTED}
    assert documented - known - NOT_RUN.keys() == {shlex.join(words) for _, words in DOCUMENTED if words[0] in PROGRAMS}
    assert NOT_RUN.keys() <= documented


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {word for _, (program, *words) in DOCUMENTED if program == "make" for word in words if "=" not in word}
    assert targets >= asked
    assert asked >= {"test", "demo"}


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


def test_every_mixer_has_its_row_in_the_table_of_all():
    """By its name; the numbers are computed when the site is built."""
    spec = importlib.util.spec_from_file_location("mixers_hook", ROOT / "docs" / "_hooks" / "mixers.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    assert set(hook.FACTS) == set(MIXERS)
    rows = [line for line in hook.table().splitlines() if line.startswith("| `")]
    assert len(rows) == len(MIXERS)
    assert all(row.count(" | ") == rows[0].count(" | ") for row in rows)
