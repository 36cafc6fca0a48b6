"""Linear attention with a decay per channel: what the battery of `test_recurrences` does not ask."""

import comparison
import pytest
import torch
from recurrences import RECURRENCES

from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.ops.mlstm import MLSTMState, mlstm

FAST = ["numba", "chunkwise"]
FORMS = {"key": {}, "value": {"axis": "value"}, "bonus": {"bonus_HK": torch.tensor([[0.5, -1.0, 2.0, 0.0, 1.0, 0.3]])}}


def draw(T, K=6, V=6, seed=0, dtype=torch.float32):
    """q, k, v, g and S of two rows and one head."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, T, 1, K), (2, T, 1, K), (2, T, 1, V), (2, T, 1, K), (2, 1, K, V)
    q, k, v, g, s = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return [q, k, v, -g.abs(), s]


def found(x, **options):
    """Output, state and every gradient."""
    run = lambda q, k, v, g, s: gated_linear_attention(q, k, v, g, GatedLinearAttentionState(s), **options)  # noqa: E731
    return comparison.everything(x, run, ["q", "k", "v", "g", "s"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", FAST)
def test_decays_of_nothing_and_of_everything(form, backend):
    """g of 0, -inf, and of sizes whose sums swallow their neighbors: each is what it is for its step alone."""
    x = draw(50)
    for t, value in {3: -torch.inf, 9: -1e30, 10: -1e-6, 20: 0.0, 33: -1e4, 34: -2.0, 47: -torch.inf}.items():
        x[3][:, t] = value
    want = found([t.double() for t in x], **FORMS[form])
    comparison.assert_same(found(x, backend=backend, **FORMS[form]), want, tolerance=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_a_decay_of_minus_infinity_is_a_reset(backend):
    x, reset_BT = draw(40), torch.zeros(2, 40, dtype=torch.bool)
    reset_BT[:, 21] = True
    x[3][:, 21] = -torch.inf
    want, got = found(x, backend=backend, reset_BT=reset_BT), found(x, backend=backend)
    comparison.assert_same(got, want, tolerance=1e-6)


@pytest.mark.parametrize("backend", [*FAST, "recurrent"])
def test_one_decay_for_all_channels_is_the_mlstm_without_gates(backend):
    """With an exponential forget gate and an input gate of one, the mLSTM is linear attention with a scalar decay."""
    q, k, v, g, s = draw(70, dtype=torch.float64 if backend != "numba" else torch.float32)
    g = g[..., :1]
    state = MLSTMState(s, torch.zeros_like(s[..., 0]), torch.zeros_like(s[..., 0, 0]))
    want, after = mlstm(
        q * 6**0.5, k, v, torch.zeros_like(g[..., 0]), g[..., 0], state, forget_gate="exp", normalize=False,
        backend="recurrent",
    )  # fmt: skip
    for axis in ("key", "value"):
        got, state = gated_linear_attention(
            q, k, v, g.expand(-1, -1, -1, 6), GatedLinearAttentionState(s), axis=axis, backend=backend
        )
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.s_BHKV, after.c_BHKV, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_constant_decays_are_read_as_they_are(backend):
    """Expanded over rows and steps."""
    x = draw(40)
    constant = x[3][:1, :1]
    want = found([*x[:3], constant.expand_as(x[3]).clone(), x[4]], backend=backend)["output"]
    got, _ = gated_linear_attention(*x[:3], constant.expand_as(x[3]), GatedLinearAttentionState(x[4]), backend=backend)
    assert torch.equal(got, want)


@pytest.mark.parametrize("form", ["decay per key", "decay per key, bonus", "decay per value"])
@pytest.mark.parametrize(("K", "V"), [(128, 256), (100, 130), (33, 17), (1, 1), (16, 8)])
def test_widths(form, K, V):
    """Heads of several tiles, of odd widths, and of less than a vector."""
    case = RECURRENCES[form]
    x = case.make(2, 70, {"H": 1, "K": K, "V": V})
    results = [comparison.everything(t, lambda *y, b=b: case.run(*y, backend=b), case.names)
               for b, t in (("recurrent", [y.double() for y in x]), ("numba", x))]  # fmt: skip
    comparison.assert_same(results[1], results[0], tolerance=1e-5)


def test_many_resets_in_one_span():
    """At every step, at the first, at the last, and across the borders of blocks and spans."""
    x = draw(70)
    for places in (range(70), [0], [69], [15, 16, 17, 31, 32, 33, 64]):
        reset_BT = torch.zeros(2, 70, dtype=torch.bool)
        reset_BT[0, list(places)] = True
        for options in FORMS.values():
            want = found([t.double() for t in x], reset_BT=reset_BT, **options)
            for backend in FAST:
                comparison.assert_same(found(x, reset_BT=reset_BT, backend=backend, **options), want, tolerance=1e-5)


def test_a_sequence_in_steps_is_the_sequence():
    """Bit by bit in the step loop, which has one order of sums."""
    x = draw(40, 6, 40)
    whole, after = gated_linear_attention(*x[:4], GatedLinearAttentionState(x[4]), backend="numba")
    state, parts = GatedLinearAttentionState(x[4]), []
    for t in range(40):
        part, state = gated_linear_attention(*(y[:, t : t + 1] for y in x[:4]), state, backend="numba")
        parts.append(part)
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(state.s_BHKV, after.s_BHKV)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": "both"}, "axis is 'both'; it must be 'key' or 'value'"),
        ({"axis": "value"}, r"g is .* \(2, 5, 1, 4\).* must be .* \(2, 5, 1, 3\)"),
        ({"bonus_HK": torch.zeros(4)}, r"bonus is .* must be .* \(1, 4\)"),
        ({"backend": "fast"}, "no backend 'fast'"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(*draw(5, 4, 3)[:4], **change)
    with pytest.raises(ValueError, match="computes in float32"):
        gated_linear_attention(*draw(5, dtype=torch.float64)[:4], backend="numba")
