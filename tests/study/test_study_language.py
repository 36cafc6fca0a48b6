"""The language models that studies share: all of them, at equal parameters, as published."""

import pytest

from exlstm.models.rivals import OF_TABLE_1
from exlstm.study import Training, body_parameters, rival_names
from exlstm.study.language import LONG, LONGEST, RATES, SHAPE, TABLE_1, language_models, lesson, timings, trainings

SMALL = language_models("small")


def test_every_rival_of_the_table_and_every_mixer_takes_part():
    assert set(TABLE_1) <= set(SMALL)
    assert len(TABLE_1) == len(OF_TABLE_1) + 2  # with two xLSTMs
    assert set(rival_names()) | {"xlstm[1:0]", "xlstm[7:1]", "xlstm[1:1]", "xlstm[0:1]", "xlstm-7b"} <= set(SMALL)


def test_parameters_are_equal_without_embeddings():
    table = SHAPE["small"]["length"] * SHAPE["small"]["width"]  # of gpt3's positions
    found = {name: body_parameters(config) - table * (name == "gpt3") for name, config in SMALL.items()}
    assert max(found.values()) < 1.01 * min(found.values()), found


def test_xlstm_has_the_blocks_of_its_name():
    blocks = {name: [type(block.mixer).__name__ for block in SMALL[name].blocks] for name in SMALL}
    m, s = "MLSTMConfig", "SLSTMConfig"
    assert blocks["xlstm[1:0]"] == [m] * 8
    assert blocks["xlstm[7:1]"] == [*[m] * 7, s]
    assert blocks["xlstm[1:1]"] == [m, s] * 4
    assert len(blocks["llama"]) == 4
    norms = {name: SMALL[name].norm for name in ("llama", "gpt3", "xlstm[1:0]", "xlstm-7b")}
    assert norms == {"llama": "rms", "gpt3": "layer", "xlstm[1:0]": "layer", "xlstm-7b": "rms"}
    deep = language_models("small", ["xlstm[7:1]"], depth=8)["xlstm[7:1]"]
    assert [type(block.mixer).__name__ for block in deep.blocks] == [*[m] * 7, s] * 2


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("gpt3", [256]), ("llama", [256, LONG]), ("mamba", [256, LONG, LONGEST]), ("xlstm[7:1]", [256, LONG, LONGEST])],
)
def test_a_model_is_tested_as_far_as_it_can_read(name, lengths):
    assert [high for _, high in lesson("small", SMALL[name]).test] == lengths


def test_runs_and_measurements_have_one_shape():
    models = {name: SMALL[name] for name in ("llama", "mamba")}
    runs, clocks = trainings("small", models, steps=7), timings("small", models)
    assert all(isinstance(run, Training) and run.steps == 7 for run in runs)
    assert [(run.model, run.lr) for run in runs] == [(name, rate) for name in models for rate in RATES["small"]]
    for clock in clocks:
        run = next(run for run in runs if run.model == clock.model)
        assert (clock.architecture, clock.batch, clock.length) == (run.architecture, run.batch, run.lessons[0].train[1])
        assert clock.vocabulary == 1024
        assert clock.facets() == {**run.facets(), "task": "time"}
