"""Fingerprints of what models compute, for changes that may change no number: one hash per case.

    python tests/fingerprints.py > before.txt       # at the old commit
    python tests/fingerprints.py > after.txt        # at the new one, on the same machine
    diff before.txt after.txt

A case is a model, its weights' format, a backend, a number of threads, and a way through it: a training step (loss,
outputs, states, all gradients), a prefill, a called decoding step, a replayed one. Only public names are used here, so
that the script runs at older commits, too.
"""

import hashlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

import exlstm
from exlstm import (
    LM,
    AttentionConfig,
    BlockConfig,
    LMConfig,
    LSTMConfig,
    MLPConfig,
    MLSTMConfig,
    MLSTMLargeConfig,
    SLSTMConfig,
)

B, T, STEPS = 3, 37, 3


def configs() -> dict[str, LMConfig]:
    """A small model of a laptop, one in the layout of xLSTM-7B, one with every mixer and many options."""
    large = BlockConfig(mixer=MLSTMLargeConfig(heads=4), mlp=MLPConfig(hidden=192, activation="silu"))
    mlp = MLPConfig(hidden=160)
    every = [
        MLSTMConfig(heads=2), MLSTMConfig(heads=4, input_gate="sigmoid", normalize=False),
        SLSTMConfig(heads=4), SLSTMConfig(heads=2, input_gate="softplus", normalize=False, recurrence="none"),
        SLSTMConfig(heads=2, forget_gate="exp"), MLSTMLargeConfig(heads=2), LSTMConfig(), LSTMConfig(heads=4),
        AttentionConfig(heads=4),
    ]  # fmt: skip
    mixed = [BlockConfig(mixer=mixer, mlp=mlp if n % 2 else None) for n, mixer in enumerate(every)]
    return {
        "laptop-tiny": exlstm.preset("laptop-tiny"),
        "laptop-small": exlstm.preset("laptop-small"),
        "7b-shaped": LMConfig(vocab_size=300, width=128, blocks=(large,) * 3, norm="rms", logit_cap=30.0),
        "every-mixer": LMConfig(vocab_size=300, width=64, blocks=tuple(mixed)),
        "no-attention": LMConfig(vocab_size=300, width=64, blocks=tuple(mixed[:-1])),
    }


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors of a nested value, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def fingerprint(*values: object) -> str:
    """A hash of dtypes, shapes and numbers."""
    digest = hashlib.sha256()
    for x in tensors(values):
        x = x.detach().contiguous()
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return digest.hexdigest()[:16]


def made(config: LMConfig, weights: str) -> LM:
    """The model with weights from a fixed seed."""
    torch.manual_seed(1)
    model = LM(config)
    with torch.no_grad():  # initial values are often zero: every part has to matter
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    if weights == "bfloat16":
        model = model.bfloat16()
    elif weights != "float32":
        model = exlstm.quantize(model, weights)
    return model


def train(model: LM, tokens_BT: Tensor, reset_BT: Tensor, lengths_B: Tensor) -> str:
    """Two parts of a sequence, with the state and its gradient between them."""
    model.train()
    model.zero_grad()
    half = T // 2
    logits, state = model(tokens_BT[:, :half])
    more, state = model(tokens_BT[:, half:], state, reset_BT=reset_BT[:, half:], lengths_B=lengths_B - half)
    logits_BTC = torch.cat([logits, more], 1).float()
    loss = functional.cross_entropy(logits_BTC[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
    loss.backward()
    return fingerprint(loss, logits_BTC, state, [p.grad for p in model.parameters() if p.grad is not None])


@torch.no_grad()
def decode(model: LM, tokens_BT: Tensor, reset_BT: Tensor, lengths_B: Tensor) -> Iterator[tuple[str, str]]:
    """Prefill, called steps, replayed steps."""
    model.eval()
    logits, state = model(tokens_BT, reset_BT=reset_BT, lengths_B=lengths_B)
    yield "prefill", fingerprint(logits, state)
    for rows in (1, B):
        start = model(tokens_BT[:rows, :9])[1]
        called = []
        state = start
        for n in range(STEPS):
            logits, state = model(tokens_BT[:rows, n : n + 1], state)
            called.append((logits, state))
        yield f"called step of {rows}", fingerprint(called)
        loop = exlstm.TokenLoop(model, start)
        replayed = [loop(tokens_BT[:rows, n]) for n in range(STEPS)]
        yield f"replayed step of {rows} ({loop.why_not})", fingerprint(replayed, loop.state)


def cases() -> Iterator[tuple[str, str]]:
    """(case, fingerprint)"""
    torch.manual_seed(2)
    for name, config in configs().items():
        tokens_BT = torch.randint(config.vocab_size, (B, T))
        reset_BT = torch.rand(B, T) < 0.1
        lengths_B = torch.tensor([T, T - 5, T // 2 + 1])
        for weights in ("float32", "bfloat16", "int8", "int4"):
            model = made(config, weights)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                here = f"{name}, {weights}, {threads} threads"
                if weights in ("float32", "bfloat16"):
                    yield f"{here}, train", train(model, tokens_BT, reset_BT, lengths_B)
                for way, found in decode(model, tokens_BT, reset_BT, lengths_B):
                    yield f"{here}, {way}", found
        model = made(config, "float32")
        for backend in ("recurrent", "chunkwise"):
            for module in model.modules():
                if type(module).__name__ in ("MLSTM", "MLSTMLarge") or (
                    backend == "recurrent" and type(module).__name__ in ("SLSTM", "LSTM")
                ):
                    module.backend = backend
            yield f"{name}, {backend}, train", train(model, tokens_BT, reset_BT, lengths_B)
    torch.set_num_threads(1)
    for name in ("laptop-small", "every-mixer"):
        yield f"{name}, explain", str(exlstm.explain(made(configs()[name], "float32")))


if __name__ == "__main__":
    for case, found in cases():
        print(f"{case}: {found}")
        sys.stdout.flush()
