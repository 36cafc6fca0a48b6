"""Where the tests of Triton kernels run: on a GPU if there is one, else on the CPU through Triton's interpreter."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def here(x):
    """Tensors, or a dictionary or list of things of which some are, on that device."""
    if isinstance(x, torch.Tensor):
        return x.to(DEVICE)
    if isinstance(x, dict):
        return {name: here(value) for name, value in x.items()}
    return [here(value) for value in x] if isinstance(x, list) else x
