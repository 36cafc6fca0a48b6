"""A conversation on a terminal. Its memory is a state of constant size, which can be kept, reloaded, and taken back."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exlstm.cli.generate import Voice, lines_of

if TYPE_CHECKING:
    from exlstm.models.snapshot import Snapshot

HELP = """/undo        take the last line and its reply back
/again       another reply to the last line
/save FILE   keep the conversation in a file; go on later with /load FILE, or with --state FILE
/load FILE   go on from a conversation in a file
/reset       begin anew
/help        this list
/quit        end, as Ctrl-D does; Ctrl-C ends a reply only"""


@dataclass
class Chat:
    """The states of a conversation: `past` before every line of the user's, so that it can be taken back."""

    voice: Voice
    now: "Snapshot | None"
    past: "list[Snapshot | None]" = field(default_factory=list)
    last_line: str = ""
    replies: int = 0

    def run(self) -> None:
        """Until the end of input. Ctrl-C at an empty line ends it too."""
        self.voice.note("a conversation; /help lists commands, Ctrl-D ends it")
        try:
            for line in lines_of("> "):
                try:
                    if not self.handled(line.strip()):
                        break
                except (ValueError, OSError) as error:
                    print(error)
        except KeyboardInterrupt:
            self.voice.say("\n")
        if self.now is not None:
            self.voice.keep(self.now)

    def handled(self, line: str) -> bool:
        """Does what a line asks for; False for /quit."""
        from exlstm.models.state_file import load_state

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
            self.now = self.past.pop()
            if command == "/again":
                self.reply(self.last_line)
        elif command in ("/save", "/load") and not argument:
            raise ValueError(f"{command} needs the name of a file; type {command} FILE.")
        elif command == "/save":
            if self.now is None:
                raise ValueError("there is nothing to keep yet; type a line first.")
            self.voice.keep(self.now, argument)
        elif command == "/load":
            self.now, self.past = load_state(argument, self.voice.model), []
        elif command.startswith("/"):
            raise ValueError(f"there is no command {command}; /help lists them.")
        elif line:
            self.reply(line)
        return True

    def reply(self, line: str) -> None:
        """Reads a line as a turn of the user's, and speaks until the model begins another one."""
        turn = self.voice.options.turn
        before = self.now
        text = turn.replace("{}", line)
        started = self.voice.read(text if before is None else f"\n{text}", before)
        opening = turn.partition("{}")[0].strip()
        stop = (f"\n{opening}",) if opening else ()
        # each reply has random numbers of its own
        self.now = self.voice.speak(started, self.voice.options.seed + self.replies, stop)
        self.past.append(before)
        self.last_line, self.replies = line, self.replies + 1
