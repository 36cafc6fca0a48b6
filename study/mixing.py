"""Memory mixing: which structure must the recurrent weights have?

The sLSTM's R is nothing, a diagonal, 1, 2, 4 or 8 blocks, of low rank, a fixed random sparse graph, or a sparse graph
that is learned with a price on its connections (L0, Louizos et al. 2018), always beside MLPs that make up for the
parameters that R does not have. Parity needs one bit, which a unit could keep for itself; cycle navigation a counter
modulo five; S3 the products of permutations, which do not commute. Answers to all prefixes are asked for in training.

Expected: without R nothing is solved. Which of the other structures suffice is open. (Forget biases fall along the
units, so a block of R has units of neighbouring time scales.)

Paper: Beck et al. 2024, section 2.2 (memory mixing within heads). Its reviewers asked what other structures would do.
"""

from exlstm.study import (
    FORMAL,
    QUICK,
    Claim,
    Lesson,
    Picture,
    ReportTable,
    Training,
    body_parameters,
    figures,
    with_parameters,
    xlstm,
)

TASKS = ("parity", "cycle_navigation", "s3")
SHORT, LONG = 1, 0  # the tests: lengths of training, and 40 to 256


def structures(width):
    """Settings of the sLSTM by name. Low rank and the fixed graph have about as many weights as 4 blocks."""
    found = {"none": {"recurrence": "none"}, "diagonal": {"recurrence": "diagonal"}}
    found |= {f"{blocks} block{'s' * (blocks > 1)}": {"recurrence_blocks": blocks} for blocks in (8, 4, 2, 1)}
    found["low rank"] = {"recurrence": "low_rank", "recurrence_rank": width // 5}
    found["sparse graph"] = {"recurrence": "sparse", "recurrence_degree": width // 4}
    found["learned graph"] = {"recurrence": "learned"}
    return found


def runs(size):
    width = {"quick": 16, "small": 32, "paper": 128}[size]
    how = {
        "quick": QUICK,
        "small": {
            "steps": 800,
            "batch": 16,
            "validations": 4,
            "validation_rows": 64,
            "test_rows": 256,
            "enough": 0.999,
        },
        "paper": {"steps": 20_000, "batch": 256, "test_rows": 2048},
    }[size]
    target = body_parameters(xlstm("0:1", width=width, heads=1, slstm=FORMAL))
    return [
        Training(
            model="xlstm[0:1]",
            architecture=with_parameters(xlstm("0:1", width=width, heads=1, slstm={**FORMAL, **settings}), target),
            lessons=(Lesson(task=task, train=(3, 40), test=((40, 256), (3, 40)), dense=True),),
            lr=rate,
            varied=(("R", name),),
            graph_cost=1e-4 if name == "learned graph" else 0.0,
            **how,
        )
        for task in TASKS
        for name, settings in structures(width).items()
        for rate in ((1e-2,) if size != "paper" else (1e-2, 3e-3, 1e-3))
    ]


def report(results):
    tasks, names = results.values("task"), results.values("R")
    cells = {(task, name): results.cell(task=task, R=name) for task in tasks for name in names}
    for task in tasks:
        cell = cells[task, "none"]
        yield Claim(
            text=f"without memory mixing {task} is not solved at lengths 40 to 256",
            holds=None if cell.open else cell.solved() == 0,
            evidence=f"{cell.text()}; at lengths of training {cell.text(SHORT)}",
        )
    columns = [f"{task}, {where}" for task in tasks for where in ("40 to 256", "3 to 40")]
    yield ReportTable(
        title="Scaled accuracy by structure of R",
        columns=("R", "recurrent weights", "parameters", *columns),
        rows=[
            (
                name,
                nonzeros(cells, tasks, name),
                parameters(cells, tasks, name),
                *(cells[task, name].text(test) for task in tasks for test in (LONG, SHORT)),
            )
            for name in names
        ],
        note="All have the same number of parameters within 5 %, by wider or narrower MLPs (a learned graph counts its "
        "gates). Recurrent weights are those that are not zero by structure, at the end: the median over seeds, of the "
        "learned graph from task to task.",
    )
    yield Picture(
        name="structures",
        title="Every seed, at lengths 40 to 256",
        size=(10, 3.6),
        draw=lambda figure: figures.strips(
            figure,
            {task: {name: cells[task, name].scores(LONG) for name in names} for task in tasks},
            label="scaled accuracy at lengths 40 to 256; dashed: 0.99",
        ),
    )


def nonzeros(cells, tasks, name):
    found = [cells[task, name].median_of("recurrent_nonzeros") for task in tasks]
    known = [f"{value:,.0f}" for value in found if value is not None]
    return " / ".join(dict.fromkeys(known)) or "not run"


def parameters(cells, tasks, name):
    found = [cells[task, name].median_of("parameters") for task in tasks]
    known = [value for value in found if value is not None]
    return f"{max(known):,.0f}" if known else "not run"
