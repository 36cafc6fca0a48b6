"""One step of 16 units of the associative LSTM, forward and backward, written straight in LLVM's vectors.

Complex numbers are two planes. The numbers of 16 units lie in blocks of parts, 16 neighbors each:

    raw    9 x 16: i, f, o before their activations, u, a, b before their bounds
    saved 15 x 16: residuals of a step: i, f, o, then u, a, b and the bounded mean y, then the factors of their bounds

Keys, copies and gradients of them are in planes of a whole row, for they are gathered: their blocks have one part.
"""

from exlstm.runtime.cpu.blocks import Units, simd16
from exlstm.runtime.cpu.simd import SimdValue, sigmoid, sqrt, where
from exlstm.runtime.cpu.tile import PANEL

RAW, SAVED = 9 * PANEL, 15 * PANEL
U, A, B, Y, FACTOR = 3, 5, 7, 9, 11  # parts of what is saved


def bound(re: SimdValue, im: SimdValue) -> tuple[SimdValue, SimdValue, SimdValue]:
    """z / max(1, |z|), and its factor."""
    square = re * re + im * im
    factor = 1.0 / sqrt(where(square < 1.0, 1.0, square))
    return re * factor, im * factor, factor


def bound_backward(
    z: tuple[SimdValue, SimdValue], factor: SimdValue, dz: tuple[SimdValue, SimdValue]
) -> tuple[SimdValue, SimdValue]:
    """The gradient before a bound whose result is z: of what lies outside, the part along z is gone."""
    (re, im), (dre, dim) = z, dz
    along = where(factor < 1.0, re * dre + im * dim, 0.0)
    return factor * (dre - re * along), factor * (dim - im * along)


@simd16
def prepare(raw: Units, saved: Units, a_re: Units, a_im: Units, b_re: Units, b_im: Units) -> None:
    """Gates, u and keys of a step, from what comes before their activations."""
    for part in range(3):
        saved[part] = sigmoid(raw[part])
    keys = (a_re, a_im), (b_re, b_im)
    for n, part in enumerate((U, A, B)):
        re, im, factor = bound(raw[part], raw[part + 1])
        saved[part], saved[part + 1], saved[FACTOR + n] = re, im, factor
        if n:
            keys[n - 1][0][0], keys[n - 1][1][0] = re, im


@simd16
def update_copy(
    saved: Units,
    a_re: Units,
    a_im: Units,
    b_re: Units,
    b_im: Units,
    c_re: Units,
    c_im: Units,
    sum_re: Units,
    sum_im: Units,
) -> None:
    """c of a copy after the step, with keys in its order, and what is read from it added to the sums."""
    i, f = saved[0], saved[1]
    u, v = i * saved[U], i * saved[U + 1]
    re = f * c_re[0] + (a_re[0] * u - a_im[0] * v)
    im = f * c_im[0] + (a_re[0] * v + a_im[0] * u)
    c_re[0], c_im[0] = re, im
    sum_re[0] = sum_re[0] + (b_re[0] * re - b_im[0] * im)
    sum_im[0] = sum_im[0] + (b_re[0] * im + b_im[0] * re)


@simd16
def read(saved: Units, share: Units, sum_re: Units, sum_im: Units, h_re: Units, h_im: Units) -> None:
    """h from the sums over copies. share: one over their number, 16 times."""
    re, im, factor = bound(sum_re[0] * share[0], sum_im[0] * share[0])
    saved[Y], saved[Y + 1], saved[FACTOR + 3] = re, im, factor
    h_re[0], h_im[0] = saved[2] * re, saved[2] * im


@simd16
def read_backward(
    draw: Units,
    saved: Units,
    share: Units,
    dsum_re: Units,
    dsum_im: Units,
    dh_re: Units,
    dh_im: Units,
) -> None:
    """The gradients of o, and of the sums, from that of h. Those of i and f begin at zero."""
    o, y, dh = saved[2], (saved[Y], saved[Y + 1]), (dh_re[0], dh_im[0])
    draw[2] = (y[0] * dh[0] + y[1] * dh[1]) * o * (1.0 - o)
    re, im = bound_backward(y, saved[FACTOR + 3], (o * dh[0], o * dh[1]))
    dsum_re[0], dsum_im[0] = re * share[0], im * share[0]


@simd16
def copy_backward(
    saved: Units,
    draw: Units,
    keys: Units,
    c_re: Units,
    c_im: Units,
    dc_re: Units,
    dc_im: Units,
    dsum_re: Units,
    dsum_im: Units,
) -> None:
    """Gradients through a copy. keys: a and b in its order, four parts, replaced by their gradients.

    c: before the step. dc: the gradient of c after the step, replaced by that before it. draw: those of f and of i u
    are added to its parts f, u.
    """
    i, f = saved[0], saved[1]
    u, v = i * saved[U], i * saved[U + 1]
    a, b, c, dsum = (keys[0], keys[1]), (keys[2], keys[3]), (c_re[0], c_im[0]), (dsum_re[0], dsum_im[0])
    re, im = f * c[0] + (a[0] * u - a[1] * v), f * c[1] + (a[0] * v + a[1] * u)
    keys[2], keys[3] = re * dsum[0] + im * dsum[1], re * dsum[1] - im * dsum[0]
    dre = dc_re[0] + (b[0] * dsum[0] + b[1] * dsum[1])
    dim = dc_im[0] + (b[0] * dsum[1] - b[1] * dsum[0])
    keys[0], keys[1] = u * dre + v * dim, u * dim - v * dre
    draw[1] = draw[1] + (c[0] * dre + c[1] * dim)
    draw[U] = draw[U] + (a[0] * dre + a[1] * dim)
    draw[U + 1] = draw[U + 1] + (a[0] * dim - a[1] * dre)
    dc_re[0], dc_im[0] = f * dre, f * dim


@simd16
def prepare_backward(draw: Units, saved: Units, da_re: Units, da_im: Units, db_re: Units, db_im: Units) -> None:
    """Gradients before the activations, from those of f and i u, which draw holds, and of the keys."""
    i, f, u, du = saved[0], saved[1], (saved[U], saved[U + 1]), (draw[U], draw[U + 1])
    draw[0] = (u[0] * du[0] + u[1] * du[1]) * i * (1.0 - i)
    draw[1] = draw[1] * f * (1.0 - f)
    gradients = (i * du[0], i * du[1]), (da_re[0], da_im[0]), (db_re[0], db_im[0])
    for n, (part, dz) in enumerate(zip((U, A, B), gradients, strict=True)):
        draw[part], draw[part + 1] = bound_backward((saved[part], saved[part + 1]), saved[FACTOR + n], dz)
