import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exlstm.data.packing import IGNORE
from exlstm.train import loss
from exlstm.train.loss import bits_per_byte, cross_entropy


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    logits_BTC = 3 * torch.randn(2, 5, 7, dtype=torch.float64)
    targets_BT = torch.randint(0, 7, (2, 5))
    targets_BT[1, 3:] = IGNORE
    return logits_BTC, targets_BT


def plain(logits_BTC: Tensor, targets_BT: Tensor) -> Tensor:
    return functional.cross_entropy(
        logits_BTC.flatten(0, 1), targets_BT.flatten(), reduction="sum", ignore_index=IGNORE
    )


@pytest.mark.parametrize("chunk", [1, 21, 1 << 22])
def test_value_and_gradient(case: tuple[Tensor, Tensor], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one token, of three (with a remainder), and all at once."""
    monkeypatch.setattr(loss, "_CHUNK", chunk)
    logits_BTC, targets_BT = case
    ours, theirs = logits_BTC.clone().requires_grad_(), logits_BTC.clone().requires_grad_()
    (2 * cross_entropy(ours, targets_BT)).backward()
    (2 * plain(theirs, targets_BT)).backward()
    torch.testing.assert_close(cross_entropy(ours, targets_BT), plain(theirs, targets_BT))
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradcheck(case: tuple[Tensor, Tensor]) -> None:
    logits_BTC, targets_BT = case
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets_BT), logits_BTC.requires_grad_())


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits_BTC = torch.randn(4, 300, 50).bfloat16()
    targets_BT = torch.randint(0, 50, (4, 300))
    found = cross_entropy(logits_BTC, targets_BT)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(logits_BTC.float(), targets_BT))


def test_logits_are_left_as_they_were(case: tuple[Tensor, Tensor]) -> None:
    logits_BTC, targets_BT = case
    before = logits_BTC.clone()
    x = logits_BTC.requires_grad_()
    cross_entropy(x, targets_BT).backward()
    assert torch.equal(logits_BTC, before)


def test_nan_stays_nan(case: tuple[Tensor, Tensor]) -> None:
    logits_BTC, targets_BT = case
    logits_BTC[0, 2, 1] = math.nan
    assert cross_entropy(logits_BTC, targets_BT).isnan()


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(256) * 10, 10) == pytest.approx(8)
    assert bits_per_byte(math.log(2) * 6, 4) == pytest.approx(1.5)
