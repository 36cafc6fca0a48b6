"""Gates: why exponential? And what are the normaliser and the stabiliser for?

Every input gate (exp, sigmoid, softplus, relu, relu2) with every forget gate (sigmoid, exp), on the search for the
nearest neighbour with which the paper motivates exponential gates, on parity, and on associative recall. The sLSTM
stands for the first two, the mLSTM for the third. Then the cells without their normaliser; and a map of overflow: up to
which scale of the input gate's pre-activation a cell stays finite in float32, bfloat16 and float16, with and without
the stabiliser.

Expected: the exponential input gate is best at the search, where a stored value has to be revised; nothing is known of
softplus and ReLU. Without a stabiliser float32 overflows at about 88 nats, float16 at 11.

Paper: Beck et al. 2024, sections 2.1 to 2.3, figure 2 and table 8 (right); its reviewers asked for other activations.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch.nn.functional import logsigmoid

from exlstm.study import FORMAL, QUICK, Claim, Lesson, Picture, ReportTable, Training, figures, xlstm

INPUT = ("exp", "sigmoid", "softplus", "relu", "relu2")
FORGET = ("sigmoid", "exp")
SEARCH, PARITY, RECALL = "nearest_neighbours", "parity", "recall_4_of_512"
# of the overflow map
ROWS, WIDTH = 4, 16
SCALES = tuple(2.0**power for power in range(13))  # of the input gate's pre-activation, in nats
EPS = 1e-6


def lessons(size):
    """What is learned, by which cell, and the lengths of it. At the small size parity asks for answers to prefixes."""
    search, context = (64, 64) if size == "paper" else (64, 32)
    return {
        SEARCH: ("0:1", Lesson(task=SEARCH, train=(2, search), test=((2, search),))),
        PARITY: ("0:1", Lesson(task=PARITY, train=(3, 40), test=((40, 256),), dense=size == "small")),
        RECALL: ("1:0", Lesson(task=RECALL, train=(context, context), test=((context, context),))),
    }


def how(size, task):
    if size == "quick":
        return QUICK
    if size == "paper":
        return {"steps": 100_000, "batch": 256, "test_rows": 2048}
    steps, batch = {SEARCH: (1000, 16), PARITY: (600, 16), RECALL: (800, 64)}[task]
    return {
        "steps": steps, "batch": batch, "validations": 4, "validation_rows": 64, "test_rows": 256, "enough": 0.999,
    }  # fmt: skip


def runs(size):
    width, heads = {"quick": (16, 1), "small": (32, 1), "paper": (128, 4)}[size]
    rates = (1e-2,) if size != "paper" else (1e-1, 1e-2, 1e-3, 1e-4)
    settings = [(gate, forget, True) for gate, forget in product(INPUT, FORGET)]
    settings += [(gate, "sigmoid", False) for gate in ("exp", "sigmoid", "softplus")]
    found = [
        Training(
            model=f"xlstm[{ratio}]",
            architecture=architecture(ratio, width, heads, gate, forget, normalised),
            lessons=(lesson,),
            lr=rate,
            varied=(("input", gate), ("forget", forget), ("normaliser", "on" if normalised else "off")),
            **how(size, lesson.task),
        )
        for ratio, lesson in lessons(size).values()
        for gate, forget, normalised in settings
        for rate in rates
    ]
    steps = 32 if size == "quick" else 256
    return found + [
        Overflow(cell=cell, dtype=dtype, stabilised=stabilised, normalised=normalised, steps=steps)
        for cell in ("mlstm", "slstm")
        for dtype in ("float32", "bfloat16", "float16")
        for stabilised, normalised in product((True, False), (True, False))
    ]


def architecture(ratio, width, heads, gate, forget, normalised):
    cell = {"input_gate": gate, "forget_gate": forget, "normalize": normalised}
    return xlstm(ratio, width=width, heads=heads if ratio == "0:1" else 2, slstm={**FORMAL, **cell}, mlstm=cell)


def report(results):
    trained = results.cells(lambda facets: facets["task"] != "overflow")
    tasks = list(dict.fromkeys(cell.facets["task"] for cell in trained))

    def cell(task, gate, forget="sigmoid", normaliser="on"):
        return results.cell(task=task, input=gate, forget=forget, normaliser=normaliser)

    yield from gate_claims(cell, tasks)
    yield ReportTable(
        title="Input gate and forget gate",
        columns=("task", "forget gate", *INPUT),
        rows=[
            (task, forget, *(cell(task, gate, forget).text() for gate in INPUT)) for task in tasks for forget in FORGET
        ],
        note="The search's score is the share of the variance that is explained, and 0.99 of it is seldom reached.",
    )
    yield ReportTable(
        title="Without the normaliser (sigmoid forget gate)",
        columns=("task", "normaliser", "exp", "sigmoid", "softplus"),
        rows=[
            (
                task,
                normaliser,
                *(cell(task, gate, "sigmoid", normaliser).text() for gate in ("exp", "sigmoid", "softplus")),
            )
            for task in tasks
            for normaliser in ("on", "off")
        ],
    )
    yield Picture(
        name="gates",
        title="Every seed, by input gate and forget gate",
        size=(10, 4),
        draw=lambda figure: figures.strips(
            figure,
            {
                task: {
                    f"{gate}, forget {forget}": cell(task, gate, forget).scores() for gate in INPUT for forget in FORGET
                }
                for task in tasks
            },
            least=None,
        ),
    )
    yield results.costs()
    yield from overflow_map(results)


def gate_claims(cell, tasks):
    if SEARCH in tasks:
        cells = {gate: cell(SEARCH, gate) for gate in INPUT}
        best = {gate: found.median() for gate, found in cells.items() if found.rows}
        yield Claim(
            text="of the input gates, exp explains most of the nearest-neighbour search (sigmoid forget gate)",
            holds=None if any(found.open for found in cells.values()) else max(best, key=best.get) == "exp",
            evidence=", ".join(f"{gate} {value:.3f}" for gate, value in best.items()),
        )
    if PARITY in tasks:
        cells = {gate: cell(PARITY, gate) for gate in INPUT}
        yield Claim(
            text="every input gate solves parity: memory mixing does it, not the gate (4 of 5 seeds)",
            holds=None
            if any(found.open for found in cells.values())
            else all(found.solved() >= 0.8 * found.planned for found in cells.values()),
            evidence=", ".join(f"{gate} {found.solved()}/{len(found.rows)}" for gate, found in cells.items()),
        )


def overflow_map(results):
    found = results.cells(lambda facets: facets["task"] == "overflow")
    if not found:
        return

    def at(cell, dtype, stabiliser, normaliser):
        return next(
            c
            for c in found
            if (c.facets["cell"], c.facets["dtype"], c.facets["stabiliser"], c.facets["normaliser"])
            == (cell, dtype, stabiliser, normaliser)
        )

    dtypes = ("float32", "bfloat16", "float16")
    stable = [at(cell, dtype, "on", "on") for cell in ("mlstm", "slstm") for dtype in dtypes]
    yield Claim(
        text="with stabiliser and normaliser no scale up to 4096 overflows, in any precision",
        holds=None
        if any(c.open for c in stable)
        else all(test["finite_to_the_end"] for c in stable for test in c.tests()),
        evidence="but in 16 bits the stabiliser itself loses digits: see the errors",
    )
    yield ReportTable(
        title="The largest scale of the input gate before the first number that is not finite",
        columns=("cell", "stabiliser", "normaliser", *dtypes),
        rows=[
            (cell, stabiliser, normaliser, *(limit(at(cell, dtype, stabiliser, normaliser)) for dtype in dtypes))
            for cell in ("mlstm", "slstm")
            for stabiliser in ("on", "off")
            for normaliser in ("on", "off")
        ],
        note="Pre-activations of the input gate are normal with this standard deviation, in nats; the smallest of the "
        "seeds. Every operation has the precision of the column.",
    )
    yield Picture(
        name="overflow",
        title="Error against float64 by the scale of the input gate; a line ends where numbers are not finite",
        size=(11, 3.6),
        draw=lambda figure: draw_errors(figure, at, dtypes),
    )


def limit(cell):
    if not cell.rows:
        return cell.status()
    if all(test["finite_to_the_end"] for test in cell.tests()):
        return "none to 4096"
    return f"{min(cell.scores()):.0f}"


def draw_errors(figure, at, dtypes):
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("mlstm", "slstm"), strict=True):
        series = {}
        for dtype in dtypes:
            for stabiliser in ("on", "off"):
                errors = {}
                for test in at(name, dtype, stabiliser, "on").tests():
                    for scale, error in test["errors"]:
                        if error is not None and math.isfinite(error):
                            errors.setdefault(scale, []).append(max(error, 1e-9))
                series[f"{dtype}, stabiliser {stabiliser}"] = list(errors.items())
        labels = {"x_label": "scale of the input gate", "y_label": "largest error, of the largest h"}
        figures.lines(axes, series, **labels, log_x=True, log_y=True)
        axes.set_title(name, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """The largest scale of the input gate at which an mLSTM or an sLSTM of random inputs stays finite, by bisection.

    cell: "mlstm" or "slstm". dtype: of every operation. stabilised: with the running maximum m. normalised: with n.
    steps: of the sequence. The scale multiplies a standard normal pre-activation of the input gate.
    """

    cell: str
    dtype: str
    stabilised: bool
    normalised: bool
    steps: int
    seed: int = 0

    def facets(self):
        """Names and values by which tables find it."""
        return {
            "task": "overflow",
            "cell": self.cell,
            "dtype": self.dtype,
            "stabiliser": "on" if self.stabilised else "off",
            "normaliser": "on" if self.normalised else "off",
            "steps": str(self.steps),
        }

    def execute(self, report):
        """The scales that were tried, the error against float64 at each, and the largest that is finite."""
        errors = []
        largest = 0.0
        for scale in SCALES:
            error = self.error(scale)
            errors.append([scale, error])
            if error is None:
                break
            largest = scale
            report(len(errors) / len(SCALES), f"scale {scale:g}")
        low, high = largest, largest * 2
        while largest < SCALES[-1] and high - low > 0.02 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.error(middle) is None else (middle, high)
        score = {"task": "overflow", "score": low, "finite_to_the_end": largest == SCALES[-1], "errors": errors}
        return {"metrics": {"tests": [score]}, "seconds": 0.0}

    def error(self, scale):
        """Largest error of h, in units of the largest h; None where a number is not finite."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        inputs = [draw(self.steps, ROWS, WIDTH) for _ in range(3)]
        i_TB, f_TB = scale * draw(self.steps, ROWS), draw(self.steps, ROWS) + 3
        exact = torch.stack(list(steps_of(self, inputs, i_TB, f_TB, torch.float64, stabilised=True)))
        dtype = getattr(torch, self.dtype)
        found = torch.stack(list(steps_of(self, inputs, i_TB, f_TB, dtype, stabilised=self.stabilised))).double()
        if not bool(found.isfinite().all()):
            return None
        return float((found - exact).abs().max() / exact.abs().max())


def steps_of(what, inputs, i_TB, f_TB, dtype, *, stabilised):
    """h of every step, computed in `dtype`. Without a stabiliser m is 0, and gates are exponentials themselves.

    The definitions in `exlstm.ops` compute in float32 or wider whatever their input. Here every operation and every
    number that is stored has `dtype`, as in a kernel without wider registers.

    B batch  T time  K key width  V value width
    """
    a_TBK, b_TBK, v_TBV = (x.to(dtype) for x in inputs)
    log_i_TB, log_f_TB = i_TB.to(dtype), logsigmoid(f_TB.to(dtype))
    B, K = a_TBK.shape[1:]
    matrix = what.cell == "mlstm"
    c = torch.zeros(B, K, K if matrix else 1, dtype=dtype)
    n = torch.zeros(B, K, dtype=dtype)
    m_B = torch.full((B,), -math.inf if stabilised else 0.0, dtype=dtype)
    for t in range(len(i_TB)):
        new_B = torch.maximum(log_f_TB[t] + m_B, log_i_TB[t]) if stabilised else m_B
        decay_B1 = torch.exp(log_f_TB[t] + m_B - new_B if stabilised else log_f_TB[t])[:, None]
        write_B1 = torch.exp(log_i_TB[t] - new_B)[:, None]
        m_B = new_B
        if matrix:
            q_BK, k_BK = a_TBK[t] * K**-0.5, b_TBK[t]
            c = decay_B1[..., None] * c + (write_B1 * k_BK)[..., None] * v_TBV[t][:, None]
            n = decay_B1 * n + write_B1 * k_BK
            h = (q_BK[:, None] @ c)[:, 0]
            floor_B1 = torch.exp(-m_B)[:, None]
            norm_B1 = torch.maximum((q_BK * n).sum(1, keepdim=True).abs(), floor_B1) + EPS
            yield h / norm_B1 if what.normalised else h / floor_B1
        else:
            c = decay_B1[..., None] * c + (write_B1 * torch.tanh(v_TBV[t]))[..., None]
            n = decay_B1 * n + write_B1
            h = torch.sigmoid(a_TBK[t]) * c[..., 0]
            yield h / n if what.normalised else h * torch.exp(m_B)[:, None]
