"""The server beside its own engine: what HTTP costs, how long users wait, and what a full queue does.

A server runs as users start it, in a process of its own; the load is `serve_load`, in another. The engine in this
process does the same work in turn with it, alone and beside a core that is as busy as HTTP and its client keep it.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import Request as WebRequest
from urllib.request import urlopen

import torch

import exlstm
from benchmarks.bench import Bench
from benchmarks.cpu.serve_load import quantile
from benchmarks.harness import rounded
from exlstm.data.tokenizer import Tokenizer, train_bpe
from exlstm.infer.engine import Engine
from exlstm.infer.requests import Request
from exlstm.models.lm import LM

LOAD = Path(__file__).with_name("serve_load.py")
TEXT = Path(threading.__file__).parent  # Python's own source


@dataclass(frozen=True)
class Work:
    """Sizes: tokens of prompts and answers, of the long prompt, turns of a session and their tokens."""

    preset: str = "laptop-medium"
    prompt: int = 128
    answer: int = 128
    long: int = 100_000
    turns: int = 1_000
    turn: int = 1_000
    streams: tuple[int, ...] = (16, 64)


QUICK = Work(preset="laptop-tiny", prompt=16, answer=8, long=2_000, turns=4, turn=20, streams=(4,))


@dataclass
class Server:
    """A running server. process: as it was started; log: what it has said."""

    process: subprocess.Popen[str]
    port: int
    ready_seconds: float

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request."""
        request = WebRequest(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        with urlopen(request) as found:
            return json.load(found)

    def get(self, path: str) -> bytes:
        """The content of a page."""
        with urlopen(f"http://127.0.0.1:{self.port}{path}") as found:
            content: bytes = found.read()
            return content

    def load(
        self, bodies: list[dict[str, Any]], concurrency: int, rate: float | None = None
    ) -> "subprocess.Popen[str]":
        """Starts a load; its summary is what the process prints. rate: of arrivals per second, None for one by one."""
        job = {"host": "127.0.0.1", "port": self.port, "bodies": bodies, "concurrency": concurrency, "rate": rate}
        process = subprocess.Popen(
            [sys.executable, str(LOAD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        return process

    def loop_seconds(self) -> float:
        """Processor time of the thread that speaks HTTP."""
        line = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/stat").read_text()
        fields = line.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def resident(self) -> int:
        """Bytes in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096


def summary_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a load has printed, once it has ended."""
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.read())
    process.wait()
    return found


@contextmanager
def server(folder: Path, *options: str) -> Iterator[Server]:
    """A server of the model in a folder."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "exlstm", "serve", str(folder), "--port", "0", "--cache-memory", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    port = next(int(line.split(",")[0].rsplit(":", 1)[1]) for line in process.stderr if " at http://" in line)
    # what it says later must not fill the pipe
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield Server(process, port, time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait(60)


SPIN = """
import sys, time
share = float(sys.argv[1])
while True:
    until = time.perf_counter() + 0.005 * share
    while time.perf_counter() < until: pass
    time.sleep(0.005 * (1 - share))
"""


@contextmanager
def partly_busy(share: float) -> Iterator[None]:
    """A process that takes this share of a core, in turns of 5 ms."""
    other = subprocess.Popen([sys.executable, "-c", SPIN, str(min(0.99, share))])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def run(bench: Bench) -> None:
    """All measurements of the server."""
    work = QUICK if bench.quick else Work()
    names = ["streaming", "latency", "long_prompt", "session", "health", "overload", "scoring", "states"]
    if not any(bench.wants(name) or any(bench.wants(f"{name}_{n}") for n in work.streams) for name in names):
        return
    with tempfile.TemporaryDirectory() as place:
        model, tokenizer = saved(Path(place), work)
        for n in work.streams:
            bench.record(
                f"streaming_{n}",
                f"{n} streams, {work.prompt} tokens in, {work.answer} out, {work.preset}",
                partial(streaming, Path(place), model, tokenizer, work, n, bench.repeats),
                dict,
            )
        for name, about, take in (
            ("long_prompt", f"8 streams while a prompt of {work.long:,} tokens is read", long_prompt),
            ("session", f"time to the first token of turn {work.turns:,}, of {work.turn:,} tokens each", session),
            ("overload", "three times as many requests as it can serve", overload),
            ("scoring", "echo with logprobs, and the harness in this process", scoring),
        ):
            bench.record(name, f"{about}, {work.preset}", partial(take, Path(place), model, tokenizer, work), dict)


def saved(folder: Path, work: Work) -> tuple[LM, Tokenizer]:
    """A model with fresh weights and a tokenizer of Python's source, in a folder."""
    torch.manual_seed(0)
    config = exlstm.preset(work.preset)
    text = [path.read_bytes() for path in sorted(TEXT.glob("*.py"))[:60]]
    tokenizer = train_bpe(text, config.vocab_size)
    model = LM(config).eval()
    exlstm.save(model, folder / "model")
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    return model, tokenizer


def prompts(work: Work, count: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random prompts: no cache helps."""
    chance = torch.Generator().manual_seed(seed)
    found: list[list[int]] = torch.randint(vocab_size, (count, work.prompt), generator=chance).tolist()
    return found


def bodies(work: Work, given: list[list[int]], **fields: Any) -> list[dict[str, Any]]:
    """Requests that use up their tokens."""
    common = {"max_tokens": work.answer, "ignore_eos": True, **fields}
    return [{"prompt": prompt, "seed": number, **common} for number, prompt in enumerate(given)]


def in_process(engine: Engine, work: Work, given: list[list[int]]) -> float:
    """Tokens per second of the engine alone."""
    for number, prompt in enumerate(given):
        engine.submit(Request(prompt=prompt, max_tokens=work.answer, seed=number, stop_at_boundary=False))
    began = time.perf_counter()
    tokens = sum(event.token is not None for event in engine.run())
    return tokens / (time.perf_counter() - began)


def streaming(folder: Path, model: LM, tokenizer: Tokenizer, work: Work, n: int, repeats: int) -> dict[str, Any]:
    """P1 to P4: rates of the server and of its engine, in turn, and what HTTP costs."""
    given = prompts(work, n, tokenizer.vocab_size)
    engine = Engine(model, slots=n, tokenizer=tokenizer)
    engine.warm_up()
    alone: list[float] = []
    beside: list[float] = []
    found: list[dict[str, Any]] = []
    loop: list[float] = []
    share = 0.2
    with server(folder / "model", "--slots", str(n), "--queue", "1024") as served:
        summary_of(served.load(bodies(work, given), n))
        for _ in range(max(repeats, 2)):
            alone.append(in_process(engine, work, given))
            with partly_busy(share):
                beside.append(in_process(engine, work, given))
            before = served.loop_seconds()
            each = summary_of(served.load(bodies(work, given), n))
            loop.append(1e6 * (served.loop_seconds() - before) / max(1, each["tokens"]))
            found.append(each)
            # of a core, what HTTP and the client took: the engine beside as much other work is compared, too
            share = (loop[-1] * each["tokens"] / 1e6 + each["client_cpu_seconds"]) / each["seconds"]
        others = prompts(work, 40, tokenizer.vocab_size, seed=1)
        one = summary_of(served.load(bodies(work, others, max_tokens=2), 1))["first_p50"]
        first = [first_token(engine, prompt) for prompt in others]
        health = [timed(partial(served.get, "/health")) for _ in range(20)]
        ready, memory = served.ready_seconds, served.resident()
    rate = median(each["tokens_per_second"] for each in found)
    return {
        "repeats": max(repeats, 2),
        "tokens_per_second": rounded(rate),
        "engine_tokens_per_second": rounded(median(alone)),
        "engine_beside_as_busy_a_core": rounded(median(beside[1:])),
        "share_of_a_core": rounded(share),
        "over_engine": rounded(rate / median(alone)),
        "over_engine_beside_as_busy_a_core": rounded(rate / median(beside[1:])),
        "loop_us_per_token": rounded(median(loop)),
        "client_us_per_token": rounded(1e6 * median(x["client_cpu_seconds"] / x["tokens"] for x in found)),
        "gap_ms": {name: rounded(1e3 * median(x[f"gap_{name}"] for x in found)) for name in ("p50", "p99")},
        "first_token_over_engine_ms": rounded(1e3 * (one - median(first))),
        "idle_health_ms": rounded(1e3 * median(health)),
        "ready_seconds": rounded(ready),
        "resident_mb": rounded(memory / 2**20),
    }


def first_token(engine: Engine, prompt: list[int]) -> float:
    """Seconds to the first token of a prompt, in this process."""
    engine.submit(Request(prompt=prompt, max_tokens=2, stop_at_boundary=False))
    began = time.perf_counter()
    while not any(event.token is not None for event in engine.step()):
        pass
    found = time.perf_counter() - began
    list(engine.run())
    return found


def timed(fn: Any) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def long_prompt(folder: Path, model: LM, tokenizer: Tokenizer, work: Work) -> dict[str, Any]:
    """P5, P11: gaps of running streams and the wait of a short prompt while a long one is read; probes meanwhile."""
    given = prompts(work, 8, tokenizer.vocab_size)
    running = bodies(work, given, max_tokens=work.answer * 4)
    long = prompts(Work(prompt=work.long), 1, tokenizer.vocab_size, seed=1)[0]
    short = bodies(work, [given[0][:50]], max_tokens=1)
    with server(folder / "model", "--slots", "16") as served:
        alone = summary_of(served.load(running, 8))
        quiet = summary_of(served.load(short, 1))["first_p50"]
        reader = served.load([{"prompt": long, "max_tokens": 1}], 1)
        time.sleep(0.2)
        streams = served.load(running, 8)
        time.sleep(0.3)
        waits = [summary_of(served.load(short, 1))["first_p50"] for _ in range(3)]
        probes = [timed(partial(served.get, path)) for path in ("/health", "/v1/models") * 100]
        beside, read = summary_of(streams), summary_of(reader)
    return {
        "gap_p99_ms": {"alone": rounded(1e3 * alone["gap_p99"]), "beside": rounded(1e3 * beside["gap_p99"])},
        "gap_p99_over_alone": rounded(beside["gap_p99"] / alone["gap_p99"]),
        "short_prompt_first_ms": {"alone": rounded(1e3 * quiet), "beside": rounded(1e3 * median(waits))},
        "long_prompt_seconds": rounded(read["seconds"]),
        "probe_p99_ms": rounded(1e3 * quantile(probes, 0.99)),
    }


def session(folder: Path, model: LM, tokenizer: Tokenizer, work: Work) -> dict[str, Any]:
    """P7, P8: the time to the first token of a turn does not depend on how much came before; forks of a long state."""
    turn = prompts(Work(prompt=work.turn), 1, tokenizer.vocab_size)[0]
    with server(folder / "model") as served:
        state, seconds = None, []
        for _ in range(work.turns):
            began = time.perf_counter()
            body = {"prompt": turn, "max_tokens": 1, "ignore_eos": True, "keep_state": True, "state": state}
            state = served.post("/v1/completions", body)["choices"][0]["state"]["id"]
            seconds.append(time.perf_counter() - began)
        forks = [
            timed(partial(served.post, "/v1/completions", {"state": state, "prompt": [], "max_tokens": 1, "n": n}))
            for n in (1, 16) * 5
        ]
        info = json.loads(served.get(f"/v1/states/{state}"))
    few = max(1, work.turns // 20)
    return {
        "tokens": info["tokens"],
        "state_bytes": info["bytes"],
        "turn_2_ms": rounded(1e3 * median(seconds[1 : 1 + few])),
        "last_turn_ms": rounded(1e3 * median(seconds[-few:])),
        "last_over_second": rounded(median(seconds[-few:]) / median(seconds[1 : 1 + few])),
        "fork_1_ms": rounded(1e3 * median(forks[::2])),
        "fork_16_ms": rounded(1e3 * median(forks[1::2])),
    }


def overload(folder: Path, model: LM, tokenizer: Tokenizer, work: Work) -> dict[str, Any]:
    """P13: what is accepted keeps its pace, and the rest is told at once."""
    n = 8
    given = prompts(work, 12 * n, tokenizer.vocab_size)
    with server(folder / "model", "--slots", str(n), "--queue", str(n)) as served:
        summary_of(served.load(bodies(work, given[:n]), n))
        full = summary_of(served.load(bodies(work, given), 2 * n))
        rate = full["good"] / full["seconds"]
        over = summary_of(served.load(bodies(work, given * 3), 1_000, 3 * rate))
    return {
        "tokens_per_second": {
            "at_capacity": rounded(full["tokens_per_second"]),
            "at_three_times": rounded(over["tokens_per_second"]),
        },
        "goodput_over_capacity": rounded(over["tokens_per_second"] / full["tokens_per_second"]),
        "refused": over["refused"],
        "refused_p99_ms": rounded(1e3 * over["refused_p99"]),
    }


def scoring(folder: Path, model: LM, tokenizer: Tokenizer, work: Work) -> dict[str, Any]:
    """P14: texts scored over HTTP, contexts shared by four endings, beside the harness on the same texts."""
    from lm_eval.api.instance import Instance

    from exlstm.harness.model import HarnessModel

    contexts = [tokenizer.decode(ids).decode("utf-8", "ignore") for ids in prompts(work, 32, tokenizer.vocab_size)]
    endings = [" yes", " no", " maybe so", " in the end"]
    pairs = [(context, ending) for context in contexts for ending in endings]
    local = HarnessModel(str(folder / "model"), device="cpu")
    jobs = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    encoded = []
    for context, ending in pairs:
        before = [tokenizer.boundary, *tokenizer.encode(context.encode())]
        encoded.append((before, tokenizer.encode(ending.encode())))
    seconds: dict[str, list[float]] = {"harness": [], "echo": [], "echo with logprobs_from": []}
    with server(folder / "model") as served:
        for _ in range(3):
            seconds["harness"].append(timed(partial(local.loglikelihood, jobs)))
            for name, start in (("echo", False), ("echo with logprobs_from", True)):
                began = time.perf_counter()
                for place in range(0, len(encoded), 32):
                    group = encoded[place : place + 32]
                    for context_len in sorted({len(before) for before, _ in group}) if start else [0]:
                        same = [a + b for a, b in group if not start or len(a) == context_len]
                        served.post(
                            "/v1/completions",
                            {
                                "prompt": same,
                                "max_tokens": 0,
                                "echo": True,
                                "logprobs": 1,
                                "logprobs_from": context_len,
                            },
                        )
                seconds[name].append(time.perf_counter() - began)
    best = {name: median(values) for name, values in seconds.items()}
    return {
        "seconds": {name: rounded(value) for name, value in best.items()},
        "over_harness": {name: rounded(best["harness"] / value) for name, value in best.items() if name != "harness"},
    }
