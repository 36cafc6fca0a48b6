"""Triton kernels compiled for an NVIDIA GPU that is not there: ops run as on one, up to each launch itself.

For scripts in processes of their own, where Triton does not interpret. Outputs are whatever memory held.
"""

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Driver:
    """Of the GPU that is not there. Devices are numbered by capability, so that kernels are cached for each."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def map_python_to_cpp_type(self, kind):
        return CUDABackend.map_python_to_cpp_type(kind)


def compile_for(capability):
    """From now on launches only compile. Returns {kernel's name: [its forms]}, which they fill."""
    driver.set_active(Driver(capability))
    found = {}

    def launch(kernel, grid):
        def run(*arguments, **options):
            assert all(type(size) is int and size > 0 for size in grid), grid
            form = kernel.warmup(*arguments, grid=grid, **options)
            forms = found.setdefault(kernel.fn.__name__, [])
            if form not in forms:
                forms.append(form)

        return run

    JITFunction.__getitem__ = launch
    return found
