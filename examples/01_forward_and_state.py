"""One call for training, reading a prompt, decoding and streaming. The state is a value.

python examples/01_forward_and_state.py
"""

import torch

import exlstm
from exlstm.mixers.state import leaves

torch.manual_seed(0)
model = exlstm.LM(exlstm.preset("laptop-tiny")).eval()
print(model.summary())

tokens_BT = torch.randint(model.config.vocab_size, (3, 100))
with torch.no_grad():
    # the whole sequence at once
    logits_BTC, end = model(tokens_BT)

    # cut anywhere and pass the state on: the same numbers
    first_BTC, state = model(tokens_BT[:, :37])
    second_BTC, _ = model(tokens_BT[:, 37:], state)
    torch.testing.assert_close(torch.cat([first_BTC, second_BTC], dim=1), logits_BTC)

    # one token at a time: the same call, the same numbers, and memory that does not grow
    state, last_B1C = None, None
    for token_B1 in tokens_BT.split(1, dim=1):
        last_B1C, state = model(token_B1, state)
    torch.testing.assert_close(last_B1C[:, 0], logits_BTC[:, -1])

    # a state has one entry per block, batch first; `rows` picks sequences out of a batch, in any order
    swapped = exlstm.rows(end, torch.tensor([2, 0]))
    next_B1 = torch.tensor([[7], [7]])
    torch.testing.assert_close(model(next_B1, swapped)[0], model(next_B1.new_full((3, 1), 7), end)[0][[2, 0]])

    # sequences of different lengths share a batch: padding changes nothing
    _, ragged = model(tokens_BT, lengths_B=torch.tensor([100, 12, 55]))
    _, alone = model(tokens_BT[1:2, :12])
    for padded, own in zip(leaves(exlstm.rows(ragged, torch.tensor([1]))), leaves(alone), strict=True):
        torch.testing.assert_close(padded, own)

print(f"\nthe state of one sequence: {model.state_bytes():,} bytes, after any number of tokens")
for index, block_state in enumerate(end):
    shapes = [tuple(tensor.shape) for tensor in leaves(block_state)]
    print(f"block {index}: {type(block_state).__name__} of {shapes}, the batch comes first")
