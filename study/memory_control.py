"""Which memories does an agent learn to use, taught by reward alone?

One actor-critic, one PPO, and one memory behind the observations, all memories with as many parameters; tasks that
cannot be solved without one. memory_len asks at the end of an episode for a bit of its start, repeat_previous for the
suit of the card so many before the newest, t_maze for the side that a sign has shown, and hidden_cart_pole balances a
pole whose speed is not seen. Rollouts have 64 steps, or 128 where an episode may be longer than 64, and gradients end
with them. lstm is `exlstm.LSTM`, which computes what `torch.nn.LSTM` does; attention sees 128 steps.
repeat_previous is taught a second time by the right answers: what fails there is the memory, and not the reward.

Expected: every memory keeps a bit for 3 to 30 steps, sLSTM as far as the LSTM does; matrix memories and attention are
ahead at the cards, of which they must keep several; GRU is near the LSTM, as in POPGym.

Paper: none for xLSTM. Rules: Osband et al. 2020 (bsuite), Morad et al. 2023 (POPGym), Bakker 2002, Barto et al. 1983.
"""

from statistics import median

from exlstm.data.control import CONTROL_TASKS
from exlstm.study import Claim, Picture, ReportTable, figures
from exlstm.study.control import ControlRun, ControlTiming, MemorySize, PPOConfig, Recitation, memory_size
from exlstm.study.control.runs import QUICK_CONTROL, QUICK_PPO

SEEDS = 5
MEMORIES = ("slstm", "mlstm", "lstm", "torch.gru", "attention")
CHAINS = tuple(f"memory_len_{length}" for length in (3, 10, 30, 100))
CARDS = tuple(f"repeat_previous_{lag}" for lag in (4, 32, 64))
REWARDED = (*CHAINS, CARDS[0], "t_maze_10", "hidden_cart_pole")
LONGER = PPOConfig(rows=32, steps=128)  # for episodes of a hundred steps
TIMED = "memory_len_10"


def runs(size):
    if size == "quick":
        sizes = dict.fromkeys(("slstm", "none"), MemorySize(width=8))
        small = {"embedding": 8, "lr": 3e-3}
        found = [
            ControlRun(model=name, task=CHAINS[0], size=at, **small, **QUICK_CONTROL) for name, at in sizes.items()
        ]
        taught = Recitation(
            model="slstm", task=CARDS[0], size=sizes["slstm"], steps=2, rows=2, length=16, episodes=4, **small
        )
        timed = ControlTiming(model="slstm", task=TIMED, size=sizes["slstm"], embedding=8, ppo=QUICK_PPO, repeats=1)
        return [*found, taught, timed]
    paper = size == "paper"
    rates, target = ((3e-4, 1e-3, 3e-3) if paper else (1e-3, 3e-3)), 33_000
    frames, steps = (15_000_000, 5000) if paper else (200_000, 300)
    sizes = {name: memory_size(name, 64, target) for name in (*MEMORIES, "none", "torch.lstm")}
    rewarded = [
        ControlRun(model=name, task=task, size=sizes[name], lr=rate, frames=frames, ppo=ppo_of(task))
        for task in ((*REWARDED, *CARDS[1:]) if paper else REWARDED)
        for name in (*MEMORIES, "none")
        for rate in (rates if name != "none" else rates[-1:])
    ]
    taught = [
        Recitation(model=name, task=task, size=sizes[name], lr=rate, steps=steps)
        for task in CARDS
        for name in MEMORIES
        for rate in rates
    ]
    timed = [ControlTiming(model=name, task=TIMED, size=at) for name, at in sizes.items()]
    return [*rewarded, *taught, *timed]


def ppo_of(task):
    return LONGER if CONTROL_TASKS[task].longest > 64 else PPOConfig()


def report(results):
    cells = {
        taught: {
            task: {cell.facets["model"]: cell for cell in found}
            for task in results.values("task")
            if (found := results.cells(lambda facets, t=task, w=taught: (facets["task"], facets["taught"]) == (t, w)))
        }
        for taught in ("reward", "answers", "time")
    }
    yield from claims(cells)
    for taught, title in (("reward", "Mean return, taught by reward"), ("answers", "Mean return, taught by answers")):
        yield table(title, cells[taught])
    timed = [cell for by_model in cells["time"].values() for cell in by_model.values()]
    yield ReportTable(
        title="Frames per second, one core, measured alone",
        columns=("model", "parameters", "acting", "learning", "both"),
        rows=[(cell.facets["model"], *speeds(cell)) for cell in timed],
        note=f"{TIMED}, 64 rows of 64 steps, four epochs. torch.lstm and torch.gru are called once for every part of a "
        "row in which no episode begins in any row; others read a rollout in one call.",
    )
    panels = cells["reward"]
    yield Picture(
        name="curves",
        title="Mean return of episodes in training, median and range of seeds",
        size=(11, 2.6 * max(1, -(-len(panels) // 3))),
        draw=lambda figure: curves(figure, panels),
    )


def claims(cells):
    chains = {task: cells["reward"][task] for task in CHAINS if task in cells["reward"]}
    for name in ("slstm", "mlstm"):
        pairs = [(task, by_model[name], by_model["lstm"]) for task, by_model in chains.items() if "lstm" in by_model]
        yield Claim(
            text=f"{name} solves memory_len wherever the LSTM does (bsuite's bar, median of seeds)",
            holds=decided(
                [cell for _, *both in pairs for cell in both],
                lambda pairs=pairs: all(solved(one) or not solved(other) for _, one, other in pairs),
            ),
            evidence="; ".join(f"{task} {text(one)}, LSTM {text(other)}" for task, one, other in pairs),
        )
    rewarded = cells["reward"].get(CARDS[0], {})
    for taught, task in (("reward", CARDS[0]), *(("answers", task) for task in CARDS)):
        by_model = cells[taught].get(task, {})
        three = [by_model[name] for name in ("slstm", "lstm", "torch.gru") if name in by_model]
        if len(three) == 3:
            yield Claim(
                text=f"slstm is not behind the LSTM and the GRU at {task}, taught by {taught} (median return)",
                holds=decided(three, lambda three=three: three[0].median() >= max(c.median() for c in three[1:])),
                evidence=", ".join(f"{cell.facets['model']} {text(cell)}" for cell in three),
            )
    known = [by_model["none"] for by_model in (*chains.values(), rewarded) if "none" in by_model]
    yield Claim(
        text="without memory no bit and no card is known",
        holds=decided(known, lambda: not any(map(solved, known))),
        evidence="; ".join(f"{cell.facets['task']} {text(cell)}" for cell in known),
    )


def decided(cells, holds):
    """The truth of a claim, None while runs are missing or have failed."""
    return None if not cells or any(cell.open for cell in cells) else holds()


def bar(cell):
    """The return at which a task is solved."""
    return CONTROL_TASKS[cell.facets["task"]].solved


def solved(cell):
    return cell.median() >= bar(cell)


def text(cell):
    """Median return, its range over seeds, and how many seeds solved the task."""
    if not cell.rows:
        return cell.status()
    return f"{cell.spread('score', form='.2f')}, {cell.solved(bar(cell))} solved"


def table(title, by_task):
    names = list(dict.fromkeys(name for by_model in by_task.values() for name in by_model))
    return ReportTable(
        title=title,
        columns=("task", "solved from", *names),
        rows=[
            (
                task,
                f"{CONTROL_TASKS[task].solved:g}",
                *(text(by_model[name]) if name in by_model else "" for name in names),
            )
            for task, by_model in by_task.items()
        ],
        note="The mean return of 256 test episodes with the likeliest actions: median over seeds, range, seeds that "
        "reach the bar. All memories have about 33,000 parameters.",
    )


def speeds(cell):
    """Parameters, and frames per second of acting, learning and both."""
    if not cell.rows:
        return ("",) * 3 + (cell.status(),)
    metrics = [row["metrics"] for row in cell.rows]
    both = [entry["tests"][0]["score"] for entry in metrics]
    numbers = ([entry["acting"] for entry in metrics], [entry["learning"] for entry in metrics], both)
    return (f"{cell.median_of('parameters'):,.0f}", *(f"{median(found):,.0f}" for found in numbers))


def points(cell):
    """Frames and the returns of all seeds there."""
    found = {}
    for row in cell.rows:
        for point in row["curve"]:
            if "return" in point:
                found.setdefault(point["frames"], []).append(point["return"])
    return sorted(found.items())


def curves(figure, panels):
    if not panels:
        return
    columns = min(3, len(panels))
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (task, by_model) in zip(grid.flat, panels.items(), strict=False):
        series = {name: points(cell) for name, cell in by_model.items()}
        figures.lines(axes, series, x_label="frames", y_label="return")
        axes.axhline(CONTROL_TASKS[task].solved, color="#6b7280", linewidth=0.8, linestyle=(0, (4, 4)))
        axes.set_title(task.replace("_", " "), fontsize=9, loc="left")
    figures.legend(grid.flat[0])
