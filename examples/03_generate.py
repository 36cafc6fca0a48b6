"""Generation: streaming, with a seed, several prompts of different lengths at once, one prompt continued many times.

python examples/03_generate.py [RUN]        a folder that `exlstm train` has written; without it, one is trained
"""

import sys
import tempfile
from pathlib import Path

from exlstm import SamplingConfig, generate, stream
from exlstm.infer.sampling import GREEDY
from exlstm.train.config import TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import open_run

with tempfile.TemporaryDirectory() as scratch:
    name = sys.argv[1] if len(sys.argv) > 1 else f"{scratch}/run"
    if len(sys.argv) == 1:
        # `exlstm train --data examples --preset laptop-tiny ...`: a few seconds on these scripts
        config = TrainConfig(
            run=name, data=str(Path(__file__).parent), preset="laptop-tiny", steps=200, batch=8, length=64, lr=1e-2,
            validations=1, yardsticks=False,
        )  # fmt: skip
        train(config)
    model, tokenizer = open_run(name).load_model(), open_run(name).tokenizer()

# the text, token by token
print("\nimport ", end="")
for event in stream(model, ["import "], tokenizer=tokenizer, max_tokens=80, sampling=SamplingConfig(temperature=0.7)):
    print(event.text, end="", flush=True)

# the seed decides the text
sampling = SamplingConfig(temperature=0.9, top_p=0.9)
first, again, other = generate(
    model, ["def "] * 3, tokenizer=tokenizer, max_tokens=40, sampling=sampling, seeds=[1, 1, 2]
)
assert first.text == again.text != other.text

# several prompts together; each gets the tokens that it would get alone
prompts = ["for ", "print(", "with torch.no_"]
print("\n\ngreedy:")
for prompt, completion in zip(
    prompts, generate(model, prompts, tokenizer=tokenizer, max_tokens=30, sampling=GREEDY), strict=True
):
    print(repr(prompt + (completion.text or "")))

# a prompt that is read once and continued three times: a snapshot is a value
snapshot = model.read([tokenizer.boundary, *tokenizer.encode(b"class ")])
print("\nthree classes:")
for completion in generate(model, [snapshot] * 3, tokenizer=tokenizer, max_tokens=12, sampling=sampling):
    print(repr("class " + (completion.text or "")))
