"""Generate: streaming, with a seed, and several prompts of different lengths at once.

python examples/03_generate.py [RUN]        a folder that `exlstm train` has written; without it, one is trained
"""

import sys
import tempfile
from pathlib import Path

from exlstm.infer.generate import generate_batch, generate_text
from exlstm.infer.sampling import GREEDY, SamplingConfig
from exlstm.train.config import TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import open_run

with tempfile.TemporaryDirectory() as scratch:
    name = sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run"
    if len(sys.argv) == 1:
        # `exlstm train --data examples --preset laptop-tiny ...`: a few seconds on these very scripts
        config = TrainConfig(
            run=name, data=str(Path(__file__).parent), preset="laptop-tiny", steps=200, batch=8, length=64, lr=1e-2,
            validations=1, yardsticks=False,
        )  # fmt: skip
        train(config)
    model, tokenizer = open_run(name).load_model(), open_run(name).tokenizer()

# text, piece by piece as it comes
print("\nimport ", end="")
for piece in generate_text(model, tokenizer, "import ", max_tokens=80, sampling=SamplingConfig(temperature=0.7)):
    print(piece, end="", flush=True)

# the seed decides the text
sampling = SamplingConfig(temperature=0.9, top_p=0.9)
first, again = (
    "".join(generate_text(model, tokenizer, "def ", max_tokens=40, sampling=sampling, seed=1)) for _ in "12"
)
assert first == again

# several prompts together; each gets the tokens that it would get alone
prompts = ["for ", "print(", "with torch.no_"]
prompt_tokens = [[tokenizer.boundary, *tokenizer.encode(prompt.encode())] for prompt in prompts]
completions: list[list[int]] = [[] for _ in prompts]
for index, token in generate_batch(
    model, prompt_tokens, max_tokens=30, sampling=GREEDY, stop_tokens={tokenizer.boundary}
):
    completions[index].append(token)
print("\n\ngreedy:")
for prompt, completion in zip(prompts, completions, strict=True):
    print(repr(prompt + tokenizer.decode(completion).decode(errors="replace")))
