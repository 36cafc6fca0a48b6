"""The first NaN or infinity of a step: the step is run again, with hooks on every module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.mixers.state import named_leaves
from exlstm.models.lm import LM


class NotFiniteError(ValueError):
    """Training stopped because a loss or a gradient became NaN or infinite."""


def first_bad_tensor(model: LM, state: Any, run_again: Callable[[], None]) -> str:
    """Names the first tensor that is not finite: a parameter, the incoming state, an activation, or a gradient.

    run_again: repeats the forward and backward passes of the step, from the same state and random numbers.
    """
    bad_parameters = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad_parameters:
        return f"the parameter {_with_block(model, bad_parameters[0])}"
    for index, block_state in enumerate(state or ()):
        for field, leaf in _tensors(block_state):
            if _bad_state(leaf):
                return f"the carried state{field} of {_with_block(model, f'blocks.{index}')}"
    found = _watch(model, run_again)
    if found:
        return found[0]
    gradients = [(name, parameter.grad) for name, parameter in reversed(list(model.named_parameters()))]
    for name, gradient in gradients:  # the order of the backward
        if gradient is not None and not gradient.isfinite().all():
            return f"the gradient of the parameter {_with_block(model, name)}"
    return "none when the step is run again without --compile"


def _watch(model: LM, run_again: Callable[[], None]) -> list[str]:
    """Activations that are not finite, in the order of the forward, then gradients, in that of the backward."""
    found: list[str] = []

    def watch_gradient(name: str, output: Tensor) -> None:
        def check(gradient: Tensor) -> None:
            if not gradient.isfinite().all():
                found.append(f"the gradient of the output of {_with_block(model, name)}")

        if output.requires_grad:
            output.register_hook(check)  # type: ignore[no-untyped-call]

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            first, *rest = _tensors(output)
            if not first[1].isfinite().all():
                found.append(f"the output of {_with_block(model, name)}")
            found.extend(
                f"the state{field} that {_with_block(model, name)} returns" for field, leaf in rest if _bad_state(leaf)
            )
            watch_gradient(name, first[1])

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        run_again()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _bad_state(leaf: Tensor) -> bool:
    # the stabilizer of an empty state is minus infinity
    return leaf.is_floating_point() and bool((leaf.isnan() | leaf.isposinf()).any())


def _tensors(value: Any) -> list[tuple[str, Tensor]]:
    """Every tensor of a module's output or a state with the names of its fields: " cell c_BHKV"."""
    paths = ((path.split(".")[1:], x) for path, x in named_leaves(value))
    return [("".join(f" {field}" for field in fields if not field.isdecimal()), x) for fields, x in paths]


def _with_block(model: LM, name: str) -> str:
    """The name of a parameter or module, with its block and the block's mixer."""
    parts = name.split(".")
    if parts[0] != "blocks" or len(parts) < 2:
        return name
    mixer = model.get_submodule(f"blocks.{parts[1]}.mixer")
    return f"{name} (block {int(parts[1]) + 1} of {len(model.config.blocks)}, {type(mixer).__name__})"


def keep_random_state(device: torch.device) -> Callable[[], None]:
    """Saves the states of the random generators; returns a function that restores them."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    return restore
