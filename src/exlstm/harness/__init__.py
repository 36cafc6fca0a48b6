"""exlstm for lm-evaluation-harness: the model name `exlstm`, and its command line with that name known.

    from exlstm.harness import main
    main(["--model", "exlstm", "--model_args", "pretrained=runs/my-run", "--tasks", "lambada_openai"])

Needs the extra `eval` (lm-eval).
"""

import sys
from collections.abc import Sequence
from contextlib import suppress


def main(words: Sequence[str]) -> int:
    """Runs lm-evaluation-harness's own command line on these words, with the model `exlstm` known; its exit code.

    Without a device, there and in a file that --config names, it is a GPU if there is one; the harness's own default is
    one that many machines lack. Raises ValueError if lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.__main__ import HarnessCLI, setup_logging
    except ImportError as error:
        raise ValueError(
            f"lm-evaluation-harness is not installed ({error}); install it with: pip install 'exlstm[eval]'"
        ) from error
    import exlstm.harness.model
    from exlstm.runtime.machine import pick_device

    with suppress(ImportError):
        # its own model `hf` then reads our folders too, where transformers is installed
        import exlstm.hf  # noqa: F401
    before = sys.argv
    # its parser reads these, whatever it is given
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


def _device_in(config: str | None) -> str | None:
    """The device that a file of settings names."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    return None if config is None else EvaluatorConfig.load_yaml_config(config).get("device")
