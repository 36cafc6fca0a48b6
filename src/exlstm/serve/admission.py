"""Admission of jobs: bounds of the queue in requests and in tokens, of all and of each key."""

from collections import Counter
from dataclasses import dataclass, field

from exlstm.serve.errors import busy
from exlstm.serve.jobs import Job
from exlstm.serve.limits import Limits


@dataclass(eq=False)
class Admission:
    """Prompts that wait, by owner. rate: prompt tokens read per second, smoothed, for the time to wait."""

    limits: Limits
    waiting: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    rate: float = 1_000.0

    def admit(self, job: Job) -> None:
        """Counts a job in. Refusal with 429 if the queue is full; the job then leaves no trace."""
        prompts, tokens, limits = len(job.parts), job.prompt_tokens, self.limits
        if self.waiting.total() and self.waiting.total() + prompts > limits.queue:
            raise self.full(f"{self.waiting.total()} prompts are waiting, and {limits.queue} may; try again later.")
        if self.waiting[job.owner] and self.waiting[job.owner] + prompts > limits.queue_per_key:
            raise self.full(f"{self.waiting[job.owner]} of your prompts are waiting, and {limits.queue_per_key} may.")
        if self.tokens and self.tokens + tokens > limits.queue_tokens:
            raise self.full(f"prompts of {self.tokens:,} tokens are waiting, and {limits.queue_tokens:,} may.")
        self.waiting[job.owner] += prompts
        self.tokens += tokens

    def full(self, message: str) -> Exception:
        """Refusal with the time in which the queue should have been read."""
        return busy(message, "queue_full", self.tokens / self.rate)

    def start(self, job: Job, tokens: int) -> None:
        """A prompt of the job is being read."""
        job.started += 1
        self.leave(job.owner, 1, tokens)

    def drop(self, job: Job) -> None:
        """The job has ended, and does not wait any more."""
        left = job.parts[job.started :]
        self.leave(job.owner, len(left), sum(part.tokens for part in left))
        job.started = len(job.parts)

    def leave(self, owner: str, prompts: int, tokens: int) -> None:
        """Counts prompts out."""
        self.waiting[owner] -= prompts
        if not self.waiting[owner]:
            del self.waiting[owner]
        self.tokens -= tokens

    def read(self, tokens: int, seconds: float) -> None:
        """Notes that a step has read prompts."""
        if tokens > 0 and seconds > 0:
            self.rate += 0.1 * (tokens / seconds - self.rate)
