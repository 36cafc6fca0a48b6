"""The private names of torch that exlstm leans on: each is there, and means what `runtime/internals.py` says."""

import pytest
import torch
from torch.autograd import forward_ad

from exlstm.runtime import internals


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is")
def test_transforms_and_tracing_are_seen():
    seen = []

    def look(x):
        seen.append((internals.innermost_transform() is not None, internals.jit_tracing_state() is not None))
        return x * 2

    look(torch.ones(2))
    torch.vmap(look)(torch.ones(2))
    torch.jit.trace(look, torch.ones(2), check_trace=False)
    assert seen == [(False, False), (True, False), (False, True)]
    assert not internals.is_compiling()


def test_forward_derivatives_are_seen():
    assert not internals.in_forward_ad()
    with forward_ad.dual_level():
        assert internals.in_forward_ad()


def test_dispatch_modes_are_counted_and_see_operations():
    names = []

    class Watch(internals.DispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.append((str(operation), internals.num_dispatch_modes()))
            return operation(*args, **(kwargs or {}))

    assert internals.num_dispatch_modes() == 0
    with Watch():
        assert internals.num_dispatch_modes() == 1
        torch.ones(2) + 1
    assert [name for name, _ in names] == ["aten.ones.default", "aten.add.Tensor"]


def test_an_answer_is_a_constant_for_the_compiler():
    calls = []

    @internals.assume_constant
    def question():
        calls.append(None)
        return 3

    compiled = torch.compile(lambda x: x * question(), backend="eager", fullgraph=True)
    assert compiled(torch.ones(1)).item() == 3
    assert compiled(torch.ones(1)).item() == 3
    assert len(calls) == 1


def test_fresh_memory_is_filled_in_deterministic_mode_only():
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for on in (True, False):
            torch.use_deterministic_algorithms(on)
            assert internals.fills_memory_with_nan() == on
            assert not on or torch.empty(4).isnan().all()
    finally:
        torch.use_deterministic_algorithms(before)
    assert internals.is_memory_fill(torch.ops.aten.fill_.Scalar, (torch.ones(1), torch.nan))
    assert not internals.is_memory_fill(torch.ops.aten.fill_.Scalar, (torch.ones(1), 0.0))


def test_what_a_module_holds_and_whether_it_has_hooks():
    layer = torch.nn.BatchNorm1d(3)
    parameters, buffers = internals.held_tensors(layer)
    assert set(parameters) == {"weight", "bias"}
    assert set(buffers) == {"running_mean", "running_var", "num_batches_tracked"}
    assert not internals.has_hooks(layer)
    layer.register_forward_hook(lambda *_: None)
    assert internals.has_hooks(layer)


def test_changes_in_place_are_counted():
    x = torch.ones(2)
    before = internals.version(x)
    x.add_(1)
    assert internals.version(x) == before + 1


def test_products_of_other_libraries():
    assert isinstance(internals.has_mkl(), bool)
    assert isinstance(internals.has_bfloat16_products(), bool)
    if not internals.has_onednn_linear():
        pytest.skip("this build of torch has no oneDNN")
    x, w, b = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
    torch.testing.assert_close(internals.onednn_linear(x, w, b), x @ w.T + b)
    torch.testing.assert_close(internals.onednn_linear(x, w, None), x @ w.T)


def test_numba_says_whether_it_compiles():
    pytest.importorskip("numba", reason="Numba is not installed")
    assert not internals.numba_is_disabled()
