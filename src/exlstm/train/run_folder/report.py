"""loss.png and report.html of a run."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from exlstm.models.lm import LM
from exlstm.runtime.files import write_or_explain
from exlstm.runtime.machine import clock, machine
from exlstm.train.config import TrainConfig, to_json
from exlstm.train.run_folder import RunFolder
from exlstm.train.run_folder.html import html_page, image, table, wide_table
from exlstm.train.run_folder.picture import loss_picture
from exlstm.train.run_folder.summary import RunSummary, baseline_rows
from exlstm.train.start import start_of


def write_report(run: RunFolder, config: TrainConfig, model: LM, summary: RunSummary) -> None:
    """Writes both files from metrics.jsonl and the summary, which may be of an unfinished run."""
    records = list(run.read_metrics())
    title = f"{run.path.name}: {summary.parameters / 1e6:.2f} M parameters, {clock(summary.seconds)} of training"
    picture = loss_picture(records, summary.yardsticks, title)
    write_or_explain(run.path / "loss.png", picture)
    write_or_explain(run.path / "report.html", _page(run, config, model, summary, records, picture))


def _page(
    run: RunFolder,
    config: TrainConfig,
    model: LM,
    summary: RunSummary,
    records: Sequence[dict[str, Any]],
    picture: bytes,
) -> str:
    name = escape(run.path.name)
    data = run.config()["data"]
    text = (
        f"{data['documents']:,} documents, {data['train_bytes']:,} bytes to train on, {data['val_bytes']:,} to validate"
    )
    sources = data.get("sources", [])  # runs of earlier versions have none
    if len(sources) > 1:
        shares = (f"{source['share']:.1%} of the tokens from {source['name']}" for source in sources)
        text += f"; {', '.join(shares)}"
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="quiet">{escape(text)}</p>',
        _tiles(summary, records),
        _comparison(summary),
        "<h2>Loss</h2>",
        image(picture, "Bits per byte against training tokens"),
        _samples(records),
        f"<h2>Model</h2><pre>{escape(model.summary())}</pre>",
        "<h2>Settings</h2>",
        table([*settings(config), *_start(run)]),
        "<h2>Machine</h2>",
        table((key, str(value)) for key, value in machine().items() if value is not None),
    ]
    return html_page(run.path.name, parts)


def settings(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Settings that are not None, by name; "data" is there always."""
    for name, value in to_json(config).items():
        if value is not None:
            yield name, str(value)
        elif name == "data":
            yield name, "the source text of Python's standard library"


def _start(run: RunFolder) -> Iterator[tuple[str, str]]:
    start = start_of(run)
    if start is not None:
        yield from ((f"from_model, {key}", str(value)) for key, value in start.to_json().items() if value is not None)


def _tiles(summary: RunSummary, records: Sequence[dict[str, Any]]) -> str:
    tiles = []
    validations = [record for record in records if "validation_bits_per_byte" in record]
    if summary.final is not None:
        tiles.append((f"{summary.final.bits_per_byte:.3f}", "bits per byte, validation text"))
    elif validations:
        tiles.append((f"{validations[-1]['validation_bits_per_byte']:.3f}", "bits per byte, validation slice"))
    tiles += [
        (f"{summary.parameters / 1e6:.2f} M", "parameters"),
        (f"{summary.tokens / 1e6:.2f} M", f"training tokens in {summary.step:,} steps"),
        (clock(summary.seconds), "training time"),
    ]
    if summary.final is None:
        tiles.append(("stopped early", "continue with --resume"))
    return '<div class="tiles">' + "".join(f"<div><b>{big}</b>{small}</div>" for big, small in tiles) + "</div>"


def _comparison(summary: RunSummary) -> str:
    if summary.final is None:
        return ""
    rows = [("this model", summary.final.bits_per_byte)]
    rows += [] if summary.yardsticks is None else baseline_rows(summary.yardsticks)
    widest = max(value for _, value in rows)
    lines = [
        f'<tr{" class=mine" if name == "this model" else ""}><td>{name}</td><td class="number">{value:.3f}</td>'
        f'<td><span class="bar" style="width:calc({value / widest:.3f} * min(16rem, 40vw))"></span></td></tr>'
        for name, value in sorted(rows, key=lambda row: row[1])
    ]
    covered = f"{summary.coverage:.0%}" if summary.coverage is not None and summary.coverage < 1 else "all"
    note = (
        f"Bits per byte, lower is better. The model (step {summary.final_step:,}) was scored on {covered} of the "
        f"validation text, {summary.final.bytes:,} bytes, with its state carried on: loss {summary.final.loss:.4f} "
        f"nats, perplexity {summary.final.perplexity:.3f} per token. The trigram model learnt from the same text."
    )
    return f'<h2>Comparison</h2>{wide_table("".join(lines))}<p class="quiet">{note}</p>'


def _samples(records: Sequence[dict[str, Any]]) -> str:
    found = [record for record in records if "sample" in record]
    blocks = [
        f'<p class="quiet">after {record["tokens"]:,} tokens</p><pre>{escape(record["sample"])}</pre>'
        for record in reversed(found)
    ]
    return "<h2>Samples</h2>" + "\n".join(blocks) if blocks else ""
