"""Long convolutions: against torch's own, in pieces, with resets anywhere, and the cache that they leave."""

import itertools

import comparison
import pytest
import torch
from recurrences import RECURRENCES

from exlstm.ops.long_conv import LONG, LongConvState, long_conv
from exlstm.ops.long_conv.fft import smooth
from exlstm.ops.long_conv.segments import BLOCK
from exlstm.runtime.backend import recorded

FORMS = ["chunkwise", "fft", "recurrent"]
CASE = RECURRENCES["long_conv"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize(("T", "R"), [(1, 1), (7, 1), (5, 9), (70, 33), (100, 65), (130, 200)])
def test_torch_own_convolution(backend, T, R):
    u, taps = draw(2, T, 3), draw(R, 3, seed=1)
    padded = torch.nn.functional.pad(u.mT, (R - 1, 0))
    want = torch.nn.functional.conv1d(padded, taps.flip(0).mT[:, None].contiguous(), groups=3).mT
    torch.testing.assert_close(long_conv(u, taps, backend=backend)[0], want)


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("R", [1, 2, 20, 77])
def test_pieces_are_the_whole(backend, R):
    """And the caches are equal; none has more entries than there are taps to meet them."""
    u, taps = draw(2, 120, 3), draw(R, 3, seed=1)
    y, state = long_conv(u, taps, backend=backend)
    parts, after = [], None
    for piece in u.split([50, 1, 3, 66], dim=1):
        part, after = long_conv(piece, taps, after, backend=backend)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y)
    assert after.u_BSE.shape == (2, R - 1 if R < 121 else 120, 3)
    torch.testing.assert_close(after.u_BSE, state.u_BSE)
    assert torch.equal(after.seen_B, state.seen_B)


@pytest.mark.parametrize("backend", ["chunkwise", "fft"])
@pytest.mark.parametrize(("T", "S"), [(BLOCK, 1), (BLOCK + 1, 5), (3 * BLOCK, 3 * BLOCK), (5 * BLOCK + 17, 40)])
def test_resets_anywhere(backend, T, S):
    """At the first and the last step, several in a block; rows that end; all gradients."""
    x = [t.double() for t in CASE.make(3, T, {"E": 2, "R": 130, "S": S})]
    reset_BT = torch.zeros(3, T, dtype=torch.bool)
    reset_BT[0, [0, T // 2, T - 1]] = True
    reset_BT[1, ::7] = True
    for rows in (
        {},
        {"reset_BT": reset_BT},
        {"lengths_B": torch.tensor([T, T - 1, T // 3])},
        {"reset_BT": reset_BT, "lengths_B": torch.tensor([T - BLOCK // 2, T, 0])},
    ):
        want = comparison.everything(x, lambda *t, rows=rows: CASE.run(*t, **rows), CASE.names)
        got = comparison.everything(x, lambda *t, rows=rows: CASE.run(*t, backend=backend, **rows), CASE.names)
        comparison.assert_same(got, want, tolerance=1e-11)


@pytest.mark.parametrize("backend", [*FORMS, "numba"])
def test_counts(backend):
    """What a row has seen since its reset, whatever the entries before hold."""
    u, taps = draw(4, 1, 3).float(), draw(6, 3, seed=1).float()
    old = LongConvState(torch.full((4, 4, 3), torch.nan), torch.tensor([0, 2, 4, 4]))
    for row, seen in enumerate(old.seen_B):
        old.u_BSE[row, 4 - seen :] = draw(int(seen), 3, seed=row).float()
    rows = {"reset_BT": torch.tensor([[False], [False], [False], [True]]), "lengths_B": torch.tensor([1, 1, 0, 1])}
    with torch.no_grad():
        y, state = long_conv(u, taps, old, backend=backend, **rows)
    assert state.seen_B.tolist() == [1, 3, 4, 1]
    want = u[:, 0] * taps[0]
    want[1] += old.u_BSE[1, 3] * taps[1] + old.u_BSE[1, 2] * taps[2]
    want[2] = 0
    torch.testing.assert_close(y[:, 0], want)
    entries = torch.zeros(4, 5, 3)
    entries[[0, 1, 3], 4] = u[[0, 1, 3], 0]
    entries[1, 2:4], entries[2, 1:] = old.u_BSE[1, 2:], old.u_BSE[2]
    torch.testing.assert_close(state.u_BSE, entries)


@pytest.mark.parametrize("R", [1, 2, 5, 40])
def test_the_kernel_of_steps(R):
    """Fifty steps, through the cache's growth and beyond."""
    u, taps, state, kept = draw(2, 50, 300).float(), draw(R, 300, seed=1).float(), None, None
    for step in u.split(1, dim=1):
        with torch.no_grad():
            y, state = long_conv(step, taps, state, backend="numba")
            want, kept = long_conv(step, taps, kept, backend="recurrent")
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
        assert all(map(torch.equal, state, kept))


def test_what_runs():
    taps = draw(LONG + 8, 3).float()

    def chosen(T, taps=taps, state=None, **rows):
        with recorded() as choices:
            _, after = long_conv(torch.zeros(1, T, 3, **rows), taps, state)
        return choices[-1].backend, after

    assert chosen(1)[0] == "numba"
    assert chosen(1, requires_grad=True)[0] == "chunkwise"
    name, state = chosen(LONG)
    assert name == "chunkwise"
    assert chosen(2, state=state)[0] == chosen(LONG + 1)[0] == "fft"
    assert chosen(LONG + 1, taps=taps[:LONG])[0] == "chunkwise"


@pytest.mark.parametrize(("least", "length"), [(1, 2), (7, 8), (11, 12), (13, 16), (4095, 4096), (6143, 6144)])
def test_lengths_of_transforms(least, length):
    assert smooth(least) == length


def test_rows_of_a_cache():
    """Trimmed and padded it is the same memory, also beside rows that have seen more."""
    u, taps = draw(2, 9, 3), draw(20, 3, seed=1)
    _, state = long_conv(u, taps, lengths_B=torch.tensor([4, 7]))
    for other in (state.trimmed(), state.padded(15), state.trimmed().padded(11)):
        torch.testing.assert_close(long_conv(u, taps, other)[0], long_conv(u, taps, state)[0])
    assert state.trimmed().u_BSE.shape[1] == 7


@pytest.mark.parametrize(("S", "T"), list(itertools.product([0, 3], [1, 40])))
def test_causal_bit_by_bit(S, T):
    """Where the form for short windows runs: a later input changes no bit of what came before, and gets no gradient."""
    u, taps = draw(1, T + 5, 4).float().requires_grad_(), draw(60, 4, seed=1).float()
    state = LongConvState(draw(1, S, 4, seed=2).float(), torch.tensor([S]))
    y, _ = long_conv(u, taps, state)
    other = u.detach().clone()
    other[:, T:] += 1e4
    assert torch.equal(long_conv(other, taps, state, backend="chunkwise")[0][:, :T], y[:, :T])
    y[:, :T].sum().backward()
    assert not u.grad[:, T:].any()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (LongConvState(torch.zeros(1, 9, 3), torch.zeros(1, dtype=torch.long)), "u_BSE of the state is"),
        (LongConvState(torch.zeros(1, 2, 3), torch.zeros(1)), "seen_B of the state is"),
        ((torch.zeros(1, 2, 3), torch.zeros(1)), "the state is a tuple"),
    ],
)
def test_states_that_do_not_fit(state, words):
    with pytest.raises(ValueError, match=words):
        long_conv(torch.zeros(1, 2, 3), torch.zeros(5, 3), state)


def test_taps_that_do_not_fit():
    for taps in (torch.zeros(5, 4), torch.zeros(0, 3), torch.zeros(5), torch.zeros(5, 3).double()):
        with pytest.raises(ValueError, match=r"taps is .*must be"):
            long_conv(torch.zeros(1, 2, 3), taps)


@pytest.mark.parametrize("backend", [*FORMS, "numba"])
def test_the_first_taps_of_a_longer_filter(backend):
    """As many as there are steps will do, and the cache is that of the whole filter."""
    u, taps = draw(2, 5, 3).float(), draw(9, 3, seed=1).float()
    with torch.no_grad():
        _, state = long_conv(u[:, :4], taps)
        want, after = long_conv(u[:, 4:], taps, state)
        got, found = long_conv(u[:, 4:], taps[:5], state, filter_len=9, backend=backend)
    torch.testing.assert_close(got, want)
    assert all(map(torch.equal, found, after))
    with pytest.raises(ValueError, match=r"taps is .*must be .* \(5, 3\)"):
        long_conv(u[:, 4:], taps[:4], state, filter_len=9, backend=backend)
