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

    Raises ValueError if lm-evaluation-harness is not installed.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ValueError(
            f"lm-evaluation-harness is not installed ({error}); install it with: pip install 'exlstm[eval]'"
        ) from error
    import exlstm.harness.model

    with suppress(ImportError):
        # its own model `hf` then reads our folders too, where transformers is installed
        import exlstm.hf  # noqa: F401
    before = sys.argv
    # its parser reads these, whatever it is given
    sys.argv = ["exlstm lm-eval", *words]
    try:
        cli_evaluate()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    finally:
        sys.argv = before
    return 0
