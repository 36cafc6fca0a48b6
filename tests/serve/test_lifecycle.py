"""Requests that end otherwise: clients that go, slow readers, deadlines, a full queue, a failing engine."""

import contextlib
import json
import socket
import struct
import threading
import time

import pytest

from exlstm.infer.generate import generate
from exlstm.infer.requests import Request
from serving_tools import frames, serving


@pytest.fixture
def opened():
    """A function that sends a request and returns its socket."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(sent(*args, **options))


def sent(served, body, *, path="/v1/completions", buffer=None):
    """A socket that has sent a request, which does not end by itself, and reads nothing yet."""
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
    data = json.dumps({"ignore_eos": True, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    sock.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return sock


def until(condition, seconds=10.0):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def idle(served):
    engine = served.service.engine
    return not engine.busy and not served.service.jobs and not served.service.thread.routes


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["queued", "reading", "decoding"])
def test_a_client_that_goes_frees_its_slot(served, phase, stream, reset, opened):
    others = []
    if phase == "queued":
        others = [opened(served, {"prompt": "a", "max_tokens": 20_000, "stream": True}) for _ in range(12)]
        until(lambda: served.service.engine.decoding == 4)
    prompt = "a" * (60_000 if phase == "reading" else 5)
    sock = opened(served, {"prompt": prompt, "max_tokens": 20_000, "stream": stream})
    if phase == "decoding":
        until(lambda: served.service.engine.decoding == 1)
    else:
        until(lambda: len(served.service.jobs) == len(others) + 1)
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    until(lambda: len(served.service.jobs) == len(others))
    for each in others:
        each.close()
    until(lambda: idle(served))
    assert served.service.admission.tokens == 0
    assert not served.service.admission.waiting


def test_many_aborts_disturb_nobody(served, opened):
    (expected,) = generate(served.model, [Request(prompt="Once", max_tokens=400, seed=1)], tokenizer=served.tokenizer)
    found = []

    def steady():
        found.append(served.stream("/v1/completions", {"prompt": "Once", "max_tokens": 400, "seed": 1}))

    thread = threading.Thread(target=steady)
    thread.start()
    for number in range(60):
        sock = opened(served, {"prompt": "x" * (number * 37 % 900 + 1), "max_tokens": 300, "stream": bool(number % 2)})
        time.sleep(number % 7 / 500)
        sock.close()
    thread.join()
    assert "".join(frame["choices"][0]["text"] for frame in found[0]) == expected.text
    until(lambda: idle(served))


def test_a_slow_reader_stops_nobody_and_is_given_up(opened):
    with serving(limits={"stall_seconds": 0.5}) as served:
        slow = opened(served, {"prompt": "a", "max_tokens": 30_000, "stream": True, "logprobs": 20}, buffer=2_048)
        until(lambda: served.service.engine.decoding == 1)
        began = time.monotonic()
        assert served.post("/v1/completions", {"prompt": "b", "max_tokens": 50}).status_code == 200
        assert time.monotonic() - began < 5
        until(lambda: idle(served), 30)
        assert b'exlstm_cancelled_total{reason="slow"} 1.0' in served.get("/metrics").content
        slow.close()


def test_deadlines():
    with serving() as served:
        body = {"prompt": "a", "max_tokens": 30_000, "timeout": 0.3, "ignore_eos": True}
        response = served.post("/v1/completions", body)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        found = served.stream("/v1/completions", body)
        assert found[-1]["error"]["code"] == "timeout"
        assert found[0]["choices"][0]["finish_reason"] is None
        until(lambda: idle(served))


def test_a_full_queue_says_when_to_come_again(opened):
    with serving(slots=1, limits={"queue": 2, "queue_per_key": 2, "queue_tokens": 1_000}) as served:
        busy = [opened(served, {"prompt": "a", "max_tokens": 30_000, "stream": True}) for _ in range(2)]
        until(lambda: served.service.engine.running == 2 and not served.service.admission.waiting)
        busy += [opened(served, {"prompt": "a", "max_tokens": 30_000, "stream": True}) for _ in range(2)]
        until(lambda: served.service.engine.waiting == 2)
        began = time.monotonic()
        response = served.post("/v1/completions", {"prompt": "a"})
        assert time.monotonic() - began < 1
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        for sock in busy:
            sock.close()
        until(lambda: idle(served))
        assert served.post("/v1/completions", {"prompt": "a"}).status_code == 200


def test_a_comment_is_sent_into_silence(opened):
    with serving(limits={"keep_alive_comment": 0.05}) as served:
        served.service.engine.prefill_tokens = 1
        sock = opened(served, {"prompt": "a" * 400, "max_tokens": 1, "stream": True})
        data = b""
        with contextlib.suppress(TimeoutError):
            while b"[DONE]" not in data:
                data += sock.recv(65_536)
        body = data.partition(b"\r\n\r\n")[2]
        assert b": keep-alive\n\n" in body
        sock.close()


def test_a_step_that_fails_ends_its_requests_and_the_server_goes_on(monkeypatch):
    with serving() as served:
        plain = served.service.engine.step

        def fail():
            raise RuntimeError("broken")

        served.service.engine.step = fail
        response = served.post("/v1/completions", {"prompt": "a"})
        assert response.status_code == 500
        assert "broken" not in response.text
        served.service.engine.step = plain
        assert served.post("/v1/completions", {"prompt": "a"}).status_code == 200
        assert served.get("/health").status_code == 200


def test_an_engine_that_fails_again_and_again_ends_the_server(capfd):
    with serving() as served:

        def fail():
            raise RuntimeError("broken")

        served.service.engine.step = fail
        for _ in range(3):
            assert served.post("/v1/completions", {"prompt": "a"}).status_code in (500, 503)
        until(lambda: served.service.phase == "failed" or served.serving.exit_code == 1)
    assert served.serving.exit_code == 1
    assert "again and again" in capfd.readouterr().err


def test_draining_completes_streams_and_refuses_new_work(opened):
    with serving() as served:
        sock = opened(served, {"prompt": "a", "max_tokens": 3_000, "stream": True})
        until(lambda: served.service.engine.decoding == 1)
        with served.client() as client:
            client.get("/health")
            served.serving.loop.call_soon_threadsafe(served.serving.stop)
            until(lambda: served.service.phase == "draining")
            assert client.get("/health").status_code == 503
            response = client.post("/v1/completions", json={"prompt": "a"})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
            assert "retry-after" in response.headers
        data = b""
        while part := sock.recv(65_536):
            data += part
        found = frames(unchunked(data.partition(b"\r\n\r\n")[2]))
        assert found[-1]["choices"][0]["finish_reason"] == "length"


def unchunked(data):
    """The body of a chunked answer."""
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found, data = found + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return found


def test_a_second_signal_ends_at_once_whoever_reads(opened):
    with serving() as served:
        for _ in range(3):
            opened(served, {"prompt": "a", "max_tokens": 30_000, "stream": True}, buffer=2_048)
        until(lambda: served.service.engine.decoding == 3)
        time.sleep(0.3)
        began = time.monotonic()
    assert time.monotonic() - began < 5
