"""Text, tokenizers, packed streams of tokens, and the baselines that a language model is measured with."""
