"""Metrics for Prometheus, with the names that vLLM's have behind `exlstm_`. Labels come from closed sets only."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from exlstm.serve.engine_thread import Delivery

if TYPE_CHECKING:
    from exlstm.serve.replies import Reply

SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
GAPS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000, 1_000_000)


class Metrics:
    """Counters, gauges and histograms of a server, in a registry of their own."""

    def __init__(self, version: str, fingerprint: str) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"exlstm_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"exlstm_{name}", text, buckets=buckets, registry=registry)

        self.running = self.gauge("num_requests_running", "Sequences that are read or decoded")
        self.waiting = self.gauge("num_requests_waiting", "Sequences that wait")
        self.lag = self.gauge("event_loop_lag_seconds", "Time by which the event loop was late at the last look")
        self.prompt = counter("prompt_tokens", "Tokens of prompts, cached ones included")
        self.generated = counter("generation_tokens", "Tokens sampled")
        self.cached = counter("prefix_cache_hits", "Tokens of prompts found in the cache")
        self.queried = counter("prefix_cache_queries", "Tokens of prompts looked up in the cache")
        self.outcomes = counter("request_success", "Answers by why they ended", "finished_reason")
        self.cancelled = counter("cancelled", "Requests that did not end by themselves", "reason")
        self.refused = counter("rejected", "Requests refused for the state of the server", "reason")
        self.statuses = counter("http_responses", "Answers by status", "status")
        self.unknown = counter("unknown_fields", "Fields of requests that were ignored")
        self.frame_count = counter("frames", "Frames of streams")
        self.first = histogram("time_to_first_token_seconds", "From arrival to the first token")
        self.gap = histogram("inter_token_latency_seconds", "Between steps of decoding", GAPS)
        self.whole = histogram("e2e_request_latency_seconds", "From arrival to the end")
        self.queue = histogram("request_queue_time_seconds", "From arrival until the prompt is read")
        self.prefill = histogram("request_prefill_time_seconds", "Until the first token, from when reading began")
        self.decode = histogram("request_decode_time_seconds", "From the first token to the end")
        self.prompt_sizes = histogram("request_prompt_tokens", "Tokens of a prompt", TOKENS)
        self.answer_sizes = histogram("request_generation_tokens", "Tokens of an answer", TOKENS)
        self.step_seconds = histogram("step_seconds", "Time of a step of the engine", GAPS)
        self.step_tokens = histogram("iteration_tokens", "Tokens read and sampled in a step", TOKENS)
        build = Gauge("exlstm_build_info", "Version and weights", ("version", "fingerprint"), registry=registry)
        build.labels(version, fingerprint[:12]).set(1)

    def gauge(self, name: str, text: str, value: Callable[[], float] | None = None) -> Gauge:
        """A gauge. value: asked for it when metrics are read."""
        found = Gauge(f"exlstm_{name}", text, registry=self.registry)
        if value is not None:
            found.set_function(value)
        return found

    def rejected(self, reason: str) -> None:
        """Counts a request that was refused for the state of the server."""
        self.refused.labels(reason).inc()

    def answered(self, status: int) -> None:
        """Counts an answer by its status."""
        self.statuses.labels(str(status)).inc()

    def step(self, delivery: Delivery) -> None:
        """Notes a step."""
        sampled = sum(event.token is not None for _, _, event in delivery.events)
        self.running.set(delivery.running)
        self.waiting.set(delivery.waiting)
        self.step_seconds.observe(delivery.seconds)
        self.step_tokens.observe(sampled + max(0, delivery.prefill))
        self.generated.inc(sampled)
        if sampled:
            self.gap.observe(delivery.seconds)

    def reply(self, reply: "Reply", outcome: str) -> None:
        """Notes the end of a reply."""
        now, job = asyncio.get_running_loop().time(), reply.job
        tokens = sum(len(each.tokens) for each in reply.progress)
        self.frame_count.inc(reply.frames)
        if outcome != "done":
            self.cancelled.labels(outcome).inc()
            return
        for each in reply.progress:
            self.outcomes.labels(each.finish_reason).inc()
        self.prompt.inc(job.prompt_tokens)
        self.queried.inc(job.prompt_tokens)
        self.cached.inc(reply.usage()["prompt_tokens_details"]["cached_tokens"])
        self.prompt_sizes.observe(job.prompt_tokens)
        self.answer_sizes.observe(tokens)
        self.whole.observe(now - job.created)
        if job.started_at is not None:
            self.queue.observe(job.started_at - job.created)
        if reply.first_token_at is not None:
            self.first.observe(reply.first_token_at - job.created)
            self.prefill.observe(reply.first_token_at - (job.started_at or job.created))
            self.decode.observe(now - reply.first_token_at)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        found: bytes = generate_latest(self.registry)
        return found
