"""Text, tokenizers, packed streams of tokens, and the yardsticks that a language model is measured with."""
