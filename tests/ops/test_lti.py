"""State spaces: the system that parameters make, its kernel, steps, and resets anywhere."""

import comparison
import pytest
import torch
from recurrences import RECURRENCES

from exlstm.ops.lti import LTIParameters, LTIState, lti
from exlstm.ops.lti.columns import CHUNK
from exlstm.ops.lti.reference import discretized
from exlstm.runtime.backend import recorded

NAMES = ["lti", "lti shared poles", "lti one system"]
E, Z = 3, 5


def parameters(poles=E, rows=E, dt=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    steps = 0.5 * draw(poles) - 2 if dt else None
    return LTIParameters(draw(poles, Z), 3 * draw(poles, Z), steps, draw(rows, Z), draw(rows, Z), draw(rows))


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize(("poles", "rows", "dt"), [(E, E, True), (1, E, False), (1, 1, True), (E, 1, True)])
def test_the_system(method, poles, rows, dt):
    """Against complex numbers; and where dt A is tiny, in float32 as good as there."""
    p = parameters(poles, rows, dt)
    found = discretized(p, method)
    step = 1.0 if p.log_dt_P is None else p.log_dt_P.exp()[:, None]
    A = torch.complex(-p.log_re_PZ.exp(), p.im_PZ)
    x, c = step * A, torch.complex(p.c_re_RZ, p.c_im_RZ)
    if method == "zoh":
        a, b = x.exp(), (x.exp() - 1) / A
    else:
        a, b = (1 + x / 2) / (1 - x / 2), step / (1 - x / 2)
    torch.testing.assert_close(torch.complex(found.a_re_PZ, found.a_im_PZ), a)
    torch.testing.assert_close(torch.complex(found.c_re_QZ, found.c_im_QZ), c * b)


def test_tiny_steps_keep_their_digits():
    tiny = LTIParameters(
        *(torch.full((1, 4), x) for x in (-8.0, 1e-3)), torch.tensor([-7.0]), *torch.ones(2, 1, 4), torch.ones(1)
    )
    exact = discretized(LTIParameters(*(x.double() for x in tiny)), "zoh")
    with torch.no_grad():
        found, again = discretized(tiny, "zoh"), lti_kernel_system(tiny, "zoh")
    for system in (found, again):
        for got, want in zip(system, exact, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-12)


def lti_kernel_system(p, method):
    from exlstm.ops.lti.numba.system import discretized_numba

    return discretized_numba(p, method)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
@pytest.mark.parametrize(("poles", "rows", "dt"), [(E, E, True), (1, E, False), (1, 1, True), (E, 1, True)])
def test_the_kernel_makes_the_same_system(method, poles, rows, dt):
    p = parameters(poles, rows, dt, torch.float32)
    wide = LTIParameters(*(x if x is None else x.double() for x in p))
    for got, want in zip(lti_kernel_system(p, method), discretized(wide, method), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [1, 2, 9])
def test_the_kernel_of_steps(name, T):
    """Resets, lengths, and inputs that are not contiguous."""
    case = RECURRENCES[name]
    x = case.make(3, T, case.real)
    x[0] = torch.stack([x[0], x[0]], -1)[..., 0]
    reset_BT = torch.zeros(3, T, dtype=torch.bool)
    reset_BT[0, T // 2] = True
    for rows in ({}, {"reset_BT": reset_BT, "lengths_B": torch.tensor([T, 0, max(1, T - 3)])}):
        with torch.no_grad():
            got, state = case.run(*x, backend="numba", **rows)
        want, after = case.run(*(t.double() for t in x), **rows)
        for found, exact in zip((got, *state), (want, *after), strict=True):
            torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["chunkwise", "numba"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 17])
def test_resets_anywhere(name, T, backend):
    """At the first and the last step of a chunk, several in one chunk, in chunks one after another; rows that end."""
    case = RECURRENCES[name]
    x = [t.double() for t in case.make(3, T, case.small)]
    reset_BT = torch.zeros(3, T, dtype=torch.bool)
    reset_BT[0, [0, T // 2, T - 1]] = True
    reset_BT[1, ::7] = True
    for rows in (
        {},
        {"reset_BT": reset_BT},
        {"lengths_B": torch.tensor([T, T - 1, T // 3])},
        {"reset_BT": reset_BT, "lengths_B": torch.tensor([T - CHUNK // 2, T, 0])},
    ):
        want = comparison.everything(x, lambda *t, rows=rows: case.run(*t, **rows), case.names)
        given = [t.float() for t in x] if backend == "numba" else x
        got = comparison.everything(given, lambda *t, rows=rows: case.run(*t, backend=backend, **rows), case.names)
        comparison.assert_same(got, want, tolerance=1e-4 if backend == "numba" else 1e-11)


def test_what_runs():
    """The kernels for float32; else chunks, and the definition for a single step."""
    p, u = parameters(dtype=torch.float32), torch.randn(2, 40, E)

    def chosen(u, **rows):
        with recorded() as choices:
            lti(u, p, **rows)
        return choices[-1].backend

    assert chosen(u[:, :1]) == chosen(u) == chosen(u.bfloat16()) == chosen(u.requires_grad_()) == "numba"
    assert chosen(u.double()) == "chunkwise"
    assert chosen(u.double()[:, :1]) == "recurrent"


@pytest.mark.parametrize("backend", ["chunkwise", "numba"])
def test_saved_for_the_backward_grows_with_time_alone(backend):
    """Inputs and a state per chunk; no number of every step and state."""
    p = LTIParameters(*(x.requires_grad_() for x in parameters(dtype=torch.float32)))
    sizes = {}
    for T in (1024, 2048):
        total = 0

        def pack(x):
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            lti(torch.randn(1, T, E, requires_grad=True), p, backend=backend)
        sizes[T] = total
    step = (sizes[2048] - sizes[1024]) / 1024 / 4
    assert step <= 3 * E + 2 * E * Z * 2 / CHUNK


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "euler"}, "method is 'euler'; it must be 'zoh' or 'bilinear'"),
        ({"log_re_PZ": torch.zeros(2, Z)}, r"log_re has shape \(2, 5\)"),
        ({"im_PZ": torch.zeros(E, Z + 1)}, "im is torch.float32 of shape"),
        ({"log_dt_P": torch.zeros(1)}, "log_dt is torch.float32 of shape"),
        ({"skip_R": torch.zeros(E, 1)}, "skip is torch.float32 of shape"),
    ],
)
def test_what_does_not_fit(change, words):
    given = dict(change)
    method = given.pop("method", "zoh")
    with pytest.raises(ValueError, match=words):
        lti(torch.zeros(1, 2, E), parameters(dtype=torch.float32)._replace(**given), method=method)


def test_a_state_of_another_size():
    state = LTIState(torch.zeros(1, E, Z), torch.zeros(1, E, Z + 1))
    with pytest.raises(ValueError, match="im_BEZ of the state is"):
        lti(torch.zeros(1, 2, E), parameters(dtype=torch.float32), state)
