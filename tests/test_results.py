"""Numbers in documents are those of committed runs, and the runs keep what the documents promise."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "docs" / "results").glob("*/summary.json"))
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "results.md"]


def test_both_recipes_have_results() -> None:
    assert [path.parent.name for path in RESULTS] == ["demo", "stdlib-45m"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    found = json.loads(path.read_text())
    assert found["stopped"] == "budget"
    assert found["validation"]["coverage"] == 1.0
    assert found["seed"] == 0
    assert len(found["commit"]) == 40, "run it from a clean checkout"
    assert {"cpu", "cores", "python", "torch"} <= found["machine"].keys()
    assert {file.name for file in path.parent.iterdir()} >= {"config.json", "metrics.jsonl", "loss.png", "summary.json"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_documents_quote_the_results(path: Path, document: Path) -> None:
    """One row of a table per run: parameters, minutes of training, tokens, bits per byte."""
    found = json.loads(path.read_text())
    rows = [line for line in document.read_text().splitlines() if line.startswith("|") and path.parent.name in line]
    assert len(rows) == 1
    for number in (
        f"{found['parameters'] / 1e6:.2f} M",
        f"{found['seconds'] / 60:.1f} min",
        f"{found['tokens'] / 1e6:.2f} M",
        f"{found['validation']['bits_per_byte']:.3f}",
    ):
        assert number in rows[0]
    for name, value in found["yardsticks_bits_per_byte"].items():
        row = next(line for line in document.read_text().splitlines() if line.startswith("|") and name in line)
        assert f"{value:.3f}" in row


def test_the_recipes_beat_their_baselines() -> None:
    demo, recipe = (json.loads(path.read_text()) for path in RESULTS)
    assert demo["validation"]["bits_per_byte"] < demo["yardsticks_bits_per_byte"]["trigram"]
    assert recipe["validation"]["bits_per_byte"] < recipe["yardsticks_bits_per_byte"]["gzip"]
    assert demo["seconds"] <= 300
    assert recipe["seconds"] <= 45 * 60
