"""Every mixer: exported with the model's numbers, or refused, as the table of docs/export.md says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exporting_cases import WIDTH, by_steps, inputs, own_numbers, shaken

import exlstm
from exlstm.exporting.host import open_exported, read
from exlstm.mixers import MIXERS
from exlstm.models.block import BlockConfig
from exlstm.models.pattern import configured

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
PARTS = ("step", "chunk", "sequence")
# sizes that keep graphs small: a filter, a chunk and a table longer than what is read are nothing but time
FIELDS = {
    "hyena": {"filter_len": 12, "filter_width": 8},
    "mega": {"chunk": 6, "states": 4, "key_width": 8},
    "linformer": {"length": 64},
}


def table():
    """The rows of the page: mixer -> what stands below step, chunk and sequence."""
    section = PAGE.read_text().partition("<!-- parts of all mixers -->")[2].partition("\n## ")[0]
    lines = section.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {name.strip("`"): dict(zip(PARTS, cells, strict=False)) for name, *cells in rows}


def model(name):
    torch.manual_seed(1)
    block = BlockConfig(mixer=configured(name, {"heads": 2} | FIELDS.get(name, {})))
    return shaken(exlstm.LM(exlstm.LMConfig(vocab_size=11, width=WIDTH, blocks=(block,))))


def test_the_table_has_every_mixer():
    assert list(table()) == list(MIXERS)
    assert {cell for row in table().values() for cell in row.values()} <= {"yes", "with `context`"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer(name, tmp_path):
    """All parts that the table has, in ONNX: logits within 1e-5 of the model's, at batches and lengths of their own."""
    own, row, hosts = model(name), table()[name], {}
    options = {"context": 32} if row["step"] == "with `context`" else {}
    for part in PARTS:
        path = tmp_path / f"{part}.onnx"
        exlstm.export(own, path, part=part, steps=4, **options)
        hosts[part] = open_exported(path)
    for batch, steps in ((1, 9), (5, 22)):
        x = inputs(own, batch, steps)
        expected = own_numbers(own, x)[0].numpy()
        found = {
            "step": by_steps(hosts["step"], x)[0],
            "chunk": read(hosts["chunk"], hosts["step"], x.numpy())[0],
            "sequence": hosts["sequence"](x.numpy())[0],
        }
        for part, logits in found.items():
            assert np.abs(logits - expected).max() <= 1e-5, part


@pytest.mark.slow
def test_caches_without_bound_are_refused(tmp_path):
    block = BlockConfig(mixer=configured("mega", {"chunk": None, "distances": 8}))
    own = exlstm.LM(exlstm.LMConfig(vocab_size=11, width=WIDTH, blocks=(block,)))
    with pytest.raises(ValueError, match=r"the state of block 0, a Mega, grows .* use a mixer with a state"):
        exlstm.export(own, tmp_path / "step.onnx")
