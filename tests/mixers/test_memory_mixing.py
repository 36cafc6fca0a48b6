"""Recurrent weights of the LSTM and the sLSTM, whatever their structure, against the ops with dense ones."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.mixers.state import leaves
from exlstm.ops.fused import dense_recurrence
from exlstm.ops.lstm import LSTMState, lstm
from exlstm.ops.norm import head_norm
from exlstm.ops.slstm import slstm

WIDTH, HEADS = 16, 4
STRUCTURES = {
    f"{recurrence}, {blocks} blocks": SLSTMConfig(
        heads=HEADS, recurrence=recurrence, recurrence_blocks=blocks, recurrence_rank=2, recurrence_degree=2
    )
    for recurrence in ("block", "none", "diagonal", "low_rank", "sparse", "learned")
    for blocks in (None, 1, 2, 8)
}
LSTMS = {f"LSTM, {heads} heads": LSTMConfig(heads=heads) for heads in (1, 2, 8)}


def build(config, dtype=torch.float64, seed=1):
    """With weights of which all matter, for evaluation: without chance."""
    torch.manual_seed(seed)
    mixer = config.build(WIDTH, depth=3, index=1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return mixer.to(dtype).eval()


def inputs(B=2, T=9, dtype=torch.float64):
    return torch.randn(B, T, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def dense(blocks_HKGV):
    """One block for all units, [1, D, 4, D], with zeros between the blocks."""
    H, V = blocks_HKGV.shape[:2]
    r_1DGD = blocks_HKGV.new_zeros(1, H * V, 4, H * V)
    for h, block in enumerate(blocks_HKGV):
        r_1DGD[0, h * V : (h + 1) * V, :, h * V : (h + 1) * V] = block
    return r_1DGD


def with_dense_weights(mixer, x_BTD):
    """The layer, put together here, with one head of the whole width in the cell."""
    c_BTD, _ = mixer.conv(x_BTD, mixer.zero_state(2).conv, reset_BT=None, lengths_B=None, activation="silu")
    gates = []
    for g, u_BTD in enumerate((c_BTD, c_BTD, x_BTD, x_BTD)):
        heads = zip(u_BTD.chunk(HEADS, dim=2), mixer.w_HGVK[:, g], mixer.b_HGV[:, g], strict=True)
        gates.append(torch.cat([u @ w.T + b for u, w, b in heads], dim=2))
    r_HKGV = mixer.r_HKGV if mixer.recurrence is None else mixer.recurrence()
    raw_BTGD = torch.stack(gates, dim=2)
    h_BTHV, _ = slstm(raw_BTGD[:, :, None], None if r_HKGV is None else dense(r_HKGV), backend="recurrent")
    gain_HV = mixer.norm.weight.view(HEADS, -1)
    return head_norm(h_BTHV.reshape(2, -1, HEADS, WIDTH // HEADS), gain_HV, mixer.norm.eps).flatten(2)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_is_the_cell_with_its_dense_weights(name):
    """Outputs and gradients; the heads of projections and norm stay what they are, whatever the blocks of R."""
    mixer, found = build(STRUCTURES[name]), []
    for run in (lambda x: mixer(x)[0], lambda x: with_dense_weights(mixer, x)):
        x = inputs().requires_grad_()
        mixer.zero_grad()
        y = run(x)
        (y * inputs().cos()).sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in mixer.parameters())])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", STRUCTURES | LSTMS)
def test_who_hears_whom(name):
    """What a unit remembers after a step depends on the outputs of those units before it that it is linked with."""
    mixer = build((STRUCTURES | LSTMS)[name])
    cell = mixer.zero_state(1) if name in LSTMS else mixer.zero_state(1).cell
    # h, which need not be what a step would have made of the rest
    rest = [torch.rand_like(x) + 0.5 for x in cell]

    def memory(h_D):
        changed = type(cell)(h_D.view_as(cell[0]), *rest[1:])
        state = changed if name in LSTMS else mixer.zero_state(1)._replace(cell=changed)
        _, after = mixer(inputs(1, 1), state)
        return (after if name in LSTMS else after.cell)[1].flatten()

    jacobian = torch.autograd.functional.jacobian(memory, rest[0].flatten())
    assert torch.equal(jacobian.T != 0, mixer.adjacency())


@pytest.mark.parametrize("recurrent_init", ["zeros", "uniform"])
def test_one_block_per_head_is_as_before(recurrent_init):
    """Parameter names, shapes, random numbers, and what comes out."""
    names = ["w_HGVK", "r_HKGV", "b_HGV", "conv.weight_DW", "conv.bias_D", "norm.weight"]
    found = []
    for blocks in (None, HEADS):
        torch.manual_seed(5)
        config = SLSTMConfig(heads=HEADS, recurrence_blocks=blocks, recurrent_init=recurrent_init)
        mixer = config.build(WIDTH)
        assert list(mixer.state_dict()) == names
        assert mixer.r_HKGV.shape == (HEADS, 4, 4, 4)
        found.append([*mixer.state_dict().values(), mixer(inputs(dtype=torch.float32))[0]])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("heads", [2, 8])
def test_an_lstm_with_heads_is_as_many_lstms(heads):
    """Each hears the whole input, and of the hidden state its own part."""
    mixer, size = build(LSTMConfig(heads=heads)), WIDTH // heads
    y, state = mixer(inputs())
    for head in range(heads):
        units = slice(head * size, (head + 1) * size)
        rows = (torch.arange(4)[:, None] * WIDTH + torch.arange(WIDTH)[units]).flatten()
        zeros = torch.zeros(2, size, dtype=torch.float64)
        own = mixer.u_GV[rows]
        want, after = lstm(inputs(), mixer.w_GD[rows], own, mixer.b_G[rows], LSTMState(zeros, zeros))
        torch.testing.assert_close(y[..., units], want, rtol=1e-12, atol=1e-14)
        for got, part in zip(state, after, strict=True):
            torch.testing.assert_close(got[:, units], part, rtol=1e-12, atol=1e-14)


def test_blocks_are_placed_and_their_gradients_taken_from_there():
    u_GK = torch.randn(4 * 6, 2, dtype=torch.float64, requires_grad=True)
    u_GV = dense_recurrence(u_GK, 4)
    weights = torch.randn(24, 6, dtype=torch.float64)
    (u_GV * weights).sum().backward()
    for row in range(24):
        head = row % 6 // 2
        assert torch.equal(u_GV[row, 2 * head : 2 * head + 2], u_GK[row])
        assert torch.equal(u_GK.grad[row], weights[row, 2 * head : 2 * head + 2])
    assert u_GV.count_nonzero() == 48
    dense = torch.randn(8, 2)
    assert dense_recurrence(dense, 4) is dense


def test_one_head_is_the_lstm_of_before():
    """The name and the shape of what saved models hold."""
    assert {name: tuple(x.shape) for name, x in LSTMConfig().build(6).state_dict().items()} == {
        "w_GD": (24, 6),
        "u_GV": (24, 6),
        "b_G": (24,),
    }


LEARNED = SLSTMConfig(heads=2, recurrence="learned", recurrence_blocks=1)


def test_noise_of_a_learned_graph_is_torchs_own():
    """A seed repeats it, a copy draws it like the original, and backward with recomputation meets the same gates."""
    mixer, x = build(LEARNED, torch.float32).train(), inputs(dtype=torch.float32)

    def gradients(mixer, *, recompute):
        torch.manual_seed(6)
        mixer.zero_grad()
        y = checkpoint(lambda x: mixer(x)[0], x, use_reentrant=False) if recompute else mixer(x)[0]
        torch.rand(3)  # whatever else draws in between
        y.square().sum().backward()
        return [y, *(parameter.grad.clone() for parameter in mixer.parameters())]

    want = gradients(mixer, recompute=False)
    for got in (gradients(mixer, recompute=True), gradients(copy.deepcopy(mixer), recompute=False)):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not torch.equal(mixer(x)[0], mixer(x)[0])
    before = torch.get_rng_state()
    mixer.eval()(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sequence_meets_one_draw():
    """Not one per step: the same units again and again give a state that settles, where R is all there is."""
    mixer = build(LEARNED).train()
    torch.manual_seed(7)
    y, state = mixer(inputs(1, 6))
    torch.manual_seed(7)
    frozen = mixer.recurrence()
    mixer.recurrence.forward = lambda: frozen
    parts = [mixer(inputs(1, 6)[:, :4])]
    parts.append(mixer(inputs(1, 6)[:, 4:], parts[0][1]))
    torch.testing.assert_close(torch.cat([part[0] for part in parts], dim=1), y)
    for got, want in zip(leaves(parts[1][1]), leaves(state), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("config", [LEARNED, LSTMConfig(heads=2)], ids=["sLSTM", "LSTM"])
def test_compiles_whole(config):
    """fullgraph: a break in the graph is an error."""
    mixer, x = build(config), inputs(1, 1)
    compiled = torch.compile(mixer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], mixer(x)[0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SLSTMConfig(recurrence_blocks=3), "recurrence_blocks is 3; it must divide the width 16"),
        (SLSTMConfig(recurrence="low_rank", recurrence_rank=5), "recurrence_rank is 5; it must be from 1 to 4, the"),
        (SLSTMConfig(recurrence="sparse", recurrence_degree=5), "recurrence_degree is 5; it must be from 1 to 4, the"),
        (LSTMConfig(heads=3), "heads is 3; it must divide the width 16"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(WIDTH)
