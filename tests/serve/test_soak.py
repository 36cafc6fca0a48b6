"""A server under everything at once: arrivals, aborts, slow readers, bad requests, sessions, kills and restarts.

Every stream that completes is what it would be alone: none is lost, and none has a token of another.
"""

import json
import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter

import httpx
import pytest
from test_states_http import started

import exlstm
from exlstm.data.tokenizer import ByteTokenizer
from exlstm.infer.generate import generate
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY
from serving_tools import JSON, build, frames, serving

SHORT, LONG = 4.0, 1800.0  # seconds
CANDIDATES = [
    {"prompt": f"<{number}> " + "x" * (number * 37 % 400), "max_tokens": 1 + number * 13 % 60, "temperature": 0}
    for number in range(64)
]
MARGIN = 1e-3  # between the two likeliest tokens: rounding, which depends on the batch, must not decide


class Load:
    """Clients that do one thing after another. counts: of what was done; wrong: what must not be."""

    def __init__(self, url, jobs, seed):
        self.url, self.chance = url, random.Random(seed)
        self.jobs, self.expected = zip(*jobs, strict=True)
        self.counts, self.wrong, self.lost = Counter(), [], False

    def run(self, until):
        while time.monotonic() < until and not self.wrong:
            kind = self.chance.choices(
                ["stream", "whole", "abort", "reset", "bad", "session", "slow"], [30, 20, 14, 6, 12, 14, 4]
            )[0]
            try:
                getattr(self, kind)(self.chance.randrange(len(self.jobs)))
                self.counts[kind] += 1
            except (httpx.HTTPError, OSError) as error:
                # while the server is killed and restarted
                self.counts["lost"] += 1
                if not self.lost:
                    self.wrong.append(repr(error))
                time.sleep(0.05)

    def post(self, body):
        return httpx.post(f"{self.url}/v1/completions", content=json.dumps(body), headers=JSON, timeout=60)

    def same(self, number, text):
        if text != self.expected[number]:
            self.wrong.append(f"job {number}: {text!r} and not {self.expected[number]!r}")

    def stream(self, number):
        response = self.post(self.jobs[number] | {"stream": True, "ignore_eos": True})
        if response.status_code == 429:
            self.counts["full"] += 1
            return
        told = frames(response.content)
        self.same(number, "".join(choice["text"] for frame in told for choice in frame["choices"]))

    def whole(self, number):
        response = self.post(self.jobs[number] | {"ignore_eos": True, "n": 1 + number % 3})
        if response.status_code == 200:
            self.same(number, response.json()["choices"][0]["text"])

    def bad(self, number):
        body = [
            {"prompt": [999]},
            {"max_tokens": -1},
            {"stop": 3},
            {"state": "st_none"},
            {"grammar": {"type": "regex"}},
        ]
        response = self.post({"prompt": "a", **body[number % len(body)]})
        if response.status_code not in (400, 404, 200, 429):
            self.wrong.append(response.text)

    def session(self, number):
        first = self.post(self.jobs[number] | {"ignore_eos": True, "keep_state": True})
        if first.status_code != 200:
            return
        self.same(number, first.json()["choices"][0]["text"])
        state = first.json()["choices"][0]["state"]["id"]
        if state is not None:
            more = [self.post({"prompt": [], "state": state, "max_tokens": 4, "temperature": 0}) for _ in range(2)]
            texts = {each.json()["choices"][0]["text"] for each in more if each.status_code == 200}
            if len(texts) > 1:
                self.wrong.append(f"two answers from one state: {texts}")

    def sock(self, number, **fields):
        found = socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), timeout=10)
        data = json.dumps(
            self.jobs[number] | {"max_tokens": 3_000, "ignore_eos": True, "stream": True, **fields}
        ).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        found.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return found

    def abort(self, number):
        with self.sock(number):
            time.sleep(self.chance.random() / 20)

    def reset(self, number):
        with self.sock(number) as found:
            time.sleep(self.chance.random() / 20)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def slow(self, number):
        with self.sock(number, logprobs=5) as found:
            for _ in range(4):
                found.recv(1_000)
                time.sleep(0.05)


def jobs_of(model):
    """Requests with their texts, of those in which every token is likelier than the next by far."""
    requests = [
        Request(
            prompt=job["prompt"], max_tokens=job["max_tokens"], sampling=GREEDY, stop_at_boundary=False, logprobs=2
        )
        for job in CANDIDATES
    ]  # fmt: skip
    found = [
        (job, each.text)
        for job, each in zip(CANDIDATES, generate(model, requests, tokenizer=ByteTokenizer()), strict=True)
        if all(first - second > MARGIN for (_, first), (_, second) in each.top_logprobs)
    ]
    assert len(found) > 40
    assert len({text for _, text in found}) > 30, "another's text would not be noticed"
    return found


def run(loads, seconds, also=lambda until: None):
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=load.run, args=(until,)) for load in loads]
    for thread in threads:
        thread.start()
    also(until)
    for thread in threads:
        thread.join()
    assert [wrong for load in loads for wrong in load.wrong] == []
    return sum((load.counts for load in loads), Counter())


def resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_few_seconds_of_everything():
    model = build()
    jobs = jobs_of(model)
    with serving(model, slots=4, queue=8, cache_memory=8) as served:
        counts = run([Load(served.url, jobs, seed) for seed in range(6)], SHORT)
        assert counts["stream"] > 5
        assert counts["session"] > 2
        end = time.monotonic() + 10
        while served.service.jobs or served.service.engine.busy:
            assert time.monotonic() < end, "something was left"
            time.sleep(0.01)
        assert served.service.admission.tokens == 0
        assert not served.service.admission.waiting


@pytest.mark.slow
def test_half_an_hour_of_everything(tmp_path):
    """The server is a process: its memory and its files stay as they are; every few minutes it is killed."""
    model = build()
    exlstm.save(model, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(ByteTokenizer().to_json()))
    options = ("--state-folder", str(tmp_path / "states"), "--state-memory", "8", "--cache-memory", "8", "--queue", "8")
    process, url = started(tmp_path / "model", *options)
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    jobs = jobs_of(model)
    loads = [Load(url, jobs, seed) for seed in range(6)]
    memory, files = [], []

    def watch(until):
        while time.monotonic() < until:
            time.sleep(5)
            memory.append(resident(process.pid))
            files.append(len(os.listdir(f"/proc/{process.pid}/fd")))

    try:
        counts = run(loads, LONG, watch)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    settled = memory[len(memory) // 10 :]
    assert settled[-1] <= 1.01 * max(settled[: len(settled) // 4])
    assert max(files) < 200
    assert counts["stream"] > 1_000
    # and after a kill, with the states of before
    for seed in range(3):
        process, url = started(tmp_path / "model", *options)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            run([Load(url, jobs, 100 + seed)], 10.0)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
