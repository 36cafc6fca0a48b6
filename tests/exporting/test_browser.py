"""The page of examples/browser in a real browser: its text is that of `exlstm.generate`."""

import html
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

import pytest

import exlstm

FOLDER = Path(__file__).parents[2] / "examples" / "browser"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NPM = shutil.which("npm")
PROMPT, COUNT = "def main(", 200


@pytest.fixture
def serve(monkeypatch):
    """The module that prepares and serves the page."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield pytest.importorskip("serve")
    sys.modules.pop("serve", None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None or NPM is None, reason="needs npm, and chromium or chrome")
def test_the_page_writes_the_text_of_generate(serve, tmp_path):
    """200 greedy tokens, in headless chromium, by onnxruntime-web as package-lock.json has it."""
    for name in ("package.json", "package-lock.json", "index.html", "model.js"):
        shutil.copy(FOLDER / name, tmp_path)
    subprocess.run([NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=tmp_path, check=True, timeout=600)
    model = serve.random_model()
    serve.prepare(model, tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(serve.Handler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        query = urlencode({"prompt": PROMPT, "count": COUNT, "temperature": 0})
        page = opened(f"http://127.0.0.1:{server.server_port}/?{query}", tmp_path)
        server.shutdown()
    assert "data-error" not in page, page
    found = [int(token) for token in re.search(r'data-tokens="([^"]*)"', page)[1].split()]
    greedy = exlstm.SamplingConfig(temperature=0.0)
    (expected,) = exlstm.generate(model, [list(PROMPT.encode())], max_tokens=COUNT, sampling=greedy)
    assert found == list(expected.tokens)
    assert f"{COUNT} tokens" in html.unescape(page)


def opened(url, folder):
    """The page after its script has run, as HTML; its clock runs ahead by seconds for every picture."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=100000000", "--dump-dom", url],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return done.stdout
