"""A mixer is a layer: [batch, time, width] in, the same out. Here an sLSTM learns to track parity in a stream of bits.

python examples/06_mixer_in_your_model.py
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from exlstm import SLSTMConfig


class BitCounter(nn.Module):
    """A model that predicts after every bit whether the number of ones so far is odd."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(2, width)
        # any mixer of exlstm.MIXERS fits here
        self.norm = nn.LayerNorm(width)
        self.mixer = SLSTMConfig(heads=1, conv_width=0, recurrent_init="uniform", forget_bias="zeros").build(width)
        self.head = nn.Linear(width, 2)

    def forward(self, bits_BT: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        x_BTD = self.embed(bits_BT)
        y_BTD, state = self.mixer(self.norm(x_BTD), state)
        return self.head(x_BTD + y_BTD), state


torch.manual_seed(0)
model = BitCounter()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for step in range(200):
    bits_BT = torch.randint(2, (64, 2 + step // 5))
    odd_BT = bits_BT.cumsum(dim=1) % 2
    logits_BTC, _ = model(bits_BT)
    loss = cross_entropy(logits_BTC.flatten(0, 1), odd_BT.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 40 == 0 or step == 199:
        right = (logits_BTC.argmax(dim=-1) == odd_BT).float().mean().item()
        print(f"step {step:3d}  length {bits_BT.shape[1]:2d}  loss {loss.item():.4f}  right {right:.1%}")

# trained on at most 41 bits; now a stream of 20,000, in chunks, with only the state carried over
stream_BT = torch.randint(2, (1, 20_000))
odd_BT, state, right = stream_BT.cumsum(dim=1) % 2, None, 0
with torch.no_grad():
    for bits_BT, expected_BT in zip(stream_BT.split(500, dim=1), odd_BT.split(500, dim=1), strict=True):
        logits_BTC, state = model(bits_BT, state)
        right += int((logits_BTC.argmax(dim=-1) == expected_BT).sum())
print(f"stream of 20,000 bits: {right / 20_000:.2%} right")
