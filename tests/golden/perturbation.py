"""Parameters that all matter, for comparisons with equations."""

import torch


def perturbed(mixer, seed=0):
    """The mixer in float64, with every parameter away from the zeros and ones it starts from."""
    torch.manual_seed(seed)
    mixer = mixer.double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixer
