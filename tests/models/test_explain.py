"""`exlstm.explain`: which backends run, found by running all three passes, and nothing left behind."""

from dataclasses import replace

import pytest
import torch

from exlstm.models import explain as page
from exlstm.models.explain import explain, explain_config
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern


def build(pattern):
    return LM(lm_from_pattern(pattern, vocab_size=32, width=128))


def rows(table):
    """[(pass, op, calls, backend, why), ...] of the table, the pass filled in."""
    title, headings, *lines = table.splitlines()
    starts = [headings.index(word) for word in ("pass", "op", "calls", "backend", "why")]
    found = []
    for line in lines:
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        found.append((cells[0] or found[-1][0], *cells[1:]))
    return title, found


def test_every_pass_has_its_own_backends():
    fastest = "the fastest that there is for this device and dtype"
    title, found = rows(explain(build("msmM")))
    assert title == "batch 1, 128 tokens, weights torch.float32 on cpu"
    # which linears run where is measured on each machine
    assert [row for row in found if row[1] != "linear"] == [
        (where, op, calls, "numba", fastest)
        for where in ("training, T = 128", "prefill, T = 128", "decoding, T = 1")
        for op, calls in (("conv", "3"), ("block_linear", "6"), ("mlstm", "3"), ("gated_norm", "3"), ("slstm", "1"))
    ]


def test_the_reasons_differ_between_passes():
    model = build("ms").double()
    model.blocks[1].mixer.backend = "recurrent"
    title, found = rows(explain(model, batch=2, length=7))
    assert title == "batch 2, 7 tokens, weights torch.float64 on cpu"
    narrow = "not numba: it computes in float32 and there is float64 in the input"
    assert [row for row in found if row[1] == "mlstm"] == [
        ("training, T = 7", "mlstm", "1", "chunkwise", narrow),
        ("prefill, T = 7", "mlstm", "1", "chunkwise", narrow),
        ("decoding, T = 1", "mlstm", "1", "recurrent", f"{narrow}; not chunkwise: a single step needs no chunk"),
    ]
    assert {row[3:] for row in found if row[1] == "slstm"} == {("recurrent", "asked for by name")}


def test_gradients_show():
    """Linear layers take another path where gradients are needed."""
    lines = explain(build("m"), length=1).splitlines()
    why = "not numba: it has no gradients, and they are needed"
    assert any("training" in line and "linear" in line and why in line for line in lines)
    assert not any("gradients" in line for line in lines[lines.index(next(x for x in lines if "prefill" in x)) :])


@pytest.mark.parametrize("training", [True, False])
def test_no_trace_is_left(training):
    model = build("m")
    model.train(training)
    for block in model.blocks:
        block.dropout = 0.5
    before = torch.get_rng_state()
    explain(model)
    assert model.training == training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("pattern", ["m", "msmM", "mmsmaMlmas", "MMMM"])
@pytest.mark.parametrize("length", [1, 70])
def test_a_config_is_explained_as_its_model_is(pattern, length):
    """Though equal blocks run only once, and without their weights."""
    config = lm_from_pattern(pattern, vocab_size=32, width=128)
    found = explain_config(config, 2, length, torch.device("cpu"))
    assert found == explain(LM(config), 2, length)


@pytest.mark.parametrize("tie", [True, False])
def test_a_config_is_explained_without_the_memory_of_its_model(monkeypatch, tie):
    """One piece of memory, as large as the largest weight."""
    config = replace(lm_from_pattern("MMMsMM", vocab_size=32, width=128), tie_embeddings=tie)
    seen = []
    original = page._explain
    monkeypatch.setattr(
        page, "_explain", lambda model, *rest, **named: seen.append(model) or original(model, *rest, **named)
    )
    explain_config(config, 1, 3, torch.device("cpu"))
    (model,) = seen
    assert len(model.blocks) == 2
    tensors = [*model.parameters(), *model.buffers()]
    assert {x.device.type for x in tensors} == {"cpu"}
    pieces = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    assert list(pieces.values()) == [max(x.nbytes for x in LM(config).parameters())]


def test_a_notebook_shows_it_as_it_is():
    assert repr(explain(build("s"))) == str(explain(build("s")))


def test_of_something_else():
    with pytest.raises(TypeError, match=r"^explain takes an LM, not a Linear; build one with exlstm.LM\(config\)\.$"):
        explain(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["batch", "length"])
def test_of_nothing(name):
    with pytest.raises(ValueError, match=rf"^{name} is 0; there is something to explain from 1 on\.$"):
        explain(build("m"), **{name: 0})
