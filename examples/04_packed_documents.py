"""Train on rows packed with many documents: resets separate them, and no step is padding.

python examples/04_packed_documents.py
"""

import torch

import exlstm
from exlstm.data.packing import batch_at, pack
from exlstm.data.text import Document
from exlstm.data.tokenizer import ByteTokenizer

torch.manual_seed(0)
model = exlstm.LM(exlstm.lm_from_pattern("msa", vocab_size=257, width=32)).double().eval()

# two documents in one row; reset_BT is true at the first step of each
first_BT, second_BT = torch.randint(257, (1, 20)), torch.randint(257, (1, 12))
row_BT = torch.cat([first_BT, second_BT], dim=1)
reset_BT = torch.zeros_like(row_BT, dtype=torch.bool)
reset_BT[:, 0] = reset_BT[:, 20] = True

packed_BTC, packed_state = model(row_BT, reset_BT=reset_BT)
torch.testing.assert_close(packed_BTC[:, :20], model(first_BT)[0])
torch.testing.assert_close(packed_BTC[:, 20:], model(second_BT)[0])
mixed_BTC, _ = model(row_BT)
difference = (mixed_BTC - packed_BTC)[:, 20:].abs().max().item()
print(f"without the reset the second document sees the first: logits differ by up to {difference:.2f}")

# the same for real text: `pack` joins documents, `batch_at` cuts rows and marks the resets
documents = [
    Document(f"note-{n}", f"note {n}: nothing much happened today\n".encode() * (1 + n % 3)) for n in range(40)
]
tokenizer = ByteTokenizer()
stream = pack(documents, tokenizer)
batch = batch_at(stream, 0, batch=4, length=128, seed=0, carry=False)
print(f"{len(documents)} documents, {len(stream)} tokens; one batch is {tuple(batch.inputs_BT.shape)}")
for inputs_T, reset_T in zip(batch.inputs_BT, batch.reset_BT, strict=True):
    starts = reset_T.nonzero()[:, 0].tolist()
    print(f"resets at {starts}: {tokenizer.decode(inputs_T.tolist())[:40]!r}...")
logits_BTC, _ = model(batch.inputs_BT, reset_BT=batch.reset_BT)
loss = torch.nn.functional.cross_entropy(logits_BTC.flatten(0, 1), batch.targets_BT.flatten())
loss.backward()
print(f"loss {loss.item():.3f} nats per token before any training (log 257 = 5.549)")
