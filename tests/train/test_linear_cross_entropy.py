"""Cross entropy from hidden states and the head: the plain path's numbers, in the memory of a few tokens' logits."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_runs import Settings
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import exlstm
from exlstm.data.packing import IGNORE, TokenStream, windows_of
from exlstm.data.tokenizer import ByteTokenizer
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train import loss
from exlstm.train.evaluate import score
from exlstm.train.loss import cross_entropy, linear_cross_entropy, model_cross_entropy
from exlstm.train.replicas import ThreadedReplicas
from exlstm.train.run import train

CAPS = pytest.mark.parametrize("cap", [None, 2.0])
# numbers per chunk: one token, three (with a remainder), the first row and no more, all at once
CHUNKS = pytest.mark.parametrize("chunk", [1, 21, 35, 1 << 24])


def case(batch: int = 2, steps: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, the head's weights, and targets for seven classes, of which some do not count."""
    targets_BT = torch.randint(0, 7, (batch, steps))
    targets_BT[0, 1:2] = targets_BT[1:, 3:] = IGNORE
    return 2 * torch.randn(batch, steps, 4, dtype=dtype), torch.randn(7, 4, dtype=dtype), targets_BT


def plain(x_BTD: Tensor, w_CD: Tensor, targets_BT: Tensor, cap: float | None) -> Tensor:
    logits_NC = (x_BTD @ w_CD.T).flatten(0, 1)
    if cap is not None:
        logits_NC = cap * torch.tanh(logits_NC / cap)
    return functional.cross_entropy(logits_NC, targets_BT.flatten(), reduction="sum", ignore_index=IGNORE)


def with_gradients(function: Callable[..., Tensor], x_BTD: Tensor, w_CD: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The total, and the gradients of two and a half times it."""
    x_BTD, w_CD = x_BTD.clone().requires_grad_(), w_CD.clone().requires_grad_()
    total = function(x_BTD, w_CD, *rest)
    return total.detach(), *torch.autograd.grad(2.5 * total, [x_BTD, w_CD])


@CAPS
@CHUNKS
def test_value_and_gradients(chunk: int, cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK", chunk)
    problem = case()
    torch.testing.assert_close(
        with_gradients(linear_cross_entropy, *problem, cap), with_gradients(plain, *problem, cap)
    )


@CAPS
def test_one_token(cap: float | None) -> None:
    problem = case(1, 1)
    torch.testing.assert_close(
        with_gradients(linear_cross_entropy, *problem, cap), with_gradients(plain, *problem, cap)
    )


@CAPS
def test_targets_that_do_not_count_are_zero(cap: float | None) -> None:
    x_BTD, w_CD, targets_BT = case()
    for found in with_gradients(linear_cross_entropy, x_BTD, w_CD, torch.full_like(targets_BT, IGNORE), cap):
        assert torch.equal(found, torch.zeros_like(found))


@CAPS
def test_gradcheck(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK", 21)
    x_BTD, w_CD, targets_BT = case()
    inputs = x_BTD.requires_grad_(), w_CD.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: linear_cross_entropy(x, w, targets_BT, cap), inputs)


def test_only_the_gradient_that_is_asked_for() -> None:
    x_BTD, w_CD, targets_BT = case()
    _, dx_BTD, dw_CD = with_gradients(linear_cross_entropy, x_BTD, w_CD, targets_BT)
    frozen = linear_cross_entropy(x_BTD.requires_grad_(), w_CD, targets_BT)
    torch.testing.assert_close(torch.autograd.grad(2.5 * frozen, x_BTD)[0], dx_BTD)
    frozen = linear_cross_entropy(x_BTD.detach(), w_CD.requires_grad_(), targets_BT)
    torch.testing.assert_close(torch.autograd.grad(2.5 * frozen, w_CD)[0], dw_CD)


def test_the_backward_may_come_twice_but_has_no_derivative() -> None:
    x_BTD, w_CD, targets_BT = case()
    total = linear_cross_entropy(x_BTD.requires_grad_(), w_CD.requires_grad_(), targets_BT)
    one, other = (torch.autograd.grad(3 * total, [x_BTD, w_CD], retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, one, other))
    with pytest.raises(ValueError, match="second derivatives; use cross_entropy"):
        torch.autograd.grad(total, x_BTD, create_graph=True)


def test_inputs_are_left_as_they_were() -> None:
    problem = case()
    before = [x.clone() for x in problem]
    with_gradients(linear_cross_entropy, *problem, 2.0)
    assert all(map(torch.equal, problem, before))


def test_large_logits_are_finite_and_nan_stays_nan() -> None:
    x_BTD, w_CD, targets_BT = case(dtype=torch.float32)
    assert all(x.isfinite().all() for x in with_gradients(linear_cross_entropy, 1e4 * x_BTD, w_CD, targets_BT))
    x_BTD[0, 2, 1] = math.nan
    assert linear_cross_entropy(x_BTD, w_CD.requires_grad_(), targets_BT).isnan()


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(autocast: bool, emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What products take is rounded; what they return is rounded only where the processor does so.

    The gradients are then as good as one rounding, however many chunks there are, and have the dtype of what is stored.
    """
    monkeypatch.setattr(loss, "bfloat16_is_emulated", lambda: emulated)
    monkeypatch.setattr(loss, "_CHUNK", 50 * 8)
    stored = torch.float32 if autocast else torch.bfloat16
    x_BTD, w_CD = torch.randn(4, 200, 16, dtype=stored), torch.randn(50, 16, dtype=stored)
    targets_BT = torch.randint(0, 50, (4, 200))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = with_gradients(linear_cross_entropy, x_BTD, w_CD, targets_BT, 20.0)
    exact = with_gradients(plain, x_BTD.bfloat16().double(), w_CD.bfloat16().double(), targets_BT, 20.0)
    assert [x.dtype for x in found] == [torch.float32, stored, stored]
    for got, want in zip(found, exact, strict=True):
        rounded = not emulated or got.dtype == torch.bfloat16
        assert (got.double() - want).norm() < (6e-3 if rounded else 2e-6) * want.norm()


def test_autocast_leaves_float64_alone() -> None:
    problem = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(linear_cross_entropy, *problem, None)
    torch.testing.assert_close(found, with_gradients(plain, *problem, None))


class Largest(TorchDispatchMode):
    """The most elements of any tensor that any operation, also inside the hand-written functions, returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@CAPS
def test_no_tensor_has_time_and_classes(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is larger than a chunk, the inputs and their gradients, however many tokens there are."""
    monkeypatch.setattr(loss, "_CHUNK", 8 * 3000)
    for steps in (50, 100):
        x_BTD, w_CD = torch.randn(2, steps, 4, requires_grad=True), torch.randn(3000, 4, requires_grad=True)
        targets_BT = torch.randint(0, 3000, (2, steps))
        with Largest() as seen:
            linear_cross_entropy(x_BTD, w_CD, targets_BT, cap).backward()
        assert seen.elements == 8 * 3000


@pytest.fixture
def wide() -> LMConfig:
    """Few channels and many classes: logits are larger than anything else."""
    return lm_from_pattern("m", vocab_size=5000, width=4, heads=2)


def largest_while(work: Callable[[], object]) -> int:
    with Largest() as seen:
        work()
    return seen.elements


def test_training_and_validation_never_hold_all_logits(
    settings: Settings, wide: LMConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_CHUNK", 4 * 5000)
    config = settings(steps=1, validations=1, workers=1)
    assert config.batch * config.length == 32
    assert largest_while(lambda: train(config, model=wide)) == 4 * 5000


def test_evaluation_never_holds_all_logits(wide: LMConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK", 4 * 5000)
    model = exlstm.quantize(LM(wide), "int8")
    stream = TokenStream(torch.arange(200).numpy().astype("uint16"), 256, 200)
    replicas, windows = ThreadedReplicas(model, 1), windows_of(stream, length=32, limit=128)
    lengths = ByteTokenizer().byte_lengths
    assert largest_while(partial(score, replicas, windows, lengths, carry=False, chunk=32)) == 4 * 5000


MODELS = {"plain": {}, "tied": {"tie_embeddings": True}, "cap": {"logit_cap": 0.5}}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("watched", [False, True])
def test_a_model_learns_the_same(watched: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient are those of its logits; somebody who watches the head sees all of them go by."""
    monkeypatch.setattr(loss, "_CHUNK", 4 * 11)
    config = lm_from_pattern("ms", vocab_size=11, width=16, heads=2)
    model = LM(LMConfig(**{**vars(config), **options})).double()
    tokens_BT, targets_BT = torch.randint(11, (2, 2, 9))
    want = cross_entropy(model(tokens_BT)[0], targets_BT)
    gradients = torch.autograd.grad(want, list(model.parameters()))
    seen: list[int] = []
    if watched:
        model.head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    found = model_cross_entropy(model, model.hidden(tokens_BT)[0], targets_BT)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.autograd.grad(found, list(model.parameters())), gradients)
    assert seen == ([4, 4, 4, 4, 2] if watched else [])


def test_a_head_with_a_bias_is_called() -> None:
    model = LM(lm_from_pattern("m", vocab_size=11, width=16, heads=2))
    model.head.bias = torch.nn.Parameter(torch.randn(11))
    tokens_BT, targets_BT = torch.randint(11, (2, 2, 9))
    found = model_cross_entropy(model, model.hidden(tokens_BT)[0], targets_BT)
    torch.testing.assert_close(found, cross_entropy(model(tokens_BT)[0], targets_BT))
