"""A model on a terminal: prompts are read, text is printed as it is sampled, states come from files and go there."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exlstm.data.tokenizer import Tokenizer
    from exlstm.infer.requests import Request
    from exlstm.models.lm import LM
    from exlstm.models.states.snapshot import Snapshot


@dataclass(kw_only=True)
class TerminalSession:
    """Text on standard output, notes about it on standard error.

    template: the settings of every request; each adds a prompt or a snapshot, and a seed. quiet: no notes.
    """

    model: "LM"
    tokenizer: "Tokenizer"
    template: "Request"
    quiet: bool = False
    read_seconds: float = field(default=0.0, init=False)
    read_tokens: int = field(default=0, init=False)

    def save(self, snapshot: "Snapshot", file: str) -> None:
        """Writes a snapshot to a file, with a note of its size."""
        from exlstm.models.states.file import save_state

        save_state(snapshot, file)
        self.note(f"state of {snapshot.counts[0]:,} tokens in {file} ({Path(file).stat().st_size:,} bytes)")

    def read(self, text: str, after: "Snapshot | None") -> "Snapshot":
        """The snapshot after a text; a text after nothing begins a document."""
        tokens = self.tokenizer.encode(text.encode(errors="surrogateescape"))
        if after is None:
            tokens = [self.tokenizer.boundary, *tokens]
        began = time.perf_counter()
        snapshot = after if after is not None and not tokens else self.model.read(tokens, after)
        self.read_seconds, self.read_tokens = time.perf_counter() - began, len(tokens)
        return snapshot

    def request(self, after: "Snapshot", seed: int, stop: Sequence[str] = ()) -> "Request":
        """A request that goes on from a snapshot, and ends at these texts, too."""
        stops = (*self.template.stop_strings, *stop)
        return replace(self.template, after=after, seed=seed, stop=stops, keep_snapshot=True)

    def continue_from(self, start: "Snapshot", seed: int, stop: Sequence[str] = ()) -> "Snapshot":
        """Prints a continuation as it is sampled; the snapshot after it. Ctrl-C ends the continuation only."""
        from exlstm.infer.generate import stream

        times: list[float] = []
        text, end = "", None
        try:
            for event in stream(self.model, [self.request(start, seed, stop)], tokenizer=self.tokenizer):
                times += [] if event.token is None else [time.perf_counter()]
                text += event.text
                self.write(event.text)
                end = event
        except KeyboardInterrupt:
            self.write(" [stopped]")
        self.write("\n")
        if end is not None and end.error is not None:
            raise ValueError(end.error)
        self.note_speed(times)
        if end is not None and end.snapshot is not None and not isinstance(end.stop, str):
            return end.snapshot
        # interrupted, or it sampled tokens up to a stop string: the state is that after the text on the screen
        printed = self.tokenizer.encode(text.encode(errors="replace"))
        return self.model.read(printed, start) if printed else start

    def write(self, text: str) -> None:
        """Prints text at once, without a line's end."""
        print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """Prints a line in brackets to standard error, unless the session is quiet."""
        if not self.quiet:
            print(f"[{text}]", file=sys.stderr, flush=True)

    def note_speed(self, times: list[float]) -> None:
        """Notes tokens per second and the bytes of the state. times: when each token came."""
        reading = f"{self.read_tokens:,} tokens read in {self.read_seconds:.2f} s"
        # the first token comes of the prompt, and for the second the step is captured, which is done once
        later = times[1:]
        speed = f" at {(len(later) - 1) / (later[-1] - later[0]):,.1f} tokens/s" if len(later) > 1 else ""
        state = self.model.state_bytes(self.read_tokens + len(times))
        self.note(f"{reading}, {len(times):,} generated{speed}, state {state:,} bytes")
