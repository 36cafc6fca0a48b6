"""Text of sampled tokens up to a stop string.

Text that may be the beginning of a stop string is held back until later text decides.
"""

from collections.abc import Sequence

from exlstm.data.decoder import Decoder
from exlstm.data.tokenizer import Tokenizer


class TextStream:
    """Text of one completion, token by token. The stop string that ends it, and any part of it, is left out."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.decoder, self.stop, self.held = Decoder(tokenizer), tuple(stop), ""
        self.beginnings = {text[:size] for text in stop for size in range(1, len(text))}
        self.longest = max(map(len, self.beginnings), default=0)

    @property
    def holds(self) -> bool:
        """Whether text, or a part of a character, is held back."""
        return bool(self.held) or self.decoder.holds

    def feed(self, token: int, *, stops: bool = True) -> tuple[str, str | None]:
        """(text that is final with this token, stop string that it completes). stops: False lets all text pass."""
        new_text = self.decoder.feed(token)
        if not stops:
            return new_text, None
        return self._final(new_text) if new_text else ("", None)

    def finish(self) -> tuple[str, str | None]:
        """(text that was held back, stop string in it) at the end; incomplete characters are U+FFFD."""
        text, stop = self._final(self.decoder.finish())
        return (text, stop) if stop is not None else (text + self.held, None)

    def _final(self, new_text: str) -> tuple[str, str | None]:
        text = self.held + new_text
        found = [(place, stop) for stop in self.stop if (place := text.find(stop)) >= 0]
        if found:
            place, stop = min(found, key=lambda each: each[0])
            return text[:place], stop
        sizes = range(min(self.longest, len(text)), 0, -1)
        size = next((size for size in sizes if text[-size:] in self.beginnings), 0)
        self.held = text[len(text) - size :]
        return text[: len(text) - size], None
