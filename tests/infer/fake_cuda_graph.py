"""A fake CUDA graph on the CPU: it captures torch's operations with their memory, and replays them there.

As a real one it replays no Python, has no numbers during capture, and refuses operations that wait for one. Results of
the captured run are overwritten with NaN, because a real capture computes nothing.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# operations that need a number on the host, or copy one to the GPU
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
           aten.lift_fresh.default, aten.repeat_interleave.Tensor}  # fmt: skip


class FakeCudaGraph(TorchDispatchMode):
    made: int = 0  # the number of graphs captured so far

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        kwargs = kwargs or {}
        by_mask = func is aten.index.Tensor and any(x is not None and x.dtype is torch.bool for x in args[1])
        if func in WAITING or by_mask:
            raise RuntimeError(f"{func} is not permitted when stream is capturing\nand more of it")
        out = func(*args, **kwargs)
        places = {place(x) for x in tensors_of((args, kwargs))}
        if func._schema.is_mutable or any(place(x) not in places for x in tensors_of(out)):
            self.calls.append((func, args, kwargs, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for x, y in zip(tensors_of(out), tensors_of(again), strict=True):
                    x.copy_(y)

    @classmethod
    @contextmanager
    def capturing(cls, graph, **options):
        assert options.keys() == {"stream", "capture_error_mode"}
        with graph:
            yield
        FakeCudaGraph.made += 1
        for func, _, _, out in graph.calls:
            for x in tensors_of(out):
                if x.is_floating_point() and not func._schema.is_mutable:
                    x.fill_(torch.nan)


def tensors_of(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def place(x):
    return x.untyped_storage().data_ptr()


class FakeStream:
    def wait_stream(self, other):
        assert isinstance(other, FakeStream)


def install_fake_cuda(monkeypatch):
    """Replaces the parts of torch.cuda that a capture uses."""
    found = {"Stream": FakeStream, "current_stream": FakeStream, "stream": nullcontext, "device": nullcontext,
             "CUDAGraph": FakeCudaGraph, "graph": FakeCudaGraph.capturing}  # fmt: skip
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(FakeCudaGraph, "made", 0)
