"""Train a byte-level language model with a plain PyTorch loop, save it, load it.

python examples/02_train_tiny_lm.py [TEXT_FILE]
"""

import math
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import exlstm

BATCH, LENGTH, STEPS = 16, 64, 120

text = Path(sys.argv[1] if len(sys.argv) > 1 else torch.__file__).read_bytes()
data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
cut = len(data) * 9 // 10
train, held_out = data[:cut], data[cut:]

torch.manual_seed(0)
# one mLSTM and one sLSTM block; bytes need no tokenizer
model = exlstm.LM(exlstm.lm_from_pattern("ms", vocab_size=256, width=64))
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS, pct_start=0.1)

for step in range(STEPS):
    starts = torch.randint(len(train) - LENGTH, (BATCH,))
    window = torch.stack([train[start : start + LENGTH + 1] for start in starts])
    logits_BTC, _ = model(window[:, :-1])
    loss = cross_entropy(logits_BTC.flatten(0, 1), window[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if step % 20 == 0 or step == STEPS - 1:
        print(f"step {step:4d}  {loss.item() / math.log(2):.3f} bits per byte")

# a text of any length in constant memory: read it in chunks and pass the state on
model.eval()
state, total, pieces = None, 0.0, held_out[: 1 + 20 * LENGTH].unfold(0, LENGTH + 1, LENGTH)
with torch.no_grad():
    for piece in pieces:
        logits_BTC, state = model(piece[None, :-1], state)
        total += cross_entropy(logits_BTC[0], piece[1:], reduction="sum").item()
print(f"held out:  {total / math.log(2) / (len(pieces) * LENGTH):.3f} bits per byte")

with tempfile.TemporaryDirectory() as folder:
    exlstm.save(model, folder)
    print("saved:", sorted(path.name for path in Path(folder).iterdir()))
    again = exlstm.load(folder)
assert torch.equal(again(held_out[None, :50])[0], model(held_out[None, :50])[0])
