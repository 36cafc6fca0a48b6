"""Text from sampled tokens, up to a stop string: what might be the beginning of one is held back until it is not."""

from collections.abc import Sequence

from exlstm.data.tokenizer import Decoder, Tokenizer


class TextStream:
    """The text of one completion, piece by piece; it never contains a stop string, nor the beginning of the one met."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.decoder, self.stop, self.held = Decoder(tokenizer), tuple(stop), ""
        self.beginnings = {text[:size] for text in stop for size in range(1, len(text))}
        self.longest = max(map(len, self.beginnings), default=0)

    def feed(self, token: int) -> tuple[str, str | None]:
        """What this token makes certain of the text, and the stop string that it completes."""
        piece = self.decoder.feed(token)
        return self._certain(piece) if piece else ("", None)

    def finish(self) -> tuple[str, str | None]:
        """What was held back, where the completion ends; characters that are not complete are U+FFFD."""
        piece, met = self._certain(self.decoder.finish())
        return (piece, met) if met is not None else (piece + self.held, None)

    def _certain(self, piece: str) -> tuple[str, str | None]:
        text = self.held + piece
        found = [(place, met) for met in self.stop if (place := text.find(met)) >= 0]
        if found:
            place, met = min(found, key=lambda each: each[0])
            return text[:place], met
        sizes = range(min(self.longest, len(text)), 0, -1)
        size = next((size for size in sizes if text[-size:] in self.beginnings), 0)
        self.held = text[len(text) - size :]
        return text[: len(text) - size], None
