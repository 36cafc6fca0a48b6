"""exlstm for lm-evaluation-harness: the model `exlstm`, and the harness's command line with that model registered.

    from exlstm.harness import main
    main(["--model", "exlstm", "--model_args", "pretrained=runs/my-run", "--tasks", "lambada_openai"])

Needs the extra `eval` (lm-eval).
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any


def main(words: Sequence[str]) -> int:
    """Runs the command line of lm-evaluation-harness with the model `exlstm` registered; returns its exit code.

    If neither the words nor a --config file name a device, it is a GPU if there is one; the default of the harness,
    cuda:0, does not exist on many machines. Raises ValueError if lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.__main__ import HarnessCLI, setup_logging
    except ImportError as error:
        raise _not_installed(error) from error
    import exlstm.harness.model
    from exlstm.runtime.machine import pick_device

    with suppress(ImportError):
        # with transformers installed, the model `hf` of the harness reads exlstm folders too
        import exlstm.hf  # noqa: F401
    before = sys.argv
    # the parser of the harness reads sys.argv only
    sys.argv = ["exlstm lm-eval", *words]
    try:
        setup_logging()
        parser = HarnessCLI()
        asked = parser.parse_args()
        if "device" in asked and asked.device is None and not _device_in(asked.config):
            asked.device = str(pick_device("auto"))
        parser.execute(asked)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    finally:
        sys.argv = before
    return 0


def evaluate(
    pretrained: str, tasks: Sequence[str | Mapping[str, Any]], *, limit: int | None = None, device: str | None = None
) -> dict[str, dict[str, float]]:
    """Results by task and metric of the model in a folder, without their standard errors, and without progress bars.

    tasks: names that the harness knows, or its descriptions of tasks. limit: questions of each, at most.
    Raises ValueError if lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval import simple_evaluate

        from exlstm.harness.model import HarnessModel
    except ImportError as error:
        raise _not_installed(error) from error
    model = HarnessModel(pretrained, device=device)
    model.shows_progress = False
    found = simple_evaluate(model=model, tasks=[*tasks], limit=limit, bootstrap_iters=0, log_samples=False)
    return {
        task: {
            # "acc,none" is the metric acc without a filter
            key.partition(",")[0]: float(value)
            for key, value in results.items()
            if isinstance(value, int | float) and "stderr" not in key
        }
        for task, results in found["results"].items()
    }


def _not_installed(error: ImportError) -> ValueError:
    return ValueError(f"lm-evaluation-harness is not installed ({error}); install it with: pip install 'exlstm[eval]'")


def _device_in(config: str | None) -> str | None:
    """The device in a file of settings, None without one."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    return None if config is None else EvaluatorConfig.load_yaml_config(config).get("device")
