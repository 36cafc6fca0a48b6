"""`exlstm export`: a language model as a file for ONNX Runtime, browsers or torch, and its difference to the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from exlstm.cli.generate import ModelPath
from exlstm.cli.parse import check_at_least, checkpoint_of

if TYPE_CHECKING:
    from exlstm.exporting.export import Exported
    from exlstm.models.lm import LM


@dataclass(frozen=True, kw_only=True)
class Export:
    """Options of `exlstm export`."""

    model: ModelPath  # folder of a run, or folder or file of a model in any layout
    format: Literal["onnx", "torch"] = "onnx"  # ONNX of standard operators, or a program of torch.export
    part: Literal["step", "chunk", "sequence"] = "step"  # a token, --steps of them, or any number in a loop inside
    steps: int = 16  # tokens of a chunk; a host reads the rest of a text by the step
    context: int | None = None  # tokens that attention without a window keeps
    int8: bool = False  # of ONNX: matrices in int8
    output: str | None = None  # the file; left out: MODEL_step.onnx, MODEL_chunk16.onnx, MODEL_step.pt2, ...
    check: int = 100  # steps to compare a step with the model on; 0 for none
    checkpoint: str = "best"  # of a run: best, last, or the number of a step
    overwrite: bool = False  # replace the file

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, context=1, check=0)


def export(options: Export) -> None:
    """`exlstm export`."""
    from exlstm.exporting.export import export as write
    from exlstm.models.locate import locate

    model = locate(options.model, checkpoint_of(options.checkpoint)).load()
    done = write(
        model,
        options.output or default_name(options),
        format=options.format,
        part=options.part,
        steps=options.steps,
        context=options.context,
        int8=options.int8,
        overwrite=options.overwrite,
    )
    print(description(done))
    if options.check and done.part == "step":
        print(comparison(model, done, options))


def default_name(options: Export) -> str:
    """The name of the model, the part, and the ending of the format."""
    part = f"chunk{options.steps}" if options.part == "chunk" else options.part
    bits = "_int8" if options.int8 else ""
    return f"{Path(options.model).absolute().name}_{part}{bits}" + (".onnx" if options.format == "onnx" else ".pt2")


def description(done: "Exported") -> str:
    """What was written, and the tensors of a row's state."""
    from math import prod

    kind = f"ONNX, opset {done.opset}" if done.format == "onnx" else "torch.export"
    inside = done.ports.state
    size = sum(port.dtype.itemsize * prod(n for n in port.shape if isinstance(n, int)) for port in inside)
    shape = ", ".join(map(str, done.ports.x.shape))
    return (
        f"{done.path}: {done.part} ({kind}), {done.nbytes:,} bytes\n"
        f"{done.ports.x.name} [{shape}] -> {done.ports.y.name}, and a state of {len(inside)} tensors, "
        f"{size:,} bytes a sequence"
    )


def comparison(model: "LM", done: "Exported", options: Export) -> str:
    """How far the file is from the model, and how long a step takes."""
    from exlstm.exporting.measure import compare

    found = compare(model, done, steps=options.check, context=options.context)
    text = (
        f"{found.steps} tokens beside the model: logits differ by at most {found.largest:.1e}, of at most "
        f"{found.scale:.1f}; {1e3 * found.seconds:.2f} ms a token"
    )
    if not options.int8 or found.nats is None:
        return text
    before, after = found.nats
    return f"{text}\nloss on the model's own tokens: {before:.4f} -> {after:.4f} nats ({after / before - 1:+.2%})"
