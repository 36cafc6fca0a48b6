"""The page of the documentation runs against a server: its Python as it is, its curl as a request."""

import re
import tomllib
from dataclasses import asdict

from document_commands import ROOT, blocks, commands
from exlstm.cli.serve import Serve
from exlstm.serve.limits import Limits
from exlstm.serve.main import limits_of
from serving_tools import serving

PAGE = ROOT / "docs/serve.md"
ADDRESS = "http://127.0.0.1:8000"


def test_the_page_runs(capsys):
    with serving(chat_template="turns") as served:
        namespace = {"__name__": "__main__"}
        for language, text, line in blocks(PAGE):
            if language == "python":
                code = text.replace(ADDRESS, served.url)
                exec(compile("\n" * line + code, str(PAGE), "exec"), namespace)
            for words in commands(language, text):
                if words[0] == "curl":
                    assert words[1].startswith(ADDRESS)
                    response = served.post(words[1].removeprefix(ADDRESS), words[words.index("-d") + 1].encode())
                    assert response.status_code == 200, response.text
        namespace["client"].close()
        namespace["server"].close()
    assert "True" in capsys.readouterr().out, "a state that was uploaded is the one that was downloaded"


def test_the_table_of_limits_tells_the_defaults():
    """Numbers on the page are those of the options and of `Limits`, and every option of the table exists."""
    page, options = PAGE.read_text(), Serve(model="x")
    limits = asdict(limits_of(options)) | {"slots": 64}
    table = page[page.index("| limit | default |") : page.index("A full queue is 429")]
    for name in re.findall(r"`--([a-z-]+)`", table):
        assert hasattr(options, name.replace("-", "_")), name
    told = {int(number.replace(",", "")) for number in re.findall(r"[0-9][0-9,]*", table)}
    wanted = {limits[name] for name in ("queue", "queue_tokens", "prompt_tokens", "max_tokens", "json_depth")}
    assert told >= wanted | {int(limits["request_seconds"]), options.max_states, int(options.state_hours)}


def test_a_key_of_several_has_a_quarter_of_the_queue():
    assert limits_of(Serve(model="x", api_key_file="keys")).queue_per_key == 64
    assert limits_of(Serve(model="x")).queue_per_key == Limits().queue


def test_files_for_operators_name_options_that_exist():
    """The unit of systemd and the Dockerfile."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = {"--" + name.replace("_", "-") for name in vars(Serve(model="x"))}
    for name in ("exlstm.service", "Dockerfile"):
        text = (ROOT / "deploy" / name).read_text()
        start = text.index("ExecStart=" if name.endswith("service") else 'ENTRYPOINT ["exlstm", "serve"')
        line = text[start:].splitlines()[0]
        assert set(re.findall(r"--[a-z-]+", line)) <= known
        assert line.count("--") > 1
    assert set(re.findall(r"\[([a-z,]+)\]", (ROOT / "deploy/Dockerfile").read_text())[0].split(",")) <= extras.keys()
    unit = (ROOT / "deploy/exlstm.service").read_text()
    wait = int(re.search(r"TimeoutStopSec=(\d+)", unit)[1])
    assert wait > Limits().drain_seconds
