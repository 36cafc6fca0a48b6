"""Incremental decoding: tokens to text, one token after another."""

import codecs

from exlstm.data.tokenizer import Tokenizer


class Decoder:
    """An incremental decoder: it holds back a character until all of its bytes have come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # bytes that cannot become UTF-8 decode to U+FFFD
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that this id completes, which is empty for a part of a character."""
        return self._utf8.decode(self._tokenizer.decode([token]))

    @property
    def holds(self) -> bool:
        """Whether a part of a character is held back."""
        return bool(self._utf8.getstate()[0])

    def finish(self) -> str:
        """U+FFFD for an unfinished character, else the empty string; then resets the decoder."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
