"""Text of sampled tokens up to a stop string; a possible beginning of one is held back until it is decided."""

from collections.abc import Sequence

from exlstm.data.tokenizer import Decoder, Tokenizer


class TextStream:
    """Text of one completion in pieces, without stop strings and without the beginning of the one that ends it."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.decoder, self.stop, self.held = Decoder(tokenizer), tuple(stop), ""
        self.beginnings = {text[:size] for text in stop for size in range(1, len(text))}
        self.longest = max(map(len, self.beginnings), default=0)

    def feed(self, token: int) -> tuple[str, str | None]:
        """(text that is final with this token, stop string that it completes)."""
        piece = self.decoder.feed(token)
        return self._final(piece) if piece else ("", None)

    def finish(self) -> tuple[str, str | None]:
        """(text that was held back, stop string in it) at the end; incomplete characters are U+FFFD."""
        piece, met = self._final(self.decoder.finish())
        return (piece, met) if met is not None else (piece + self.held, None)

    def _final(self, piece: str) -> tuple[str, str | None]:
        text = self.held + piece
        found = [(place, met) for met in self.stop if (place := text.find(met)) >= 0]
        if found:
            place, met = min(found, key=lambda each: each[0])
            return text[:place], met
        sizes = range(min(self.longest, len(text)), 0, -1)
        size = next((size for size in sizes if text[-size:] in self.beginnings), 0)
        self.held = text[len(text) - size :]
        return text[: len(text) - size], None
