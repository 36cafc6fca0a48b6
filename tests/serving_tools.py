"""A real server on a port of its own, in a thread of the test's process."""

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import torch

from exlstm.cli.serve import Serve
from exlstm.data.tokenizer import ByteTokenizer
from exlstm.models.lm import LM
from exlstm.models.locate import ModelOnDisk
from exlstm.models.pattern import lm_from_pattern
from exlstm.serve.keys import Keys
from exlstm.serve.main import guarded, service_of
from exlstm.serve.server import Serving, bound

JSON = {"content-type": "application/json"}


def build(vocab_size=257, dtype=torch.float32, pattern="ms"):
    torch.manual_seed(0)
    model = LM(lm_from_pattern(pattern, vocab_size=vocab_size, width=32, heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.to(dtype).eval()


@dataclass
class Served:
    """A running server. url: its address."""

    url: str
    service: object
    serving: Serving
    model: LM
    tokenizer: object

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def post(self, path, value, **options):
        data = value if isinstance(value, bytes) else json.dumps(value)
        with self.client() as client:
            return client.post(path, content=data, headers={**JSON, **options.pop("headers", {})}, **options)

    def get(self, path, **options):
        with self.client() as client:
            return client.get(path, **options)

    def stream(self, path, value, **options):
        """The frames of a stream, without the last."""
        data = self.post(path, {**value, "stream": True}, **options)
        assert data.status_code == 200, data.text
        return frames(data.content)


def frames(data):
    """The JSON of every frame; the stream has to be well formed."""
    assert b"\r" not in data
    *parts, rest = data.split(b"\n\n")
    assert rest == b""
    parts = [part for part in parts if not part.startswith(b":")]
    assert parts[-1] == b"data: [DONE]"
    assert all(part.startswith(b"data: ") for part in parts)
    return [json.loads(part[6:]) for part in parts[:-1]]


@contextmanager
def serving(model=None, tokenizer=None, *, keys=None, limits=None, **options):
    """A server of a model with these options of the command line."""
    model, tokenizer = model or build(), tokenizer or ByteTokenizer()
    chosen = Serve(model="unused", **{"slots": 4, **options})
    keys = Keys(keys or {})
    source = ModelOnDisk(weights=Path("tiny"), tokenizer_file=Path("tokenizer.json"))
    service = service_of(model, tokenizer, source, chosen, keys.owners)
    if limits:
        service.limits = replace(service.limits, **limits)
        service.admission.limits = service.limits
        service.prompts.most = service.limits.prompt_tokens
    sock, ready = bound("127.0.0.1", 0), threading.Event()
    server = Serving(service=service, app=guarded(service, chosen, keys), sock=sock, ready=ready.set)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", service, server, model, tokenizer)
    finally:
        server.loop.call_soon_threadsafe(server.stop)
        server.loop.call_soon_threadsafe(server.stop)
        thread.join(30)
        assert not thread.is_alive()
