"""`exlstm convert`: writes a model in another layout, dtype, or with fewer bits, and measures the loss of quality."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from exlstm.cli.parse import check_at_least, checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exlstm.data.text import Document
    from exlstm.models.locate import ModelOnDisk
    from exlstm.train.evaluate import TextScore

LayoutName = Literal["exlstm", "huggingface", "xlstm-large", "classic"]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
Target = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Options of `exlstm convert`."""

    source: Source  # folder or file of a model in any layout, or folder of a run
    target: Target  # folder to write
    layout: LayoutName = "exlstm"  # how it is written; huggingface is transformers' own model of this kind
    dtype: Literal["as-saved", "float32", "bfloat16", "float16"] = "as-saved"  # of the weights
    weights: Literal["as-saved", "int8", "int4"] = "as-saved"  # fewer bits; perplexity before and after is printed
    data: str | None = None  # text for that; left out: the source text of Python's standard library
    binary: bool = False  # with --data: take files that do not look like text, too
    tokens: int = 16_384  # how many tokens of it
    minutes: float = 1.0  # longest time for the first of the two measurements; the second takes as many tokens
    tokenizer: str | None = None  # "bytes" or a tokenizer.json; left out: the one beside the model
    checkpoint: str = "best"  # of a run: best, last, or the number of a step
    overwrite: bool = False  # replace a model in OUT; a run, or a folder with other files, is never replaced

    def __post_init__(self) -> None:
        check_at_least(self, tokens=1, minutes=0)


def convert(options: Convert) -> None:
    """Converts the weights shard by shard, copies the tokenizer, and prints sizes and perplexities."""
    import torch

    from exlstm.data.model_tokenizer import tokenizer_of
    from exlstm.data.text import read_source
    from exlstm.models.checkpoints.saving import convert as run_conversion
    from exlstm.models.checkpoints.target import check_target
    from exlstm.models.locate import TOKENIZER, locate

    check_target(Path(options.target), overwrite=options.overwrite, sources=[Path(options.source)])
    source = locate(options.source, checkpoint_of(options.checkpoint))
    dtype = None if options.dtype == "as-saved" else getattr(torch, options.dtype)
    weights = None if options.weights == "as-saved" else options.weights
    tokenizer = options.tokenizer is not None or source.tokenizer_file.is_file()
    if tokenizer:
        tokenizer_of(source, options.tokenizer)  # raises before anything is written
    text = read_source(options.data, binary=options.binary) if tokenizer and weights is not None else None  # as well
    read = run_conversion(
        source.weights, options.target, layout=options.layout, dtype=dtype, weights=weights, overwrite=options.overwrite
    )
    if notes := read.notes():
        print(notes)
    copy_tokenizer(source, options)
    print(f"{describe(source.weights, read.layout.name)} -> {describe(Path(options.target), options.layout)}")
    if weights is None:
        return
    if text is None:
        print(f"perplexity was not measured: there is no {TOKENIZER} beside the model; name one with --tokenizer.")
        return
    if text.left_out:
        print(f"{text.note()} (--binary takes them)")
    before, after = scores_of_both(source, text.documents, options)
    print(
        f"perplexity on {before.tokens:,} tokens: {before.perplexity:.4f} -> {after.perplexity:.4f} "
        f"({after.perplexity / before.perplexity - 1:+.2%}), "
        f"bits per byte {before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f}"
    )


def describe(path: Path, layout: str) -> str:
    """Path, layout and size of a model on disk."""
    from exlstm.models.checkpoints.files import shards_of

    files = shards_of(path) if path.is_dir() else [path]
    return f"{path} ({layout}, {sum(file.stat().st_size for file in files):,} bytes)"


def copy_tokenizer(source: "ModelOnDisk", options: Convert) -> None:
    """Writes the tokenizer beside the model, for transformers in a form that AutoTokenizer reads.

    The tokenizer of an overwritten model is deleted first.
    """
    from exlstm.data.model_tokenizer import tokenizer_of
    from exlstm.models.checkpoints.target import TOKENIZER_FILES

    target = Path(options.target)
    for name in TOKENIZER_FILES:
        (target / name).unlink(missing_ok=True)
    if options.tokenizer is None and not source.tokenizer_file.is_file():
        return
    if options.layout == "huggingface":
        from exlstm.data.transformers_tokenizer import save_tokenizer

        save_tokenizer(tokenizer_of(source, options.tokenizer), target)
    elif options.tokenizer is None:
        shutil.copyfile(source.tokenizer_file, target / source.tokenizer_file.name)
    else:
        import json

        (target / source.tokenizer_file.name).write_text(
            json.dumps(tokenizer_of(source, options.tokenizer).to_json()) + "\n"
        )


def scores_of_both(
    source: "ModelOnDisk", docs: "Sequence[Document]", options: Convert
) -> "tuple[TextScore, TextScore]":
    """Scores of the source and the target on the same tokens, with one model in memory at a time."""
    from exlstm.data.model_tokenizer import tokenizer_of
    from exlstm.models.locate import ModelOnDisk
    from exlstm.train.evaluate import score_beginning

    tokenizer = tokenizer_of(source, options.tokenizer)
    before = score_beginning(source.load(), tokenizer, docs, tokens=options.tokens, minutes=options.minutes)
    target = ModelOnDisk(weights=Path(options.target), tokenizer_file=source.tokenizer_file)
    return before, score_beginning(target.load(), tokenizer, docs, tokens=before.tokens, minutes=float("inf"))
