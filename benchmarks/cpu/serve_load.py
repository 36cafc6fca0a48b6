"""Load generator for servers with OpenAI's interface: many streams in one process, at a few microseconds per frame.

It runs in a process of its own and prints one line of JSON. Frames are counted and timed, not parsed; the usage of the
last frame says how many tokens there were. Sockets are read raw, for a client library would take the server's core.
"""

import asyncio
import json
import random
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StreamTimes:
    """Times of a stream, in seconds of `time.monotonic`. status: 0 if the connection failed."""

    sent: float
    status: int = 0
    frames: list[float] = field(default_factory=list)
    ended: float = 0.0
    tokens: int = 0


async def stream(host: str, port: int, body: dict[str, Any]) -> StreamTimes:
    """One request, from sending it to the end of its answer."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    found = StreamTimes(time.monotonic())
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    last = b""
    while part := await reader.read(1 << 16):
        now = time.monotonic()
        if not found.status:
            found.status = int(part.split(b" ", 2)[1])
        found.frames += [now] * part.count(b'"text":')
        last = (last + part)[-2_000:]
    found.ended = time.monotonic()
    place = last.rfind(b'"completion_tokens":')
    if place >= 0:
        found.tokens = int(last[place + 20 :].split(b",")[0].split(b"}")[0])
    writer.close()
    return found


async def load(
    host: str, port: int, bodies: list[dict[str, Any]], concurrency: int, rate: float | None
) -> list[StreamTimes]:
    """All requests, so many at a time; or, with a rate per second, at random moments, whatever is in flight."""
    gate, chance, moment = asyncio.Semaphore(concurrency), random.Random(0), 0.0

    async def one(body: dict[str, Any], delay: float) -> StreamTimes:
        await asyncio.sleep(delay)
        async with gate:
            return await stream(host, port, body)

    waiting = []
    for body in bodies:
        moment += 0.0 if rate is None else chance.expovariate(rate)
        waiting.append(one(body, moment))
    return await asyncio.gather(*waiting)


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of all lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def summary(found: list[StreamTimes]) -> dict[str, Any]:
    """Rates and latencies of a load, in seconds."""
    good = [each for each in found if each.status == 200]
    began, ended = min(each.sent for each in found), max(each.ended for each in found)
    first = [each.frames[0] - each.sent for each in good if each.frames]
    gaps = [b - a for each in good for a, b in zip(each.frames, each.frames[1:], strict=False)]
    used = resource.getrusage(resource.RUSAGE_SELF)
    tokens = sum(each.tokens for each in good)
    return {
        "requests": len(found), "refused": sum(each.status == 429 for each in found), "good": len(good),
        "tokens": tokens, "seconds": ended - began, "tokens_per_second": tokens / (ended - began),
        "first_p50": quantile(first, 0.5), "first_p99": quantile(first, 0.99),
        "gap_p50": quantile(gaps, 0.5), "gap_p99": quantile(gaps, 0.99),
        "refused_p99": quantile([each.ended - each.sent for each in found if each.status == 429], 0.99),
        "client_cpu_seconds": used.ru_utime + used.ru_stime,
    }  # fmt: skip


def main() -> None:
    """Reads the load as JSON from standard input, and prints its summary."""
    job = json.load(sys.stdin)
    found = asyncio.run(load(job["host"], job["port"], job["bodies"], job["concurrency"], job["rate"]))
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
