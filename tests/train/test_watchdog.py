"""A number that goes bad is found, named, and not saved."""

import math
from typing import Any

import pytest
import torch
from tiny_runs import Settings
from torch import Tensor, nn

from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.run import train
from exlstm.train.run_folder import open_run
from exlstm.train.watchdog import NotFiniteError, first_bad_tensor, keep_random_state


class Spoil(torch.autograd.Function):
    """The identity, with one bad number in the output or in the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: bool) -> Tensor:
        ctx.forward = forward
        y = x.clone()
        if forward:
            y.view(-1)[3] = math.inf
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        if not ctx.forward:
            gradient.view(-1)[3] = math.nan
        return gradient, None


@pytest.fixture
def model() -> LM:
    return LM(lm_from_pattern("mMm", vocab_size=11, width=16, heads=2))


def passes(model: LM) -> None:
    logits_BTC, _ = model(torch.zeros(2, 5, dtype=torch.long))
    model.zero_grad()
    logits_BTC.sum().backward()


def spoil(module: nn.Module, *, forward: bool) -> None:
    real = module.forward
    module.forward = lambda x: Spoil.apply(real(x), forward)  # type: ignore[method-assign,no-untyped-call]


def found(model: LM, state: Any = None) -> str:
    return first_bad_tensor(model, state, lambda: passes(model))


def test_a_parameter(model: LM) -> None:
    model.blocks[1].mixer.q.weight.data[0, 0] = math.nan  # type: ignore[union-attr]
    assert found(model) == "the parameter blocks.1.mixer.q.weight (block 2 of 3, MLSTMLarge)"


def test_an_activation_is_found_where_it_begins(model: LM) -> None:
    """Not in the blocks behind it, nor in what contains it, nor in the gradients that follow."""
    spoil(model.blocks[1].mlp.up, forward=True)  # type: ignore[union-attr,arg-type]
    assert found(model) == "the output of blocks.1.mlp.up (block 2 of 3, MLSTMLarge)"


def test_a_gradient_is_found_where_it_begins(model: LM) -> None:
    """It goes bad on its way through the second block's `down`; what comes out of `up` is the first to see it."""
    spoil(model.blocks[1].mlp.down, forward=False)  # type: ignore[union-attr,arg-type]
    assert found(model) in {
        "the gradient of the output of blocks.1.mlp.up (block 2 of 3, MLSTMLarge)",
        "the gradient of the output of blocks.1.mlp_norm (block 2 of 3, MLSTMLarge)",
    }


def test_a_parameters_gradient(model: LM) -> None:
    model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    assert found(model) == "the gradient of the parameter norm.weight"


def test_a_carried_state(model: LM) -> None:
    with torch.no_grad():
        _, state = model(torch.zeros(2, 5, dtype=torch.long))
    state[1].c_BHKV[0, 0, 0, 0] = math.nan
    assert found(model, state) == "the carried state c_BHKV of blocks.1 (block 2 of 3, MLSTMLarge)"


def test_nothing(model: LM) -> None:
    _, state = model(torch.zeros(2, 5, dtype=torch.long))
    assert found(model, state).startswith("none when the step is run again")


def test_no_hook_stays_behind(model: LM) -> None:
    spoil(model.blocks[1].mlp.up, forward=True)  # type: ignore[union-attr,arg-type]
    found(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_random_numbers_come_again() -> None:
    restore = keep_random_state(torch.device("cpu"))
    first = torch.rand(3)
    restore()
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("weight", r"loss is not finite; .* is the parameter blocks\.0\.mixer\.down\.weight \(block 1 of 1, MLSTM\); "),
        ("activation", r"loss is not finite; .* is the output of blocks\.0\.mixer\.down \(block 1 of 1, MLSTM\); "),
        ("gradient", r"gradient is not finite; .* is the gradient of the output of blocks\.0\.mixer"),
        ("logits", r"loss is not finite; .* is the output of head; "),
    ],
)
def test_training_stops_and_keeps_its_checkpoints(place: str, message: str, settings: Settings, tiny: LMConfig) -> None:
    """Poisoned after step 5 of 8, with a checkpoint every second step."""
    calls: list[None] = []

    def poison(model: LM, tokenizer: object) -> str:
        calls.append(None)
        if len(calls) == 5:
            down = model.blocks[0].mixer.down  # type: ignore[union-attr]
            if place == "logits":
                model.head.weight.data.fill_(3e38)
            elif place == "weight":
                down.weight.data[0, 0] = math.inf  # type: ignore[union-attr]
            else:
                spoil(down, forward=place == "activation")  # type: ignore[arg-type]
        return ""

    config = settings(samples=8, validations=4)
    with pytest.raises(
        NotFiniteError, match=f"training stopped at step 6 because the {message}.*an --lr below 0.01"
    ) as e:
        train(config, model=tiny, sample=poison)
    assert "\n" not in str(e.value)
    run = open_run(config.run or "")
    assert run.steps() == [2, 4]
    assert all(parameter.isfinite().all() for parameter in run.load_model("last").parameters())
    assert [record["step"] for record in run.read_metrics() if "loss" in record] == [1, 2, 3, 4, 5]
