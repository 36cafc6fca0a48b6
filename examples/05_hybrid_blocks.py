"""An architecture is a tuple of blocks, here of mLSTM, sLSTM and attention.

python examples/05_hybrid_blocks.py
"""

import torch

import exlstm
from exlstm import AttentionConfig, BlockConfig, LMConfig, MLPConfig, MLSTMConfig, MLSTMLargeConfig, SLSTMConfig

swiglu = MLPConfig(hidden=192, activation="silu")
config = LMConfig(
    vocab_size=512,
    width=64,
    blocks=(
        BlockConfig(mixer=MLSTMConfig(heads=4)),  # the paper's block: has its own up-projection, needs no MLP
        BlockConfig(mixer=SLSTMConfig(heads=4), mlp=MLPConfig(hidden=128)),
        BlockConfig(mixer=MLSTMLargeConfig(heads=2), mlp=swiglu),  # the block of xLSTM-7B
        BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2, window=32), mlp=swiglu),
    ),
    norm="rms",
    tie_embeddings=True,
)
torch.manual_seed(0)
model = exlstm.LM(config)
print(model.summary())
print(exlstm.explain(model))

# short for equal blocks: letters (see exlstm.lm_from_pattern), or the ratio of the paper
print("\nxLSTM[7:1] with 16 blocks:", exlstm.xlstm_pattern("7:1", 16))
names = [type(block.mixer).__name__ for block in exlstm.lm_from_pattern("mmsa", vocab_size=512, width=64).blocks]
print("the pattern mmsa:", ", ".join(names))

# one training step, and the gradient reaches every parameter
tokens_BT = torch.randint(config.vocab_size, (2, 48))
logits_BTC, _ = model(tokens_BT[:, :-1])
torch.nn.functional.cross_entropy(logits_BTC.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
print(f"parameters without a gradient: {without}")

# the state: fixed for xLSTM, growing up to its window for attention
for length in (1, 16, 32, 100_000):
    print(f"state after {length:7,} tokens: {model.state_bytes(length):8,} bytes per sequence")
