"""Fixed numbers: not rounded, not saved, on every device, and made once."""

import copy

import torch

from exlstm.nn.fixed import FixedNumbers
from exlstm.ops.common import wide_dtype


def test_numbers_follow_a_tensor_and_keep_their_digits():
    exact = 1 - 2.0 ** -torch.arange(5, 13, dtype=torch.float64)
    numbers = FixedNumbers(exact)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        found = numbers.like(torch.zeros(1, dtype=dtype))
        assert found.dtype is wide_dtype(dtype)
        torch.testing.assert_close(found.double(), exact, rtol=1e-7, atol=0)
        assert numbers.like(torch.zeros(2, dtype=dtype)) is found
    assert numbers.like(torch.zeros(1, device="meta")).is_meta


def test_a_module_neither_saves_nor_rounds_them():
    module = torch.nn.Linear(2, 2)
    module.numbers = FixedNumbers(torch.tensor([0.999], dtype=torch.float64))
    assert set(module.state_dict()) == {"weight", "bias"}
    for other in (module.to(torch.bfloat16), copy.deepcopy(module)):
        assert other.numbers.like(torch.zeros(1)).item() == torch.tensor(0.999).item()


def test_they_are_there_where_a_module_is_built_without_memory():
    with torch.device("meta"):
        numbers = FixedNumbers(torch.ones(3, dtype=torch.float64, device="cpu"))
    assert torch.equal(numbers.like(torch.zeros(1)), torch.ones(3))


def test_they_are_made_where_a_module_goes():
    """Before its first call: a captured step may not copy from another device."""
    module, meta = torch.nn.Sequential(FixedNumbers(torch.ones(3, dtype=torch.float64))), torch.device("meta")
    assert (meta, torch.float32) not in module[0].made
    module.to("meta")
    assert (meta, torch.float32) in module[0].made
    with meta:
        there = FixedNumbers(torch.ones(3, dtype=torch.float64, device="cpu"))
    assert (meta, torch.float32) in there.made
