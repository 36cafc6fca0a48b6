"""Inputs for the mLSTM tests, and a call whose every number, gradients included, can be compared.

An input is a list of eight tensors: q, k, v, i, f and the state C, n, m.
"""

from itertools import pairwise

import torch
from hypothesis import strategies as st

from exlstm.ops.mlstm import MLSTMState, mlstm

NAMES = ("q", "k", "v", "i", "f", "c", "n", "m")
BACKENDS = ["chunkwise", "recurrent"]
BORDERS = [0, 7, 8, 8, 50, 75]  # sequences: one step, and none at all
# both forms in float64 differ by rounding alone; a division by a mass near the eps of 1e-6 magnifies it
ROUNDING = 1e-9


def make(B=2, T=40, H=2, K=4, V=3, *, seed=0, gate=1.0, dtype=torch.float64, positive=False):
    """Normal numbers, gates with standard deviation `gate`; the state is never narrower than float32.

    positive: q, k and n are, so that the mass n.q does not cancel to almost nothing, which no form divides by well.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = [normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V), normal(B, T, H, scale=gate),
         normal(B, T, H, scale=gate)]  # fmt: skip
    state = [normal(B, H, K, V), normal(B, H, K), normal(B, H)]
    if positive:
        x[0], x[1], state[1] = x[0].abs(), x[1].abs(), state[1].abs()
    wide = torch.promote_types(dtype, torch.float32)
    return [t.to(dtype) for t in x] + [t.to(wide) for t in state]


def resets(B, T, *, seed=0, share=0.2):
    """Each step is a reset with this probability."""
    return torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share


def drawn(data, longest, rows, heads):
    """A problem of hypothesis's choice: (inputs in float64, options, chunk length)."""
    sizes = st.integers(1, rows), st.integers(1, longest), st.integers(1, heads), st.integers(1, 19), st.integers(1, 19)
    B, T, H, K, V = (data.draw(size) for size in sizes)
    share, seed = data.draw(st.sampled_from([None, 0.1, 1.0])), data.draw(st.integers(0, 999))
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    options = {
        "reset_BT": None if share is None else resets(B, T, seed=seed, share=share),
        "lengths_B": None if lengths is None else torch.tensor(lengths),
        "input_gate": data.draw(st.sampled_from(["exp", "sigmoid"])),
        "normalize": data.draw(st.booleans()),
        "eps": data.draw(st.sampled_from([1e-6, 0.25])),
    }
    x = make(B, T, H, K, V, seed=seed, gate=data.draw(st.sampled_from([0.1, 1.0, 5.0])), positive=True)
    return x, options, data.draw(st.integers(1, 45))


def with_a_large_unit(T=200):
    """m is near 10,000, where float32 has steps of 0.001."""
    x = make(1, T, 1, 4, 3, dtype=torch.float32, positive=True)
    x[3], x[4] = x[3] + 1e4, x[4] + 3
    x[7] = x[7] + 1e4
    return x


def output_and_gradients(run, inputs):
    """{name: tensor} of h and the gradients through it; the state is left out, for it is in units of m."""
    inputs = [t.clone().requires_grad_(n < 7) for n, t in enumerate(inputs)]
    h_BTHV, _ = run(*inputs)
    weights = torch.randn(h_BTHV.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (h_BTHV * weights.to(h_BTHV.device)).sum().backward()
    gradients = {f"gradient of {name}": t.grad for name, t in zip(NAMES[:7], inputs, strict=False)}
    return {"h": h_BTHV.detach(), **gradients}


def call(*x, **options):
    """`mlstm` on the eight tensors."""
    return mlstm(*x[:5], MLSTMState(*x[5:]), **options)


def everything(x, run):
    """{name: tensor} of output, state and all gradients of `run(*x) -> (h, state)`; m has none."""
    x = [t.detach().clone().requires_grad_(n < 7) for n, t in enumerate(x)]
    h, state = run(*x)
    generator = torch.Generator().manual_seed(9)
    parts = [t * torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (h, state.c_BHKV, state.n_BHK)]
    sum(part.sum() for part in parts).backward()
    found = {"h": h, "c": state.c_BHKV, "n": state.n_BHK, "m": state.m_BH}
    found |= {
        f"gradient of {name}": torch.zeros_like(t) if t.grad is None else t.grad
        for name, t in zip(NAMES[:7], x, strict=False)
    }
    return {name: t.detach() for name, t in found.items()}


def in_true_units(h, state):
    """The output and the memory in units that do not depend on m."""
    return h, state.c_BHKV * torch.exp(state.m_BH)[..., None, None], state.n_BHK * torch.exp(state.m_BH)[..., None]


def packed(borders, H=2, seed=0):
    """The eight tensors: one row of inputs, and a state for each sequence."""
    row = make(1, borders[-1], H, 8, 6, seed=seed, positive=True)
    return row[:5] + make(len(borders) - 1, 1, H, 8, 6, seed=seed + 1, positive=True)[5:]


def one_by_one(borders, *x, reset_BT=None, **options):
    """What packing has to equal."""
    found = []
    for number, (begin, end) in enumerate(pairwise(borders)):
        state = MLSTMState(*(t[number : number + 1] for t in x[5:]))
        if begin == end:
            found.append((x[2][:, :0], state))
            continue
        reset = None if reset_BT is None else reset_BT[:, begin:end]
        found.append(mlstm(*(t[:, begin:end] for t in x[:5]), state, reset_BT=reset, backend="recurrent", **options))
    outputs, states = zip(*found, strict=True)
    return torch.cat(outputs, dim=1), MLSTMState(*map(torch.cat, zip(*states, strict=True)))
