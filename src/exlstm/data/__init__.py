"""Text, tokenizers, packed streams of tokens, and the baselines of a language model."""
