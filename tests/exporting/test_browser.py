"""The page of examples/browser in a real browser: its text is that of `exlstm.generate`."""

import json
import shutil
import subprocess
import sys
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from queue import Queue
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


# sent by the page when its text is there: waiting for a moment of the browser's clock would not wait for WebAssembly
TELL = """<script>
new MutationObserver(() => {
  const { tokens, error } = document.body.dataset;
  const found = { tokens, error, speed: document.getElementById("speed").textContent };
  fetch("found", { method: "POST", body: JSON.stringify(found) });
}).observe(document.body, { attributes: true });
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None or NPM is None, reason="needs npm, and chromium or chrome")
def test_the_page_writes_the_text_of_generate(serve, tmp_path):
    """200 greedy tokens, in headless chromium, by onnxruntime-web as package-lock.json has it."""
    for name in ("package.json", "package-lock.json", "index.html", "model.js"):
        shutil.copy(FOLDER / name, tmp_path)
    subprocess.run([NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=tmp_path, check=True, timeout=600)
    page = tmp_path / "index.html"
    page.write_text(page.read_text().replace("</body>", TELL))
    model, told = serve.random_model(), Queue()
    serve.prepare(model, tmp_path)

    class Handler(serve.Handler):
        def do_POST(self):
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        query = urlencode({"prompt": PROMPT, "count": COUNT, "temperature": 0})
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
        ]
        address = f"http://127.0.0.1:{server.server_port}/?{query}"
        browser = subprocess.Popen(
            [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", address],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            found = told.get(timeout=300)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()
    assert "error" not in found
    greedy = exlstm.SamplingConfig(temperature=0.0)
    (expected,) = exlstm.generate(model, [list(PROMPT.encode())], max_tokens=COUNT, sampling=greedy)
    assert [int(token) for token in found["tokens"].split()] == list(expected.tokens)
    assert found["speed"].startswith(f"{COUNT} tokens, ")
