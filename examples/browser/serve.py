"""Exports one step of a byte-level language model, and serves the page that runs it in a browser.

    cd examples/browser && npm ci
    python serve.py ../../runs/demo --port 8080

Without a model it is one with random weights, whose text says nothing. The page is served with the headers that
WebAssembly needs for threads. Nothing is fetched from elsewhere, and nothing is computed here.
"""

import argparse
import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import exlstm
from exlstm.exporting.host import open_exported

HERE = Path(__file__).parent
BYTES = 257  # tokens: the bytes, and the end of a text


def prepare(model: exlstm.LM, folder: Path) -> None:
    """Writes the step, and beside it what ONNX Runtime does not tell a page: names, shapes and dtypes."""
    if model.config.vocab_size != BYTES:
        raise SystemExit(f"this model has {model.config.vocab_size} tokens, and the page knows {BYTES}: bytes.")
    exlstm.export(model, folder / "model.onnx", overwrite=True)
    about = open_exported(folder / "model.onnx").about
    described = {name: json.loads(about[name]) for name in ("input", "output", "state")}
    (folder / "model.json").write_text(json.dumps(described))


def random_model() -> exlstm.LM:
    torch.manual_seed(0)
    return exlstm.LM(exlstm.lm_from_pattern("ms", vocab_size=BYTES, width=64)).eval()


class Handler(SimpleHTTPRequestHandler):
    """Files of the folder, isolated from other pages."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def server(port: int) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=HERE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", help="a run or a model with the tokenizer bytes")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    if not (HERE / "node_modules/onnxruntime-web").is_dir():
        raise SystemExit("onnxruntime-web is missing; run first: npm ci")
    if options.model is None:
        model = random_model()
    else:
        from exlstm.models.locate import locate

        model = locate(options.model).load()
    prepare(model, HERE)
    with server(options.port) as page:
        print(f"http://127.0.0.1:{page.server_port}/ (Ctrl-C ends)")
        page.serve_forever()


if __name__ == "__main__":
    main()
