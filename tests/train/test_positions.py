"""Training and scoring of a model with a table of learned positions: windows in place of a carried state."""

import pytest

from exlstm.mixers.attention import AttentionConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LMConfig
from exlstm.train.evaluate import evaluate
from exlstm.train.run import train

COUNT = 32
GPT = LMConfig(
    vocab_size=257,
    width=16,
    blocks=(
        BlockConfig(
            mixer=AttentionConfig(heads=2, rope_base=None, bias=True),
            mlp=MLPConfig(hidden=24, activation="gelu_tanh", gated=False, bias=True),
        ),
    ),
    norm_bias=True,
    tie_embeddings=True,
    positions=COUNT,
)


@pytest.mark.slow
def test_a_run_and_its_scores(settings, text, tmp_path):
    train(settings(tokenizer="bytes", length=COUNT, run=str(tmp_path / "run")), model=GPT)
    run = str(tmp_path / "run")
    whole = evaluate(run, data=str(text), context=[8, COUNT], tokens=10**6)
    assert (whole.window, whole.coverage) == (COUNT, 1.0)
    assert "all, in windows" in whole.table()
    assert f"a window has {COUNT} tokens" in whole.table()
    assert whole.contexts[COUNT].tokens == whole.whole.tokens > 1000
    assert whole.contexts[COUNT].nats == pytest.approx(whole.whole.nats, rel=1e-5)
    assert list(evaluate(run, data=str(text)).contexts) == []
    with pytest.raises(ValueError, match=rf"has positions for {COUNT}"):
        evaluate(run, data=str(text), context=[COUNT + 1], tokens=300)


@pytest.mark.parametrize("change", [{"length": COUNT + 1}, {"carry_state": True}], ids=str)
def test_settings_that_do_not_go_with_positions(settings, change, tmp_path):
    with pytest.raises(ValueError, match=rf"^--(length|carry-state).* does not go with a model of {COUNT} positions"):
        train(settings(tokenizer="bytes", **change), model=GPT)
    assert not (tmp_path / "run").exists()
