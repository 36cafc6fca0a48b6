"""Training runs that are known to work, by name: `exlstm train --recipe NAME`, where other flags change the recipe.

Each is a plain TrainConfig on the source text of Python's standard library, so that nothing is downloaded.
"""

from exlstm.train.config import TrainConfig

RECIPES: dict[str, TrainConfig] = {
    # `make demo`: five minutes in all on two cores, set-up, final evaluation and yardsticks included
    "demo": TrainConfig(
        run="runs/demo",
        preset="laptop-small",
        blocks="ms",
        tokenizer="bpe:2048",
        minutes=3.25,
        batch=4,
        length=256,
        lr=6e-3,
        schedule="wsd",
        cooldown=0.98,
        final_lr=0.0,
        final_minutes=0.75,
        validations=6,
        samples=3,
    ),
    # the recipe of the README: at most 45 minutes in all on two cores
    "stdlib-45m": TrainConfig(
        preset="laptop-medium",
        blocks="mms",
        tokenizer="bpe:4096",
        minutes=40.0,
        batch=4,
        length=256,
        lr=4e-3,
        schedule="wsd",
        cooldown=0.98,
        final_lr=0.0,
        final_minutes=3.0,
        validations=20,
        samples=5,
    ),
}


def recipe(name: str) -> TrainConfig:
    """The recipe of that name. Raises ValueError, listing the names, if there is none."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; use one of {', '.join(RECIPES)}.")
    return RECIPES[name]
