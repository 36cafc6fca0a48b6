"""Chat on a terminal. Its memory is a state of constant size, which can be saved, loaded and undone."""

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exlstm.cli.terminal import TerminalSession

if TYPE_CHECKING:
    from exlstm.models.states.snapshot import Snapshot

HELP = """/undo        take the last line and its reply back
/again       another reply to the last line
/save FILE   keep the conversation in a file; go on later with /load FILE, or with --state FILE
/load FILE   go on from a conversation in a file
/reset       begin anew
/help        this list
/quit        end, as Ctrl-D does; Ctrl-C ends a reply only, never the conversation"""


@dataclass(kw_only=True)
class Chat:
    """A conversation: the state now, and those before every line, so that lines can be taken back.

    turn: what a line becomes in the text, {} being the line. save_to: file for the state at the end.
    past: the snapshot before each of the user's lines, with the line.
    """

    session: TerminalSession
    turn: str
    save_to: str | None = None
    now: "Snapshot | None" = None
    past: "list[tuple[Snapshot | None, str]]" = field(default_factory=list)
    replies: int = 0

    def run(self) -> None:
        """Runs until the end of input, /quit, or a terminal that closes. Ctrl-C ends a reply or a command only."""
        self.session.note("a conversation; /help lists commands, Ctrl-D ends it")
        until_hangup(self.talk, then=self.save)

    def talk(self) -> None:
        """Answers lines until the end of input or /quit."""
        while (line := self.next_line()) is not None and self.answer(line.strip()):
            pass

    def save(self) -> None:
        """Writes the state to `save_to`, if that was asked for and anything was read."""
        if self.now is not None and self.save_to is not None:
            self.session.save(self.now, self.save_to)

    def next_line(self) -> str | None:
        """The next line of input; None at its end."""
        while True:
            try:
                return input("> ")
            except (EOFError, OSError):  # a terminal that has closed may give either
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit ends the conversation)")

    def answer(self, line: str) -> bool:
        """Handles a line and prints errors; False for /quit."""
        try:
            return self.handle(line)
        except KeyboardInterrupt:
            # before the first piece of the reply, or in a command: nothing of the conversation has changed
            print(" [stopped; the line is as if it had not been typed]")
        except (ValueError, OSError) as error:
            print(error)
        return True

    def handle(self, line: str) -> bool:
        """Runs a command, or replies to a line; False for /quit."""
        from exlstm.models.states.file import load_state

        command, _, argument = line.partition(" ")
        argument = argument.strip()
        if command == "/quit":
            return False
        if command == "/help":
            print(HELP)
        elif command == "/reset":
            self.now, self.past = None, []
        elif command in ("/undo", "/again"):
            if not self.past:
                raise ValueError("there is nothing to take back; type a line first.")
            if command == "/again":
                self.now = self.reply(*self.past[-1])
            else:
                self.now, _ = self.past.pop()
        elif command in ("/save", "/load") and not argument:
            raise ValueError(f"{command} needs the name of a file; type {command} FILE.")
        elif command == "/save":
            if self.now is None:
                raise ValueError("there is nothing to keep yet; type a line first.")
            self.session.save(self.now, argument)
        elif command == "/load":
            self.now, self.past = load_state(argument, self.session.model), []
        elif command.startswith("/"):
            raise ValueError(f"there is no command {command}; /help lists them.")
        elif line:
            before, self.now = self.now, self.reply(self.now, line)
            self.past.append((before, line))
        return True

    def reply(self, before: "Snapshot | None", line: str) -> "Snapshot":
        """Snapshot after a line as the user's turn and the printed reply, which ends where the next turn begins."""
        text = self.turn.replace("{}", line)
        started = self.session.read(text if before is None else f"\n{text}", before)
        opening = self.turn.partition("{}")[0].strip()
        stop = (f"\n{opening}",) if opening else ()
        # each reply has random numbers of its own
        after = self.session.continue_from(started, self.session.template.seed + self.replies, stop)
        self.replies += 1
        return after


class Hangup(BaseException):
    """Raised by SIGHUP and SIGTERM: the terminal has closed, or `kill` was called."""


def until_hangup(work: Callable[[], None], then: Callable[[], None]) -> None:
    """Calls `work`, then `then`. SIGHUP and SIGTERM end `work`; during `then` they are ignored."""

    def end(*_: object) -> None:
        raise Hangup

    wanted = [number for name in ("SIGHUP", "SIGTERM") if (number := getattr(signal, name, None)) is not None]
    usual = {number: signal.getsignal(number) for number in wanted}
    for number, handler in usual.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    try:
        with suppress(Hangup):
            work()
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_IGN)
        try:
            then()
        finally:
            for number, handler in usual.items():
                signal.signal(number, handler)
