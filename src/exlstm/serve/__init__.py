"""Server of language models with the interface of OpenAI's: completions, chat, states as values, a playground."""
