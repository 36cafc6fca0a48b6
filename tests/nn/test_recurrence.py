"""Structures of R: the effective matrix, connectivity, hard concrete gates, the penalty."""

import copy
import math

import pytest
import torch
from torch import nn

from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.nn.recurrence import (
    Diagonal,
    Learned,
    LowRank,
    Sparse,
    block_diagonal,
    graph_penalty,
    num_recurrent_weights,
    random_graph,
)

H, V = 3, 5
MAKERS = {
    "diagonal": lambda: Diagonal(H, V),
    "low rank": lambda: LowRank(H, V, 2),
    "sparse": lambda: Sparse(H, V, 3, seed=7),
    "learned": lambda: Learned(H, V),
}
every = pytest.mark.parametrize("name", MAKERS)


def build(name):
    """In float64, with weights of which all matter, for evaluation."""
    made = MAKERS[name]().double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def element(made, h, k, g, v):
    """One number of R, as its structure says."""
    if isinstance(made, Diagonal):
        return made.r_HGV[h, g, v] if k == v else 0
    if isinstance(made, LowRank):
        return sum(made.r_in_HKJ[h, k, j] * made.r_out_HJGV[h, j, g, v] for j in range(2))
    if isinstance(made, Sparse):
        return sum(made.r_HJGV[h, j, g, v] for j in range(3) if made.sources_HJV[h, j, v] == k)
    gate = min(1, max(0, 1.2 / (1 + math.exp(-made.graph_HKV[h, k, v])) - 0.1))
    return made.r_HKGV[h, k, g, v] * gate


@every
def test_the_effective_matrix(name):
    made = build(name).requires_grad_(False)
    r_HKGV = made()
    assert r_HKGV.shape == (H, V, 4, V)
    for place in torch.cartesian_prod(*map(torch.arange, r_HKGV.shape)).tolist():
        assert float(r_HKGV[tuple(place)]) == pytest.approx(float(element(made, *place)), rel=1e-12), place


@every
def test_numbers_are_not_zero_where_there_are_links(name):
    """And the links of a structure are the same for four gates."""
    made = build(name)
    assert torch.equal((made() != 0).all(2), made.connections())
    assert torch.equal((made() != 0).any(2), made.connections())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_computed_wide_and_returned_as_it_is_stored(name, dtype):
    """Rounded once, at the end; autocast changes nothing."""
    made = build(name).to(dtype)
    r_HKGV, wide_HKGV = made(), copy.deepcopy(made).float()()
    assert r_HKGV.dtype == dtype
    assert torch.equal(r_HKGV, wide_HKGV.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(), r_HKGV)


@every
def test_gradients_are_those_of_the_dense_matrix(name):
    made = build(name)
    names, values = zip(*made.named_parameters(), strict=True)

    def effective(*parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(effective, values)


@every
def test_compiles_whole(name):
    """fullgraph: a break in the graph is an error."""
    made = build(name)
    torch.testing.assert_close(torch.compile(made, fullgraph=True, backend="eager")(), made())


def test_a_random_graph():
    """Itself first, then others, each once; blocks and seeds differ; a graph of more units has that of fewer."""
    graph_HJV = random_graph(4, 16, 5, seed=3)
    assert (graph_HJV[:, 0] == torch.arange(16)).all()
    assert all(len(set(graph_HJV[h, :, v].tolist())) == 5 for h in range(4) for v in range(16))
    assert 0 <= graph_HJV.min() <= graph_HJV.max() < 16
    assert not torch.equal(graph_HJV[0], graph_HJV[1])
    assert not torch.equal(graph_HJV, random_graph(4, 16, 5, seed=4))
    assert torch.equal(graph_HJV[:, :3], random_graph(4, 16, 3, seed=3))
    heard = torch.bincount(random_graph(1, 64, 9, seed=0).flatten(), minlength=64)
    assert 1 <= heard.min() <= 6  # binomial around 9
    assert 12 <= heard.max() <= 22


def test_the_graph_of_a_seed_is_part_of_the_architecture():
    """Saved models rely on it: whatever torch or this package becomes, these numbers stay."""
    assert random_graph(2, 4, 3, seed=11).tolist() == GRAPH
    before = torch.get_rng_state()
    random_graph(1, 4, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        assert random_graph(2, 4, 3, seed=11).tolist() == GRAPH


GRAPH = [[[0, 1, 2, 3], [1, 2, 3, 1], [3, 3, 1, 0]], [[0, 1, 2, 3], [3, 0, 3, 0], [1, 3, 1, 2]]]


def draws(log_alpha, count=40_000):
    """Gates of one log alpha, drawn in training."""
    made = Learned(1, 1)
    with torch.no_grad():
        made.graph_HKV.fill_(log_alpha)
        made.graph_HKV = nn.Parameter(made.graph_HKV.expand(count, 1, 1).double())
        return made.gates().flatten()


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_the_distribution_of_gates(log_alpha):
    """Of the binary concrete one, P(s <= x) = sigmoid((log x - log(1 - x)) beta - log alpha) before it is stretched."""
    z = draws(log_alpha)
    for edge in (0.0, 0.2, 0.5, 0.9):
        x = (edge + 0.1) / 1.2
        want = 1 / (1 + math.exp(log_alpha - 2 / 3 * math.log(x / (1 - x))))
        assert float((z <= edge).double().mean()) == pytest.approx(want, abs=0.01)
    wide_open = 1 - 1 / (1 + math.exp(log_alpha - 2 / 3 * math.log(11)))
    assert float((z == 1).double().mean()) == pytest.approx(wide_open, abs=0.01)
    assert z.min() >= 0


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 2.0])
def test_the_penalty_counts_gates_that_are_open(log_alpha):
    made = Learned(2, 7)
    nn.init.constant_(made.graph_HKV, log_alpha)
    assert made.penalty().item() / 98 == pytest.approx(float((draws(log_alpha) > 0).double().mean()), abs=0.01)


def test_the_penalty_of_a_model():
    """Summed over its graphs; differentiable; zero without any."""
    learned = [build("learned"), build("learned")]
    model = nn.Sequential(nn.Linear(2, 2), *learned, build("sparse"))
    logs = torch.cat([made.graph_HKV.flatten() for made in learned]).tolist()
    want = sum(1 / (1 + math.exp(2 / 3 * math.log(0.1 / 1.1) - log_alpha)) for log_alpha in logs)
    assert graph_penalty(model).item() == pytest.approx(want)
    assert torch.autograd.gradcheck(lambda _: graph_penalty(model), (learned[0].graph_HKV,))
    graph_penalty(model).backward()
    assert all((made.graph_HKV.grad > 0).all() and made.r_HKGV.grad is None for made in learned)
    assert graph_penalty(nn.Linear(2, 2)).item() == 0
    assert graph_penalty(nn.Module()).item() == 0


def test_a_penalty_closes_gates():
    """In the forward of evaluation too, where a closed gate is an exact zero."""
    torch.manual_seed(0)
    made = Learned(1, 8)
    nn.init.normal_(made.r_HKGV)
    wanted = torch.eye(8, dtype=torch.bool)[None]
    nn.init.normal_(made.graph_HKV, std=0.01)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        missing = ((made() - 1) * wanted[:, :, None]).square().sum()
        (missing + 0.1 * made.penalty()).backward()
        optimizer.step()
    made.eval()
    assert torch.equal(made.connections(), wanted)
    assert made()[0][0, :, 1:].count_nonzero() == 0


def test_chance_is_of_training_only():
    made = build("learned")
    assert torch.equal(made(), made())
    made.train()
    torch.manual_seed(3)
    first, second = made(), made()
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(made(), first)
    assert torch.equal(copy.deepcopy(made)(), second)


@pytest.mark.parametrize(
    ("config", "links"),
    [
        (SLSTMConfig(), 4 * 8 * 8),
        (SLSTMConfig(recurrence_blocks=1), 32 * 32),
        (SLSTMConfig(recurrence_blocks=16), 16 * 2 * 2),
        (SLSTMConfig(recurrence="none"), 0),
        (SLSTMConfig(recurrence="diagonal", recurrence_blocks=2), 32),
        (SLSTMConfig(recurrence="low_rank", recurrence_blocks=2), 2 * 16 * 16),
        (SLSTMConfig(recurrence="sparse", recurrence_degree=3), 32 * 3),
        (SLSTMConfig(recurrence="learned"), 4 * 8 * 8),
        (LSTMConfig(), 32 * 32),
        (LSTMConfig(heads=4), 4 * 8 * 8),
    ],
    ids=str,
)
def test_adjacency_and_count(config, links):
    mixer = config.build(32)
    adjacency = mixer.adjacency()
    assert adjacency.dtype == torch.bool
    assert adjacency.shape == (32, 32)
    assert adjacency.sum() == links
    assert mixer.num_recurrent_weights() == 4 * links
    assert num_recurrent_weights(nn.Sequential(mixer, nn.Linear(2, 2), config.build(32))) == 8 * links
    blocks = getattr(mixer, "blocks", config.heads)
    inside = torch.block_diag(*[torch.ones(32 // blocks, 32 // blocks)] * blocks).bool()
    assert not (adjacency & ~inside).any()


def test_closed_gates_are_no_links():
    mixer = SLSTMConfig(recurrence="learned", recurrence_blocks=2).build(8)
    nn.init.constant_(mixer.recurrence.graph_HKV, -3)
    mixer.recurrence.graph_HKV.data[1, 0, 2] = 0
    assert mixer.adjacency().nonzero().tolist() == [[4, 6]]
    assert mixer.num_recurrent_weights() == 4


def test_blocks_lie_on_the_diagonal():
    links = torch.tensor([[[1, 0], [1, 1]], [[0, 1], [0, 0]]], dtype=torch.bool)
    assert block_diagonal(links).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
