"""A small language model learns on Triton's kernels as it does on the definition: the same losses, step by step."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern

pytest.importorskip("triton", reason="Triton has no wheel for this system")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"cpu": (2, 16, 10), "cuda": (200, 128, 256)}  # steps, width, length; the interpreter is slow


def curve(device, backend, precision=torch.float32):
    """The losses of some steps of AdamW on a text with a pattern to learn."""
    steps, width, length = SIZES[DEVICE]
    torch.manual_seed(0)
    model = LM(lm_from_pattern("ms", width=width, vocab_size=61, heads=2)).to(device)
    for mixer in model.mixers:
        mixer.backend = backend
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(steps):
        start_B1 = torch.arange(2)[:, None] + step
        tokens_BT = ((start_B1 + torch.arange(length + 1)) ** 2 % 61).to(device)
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            logits_BTC, _ = model(tokens_BT[:, :-1])
        loss = cross_entropy(logits_BTC.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.slow
def test_the_loss_curve_is_the_definitions():
    got, want = curve(DEVICE, "triton"), curve("cpu", "recurrent")
    assert want[-1] < want[0]
    torch.testing.assert_close(got[:20], want[:20], rtol=1e-4, atol=1e-4)
    # rounding grows with every step, and what is learnt stays the same
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.02)


@pytest.mark.gpu
def test_the_loss_curve_in_bfloat16():
    got, want = curve("cuda", "triton", torch.bfloat16), curve("cpu", "recurrent")
    assert (got[-20:].mean() - want[-20:].mean()).abs() < 0.05
