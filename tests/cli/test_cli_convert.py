"""`exlstm convert`: every layout from the command line, the tokenizer taken along, fewer bits and what they cost."""

import json
import math
import re
import shutil

import pytest
import torch

import exlstm
from exlstm.data.model_tokenizer import tokenizer_of
from exlstm.data.text import documents
from exlstm.data.tokenizer import tokenizer_from_spec, train_bpe
from exlstm.models.locate import locate
from exlstm.train.evaluate import score_beginning


@pytest.fixture
def large(tmp_path):
    """A model of xLSTM-7B's blocks in transformers' layout, with a tokenizer beside it."""
    config = exlstm.lm_from_pattern("MM", vocab_size=300, width=64)
    model = exlstm.LM(exlstm.LMConfig(**{**vars(config), "logit_cap": 30.0}))
    exlstm.save(model, tmp_path / "large", layout="huggingface")
    tokenizer = train_bpe([b"the cat sat on a mat " * 50], 280)
    (tmp_path / "large/tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    return tmp_path / "large"


def test_a_run_becomes_a_classic_model_and_goes_on(here, tmp_path, run):
    """With its tokenizer: it generates what the run does."""
    out = run("convert", "run", str(tmp_path / "classic"), "--layout", "classic")
    assert re.fullmatch(
        r"run/checkpoints/step-00000040 \(exlstm, [\d,]+ bytes\) -> .*classic \(classic, [\d,]+ bytes\)\n", out
    )
    options = ("--prompt", "the cat", "--max-tokens", "20", "--temperature", "0")
    assert run("generate", str(tmp_path / "classic"), *options) == run("generate", "run", *options)
    assert run("summary", str(tmp_path / "classic")) == run("summary", "run")


def test_every_layout_there_and_back(large, tmp_path, run):
    want = exlstm.load(large).state_dict()
    source = large
    for layout in ("xlstm-large", "exlstm", "huggingface"):
        run("convert", str(source), str(tmp_path / layout), "--layout", layout)
        source = tmp_path / layout
        got = exlstm.load(source).state_dict()
        assert got.keys() == want.keys()
        assert all(torch.equal(x, want[name]) for name, x in got.items())
        text = tokenizer_from_spec(str(source / "tokenizer.json"), [])
        assert text.decode(text.encode(b"the cat sat")) == b"the cat sat"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_fewer_bits_and_what_they_cost(here, tmp_path, run, weights):
    """The printed perplexities are the scores of the two models on the same tokens."""
    out = run("convert", "run", str(tmp_path / "small"), "--weights", weights, "--data", "text.txt", "--tokens", "600")
    found = re.search(r"^perplexity on 600 tokens: ([\d.]+) -> ([\d.]+) \(([+-][\d.]+)%\), bits per byte", out, re.M)
    before, after, change = map(float, found.groups())
    assert before != after
    assert after == pytest.approx(before, rel=0.05)
    assert change == pytest.approx(100 * (after / before - 1), abs=0.02)
    sizes = [int(size.replace(",", "")) for size in re.findall(r"([\d,]+) bytes", out)]
    assert sizes[1] < sizes[0]
    small = exlstm.load(tmp_path / "small")
    assert type(small.head).__name__ == f"Int{weights[3:]}Linear"
    options = ("--prompt", "the ", "--max-tokens", "8", "--temperature", "0")
    assert run("generate", str(tmp_path / "small"), *options) == run("generate", "run", *options, "--weights", weights)


def test_little_time_measures_a_piece(here, tmp_path, run, monkeypatch):
    """The same piece of the text that is named, with both models: a slower second one is not cut shorter."""
    asked = []

    def watched(*args, **options):
        asked.append((options["tokens"], options["minutes"]))
        return score_beginning(*args, **options)

    monkeypatch.setattr("exlstm.train.evaluate.score_beginning", watched)
    words = ("--weights", "int4", "--data", "text.txt", "--minutes", "1e-9", "--tokens", "5000")
    out = run("convert", "run", str(tmp_path / "small"), *words)
    assert asked == [(5000, 1e-9), (256, math.inf)]
    found = re.search(r"^perplexity on 256 tokens: ([\d.]+) -> ([\d.]+) ", out, re.M)
    source = locate("run")
    for said, model in zip(found.groups(), (source.load(), exlstm.load(tmp_path / "small")), strict=True):
        score = score_beginning(model, tokenizer_of(source), documents("text.txt"), tokens=256, minutes=9.0)
        assert said == f"{score.perplexity:.4f}"


def test_of_a_run_the_checkpoint_that_is_named(here, tmp_path, run, refused):
    """A checkpoint that is given as a folder has its run's tokenizer."""
    assert "no checkpoint of step 39" in refused("convert", "run", str(tmp_path / "out"), "--checkpoint", "39")
    run("convert", "run/checkpoints/best", str(tmp_path / "out"))
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (here / "run/tokenizer.json").read_bytes()


def test_transformers_gets_a_tokenizer_of_its_own(large, tmp_path, run):
    from transformers import AutoTokenizer

    run("convert", str(large), str(tmp_path / "out"), "--layout", "huggingface")
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    own = tokenizer_from_spec(str(large / "tokenizer.json"), [])
    assert found.encode("the cat sat", add_special_tokens=False) == list(own.encode(b"the cat sat"))


def test_without_a_tokenizer_nothing_is_measured(large, tmp_path, run):
    (large / "tokenizer.json").unlink()
    out = run("convert", str(large), str(tmp_path / "small"), "--weights", "int8")
    assert "perplexity was not measured: there is no tokenizer.json beside the model; name one with --tokenizer" in out
    assert "perplexity on" in run(
        "convert", str(large), str(tmp_path / "again"), "--weights", "int8", "--tokenizer", "bytes", "--tokens", "300"
    )
    assert json.loads((tmp_path / "again/tokenizer.json").read_text()) == {"kind": "bytes"}


def test_what_is_no_text_is_not_measured_on(here, tmp_path, run, refused):
    """And that is told before anything is written."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/text.txt").write_text("a mat on the cat\n" * 40)
    (tmp_path / "data/photo.jpg").write_bytes(b"\0" * 99)
    words = ("convert", "run", str(tmp_path / "out"), "--weights", "int8", "--data")
    assert "--binary" in refused(*words, str(tmp_path / "data/photo.jpg"))
    assert not (tmp_path / "out").exists()
    out = run(*words, str(tmp_path / "data"))
    assert "1 of 2 files does not look like text: photo.jpg (--binary takes them)\n" in out
    again = run(*words, str(tmp_path / "data"), "--binary", "--overwrite")
    assert "perplexity on 680 tokens" in out
    assert "perplexity on 780 tokens" in again


def test_another_dtype(large, tmp_path, run):
    run("convert", str(large), str(tmp_path / "half"), "--dtype", "bfloat16")
    assert {x.dtype for x in exlstm.load(tmp_path / "half").state_dict().values()} == {torch.bfloat16}


def test_what_was_assumed_is_said(large, tmp_path, run):
    (large / "config.json").unlink()
    out = run("convert", str(large), str(tmp_path / "out"))
    assert re.search(
        r"large does not say; the defaults of its layout, huggingface, are taken: norm_eps 1e-06, eps 1e-0", out
    )


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ([], ["IN"]),
        (["run"], ["OUT"]),
        (["nowhere", "out"], ["no run or model at nowhere"]),
        (["run", "out", "--layout", "jax"], ["--layout", "jax", "huggingface"]),
        (["run", "out", "--layout", "huggingface"], ["block 0 is MLSTMConfig", "xlstm, llama"]),
        (["run", "out", "--layout", "classic", "--weights", "int8"], ["quantised (int8)", "'classic'"]),
        (["run", "out", "--weights", "int2"], ["int2"]),
        (["run", "out", "--tokenizer", "nowhere.json"], ["nowhere.json"]),
        (["run/checkpoints/best", "run/checkpoints/best"], ["is the model to convert", "another folder"]),
        (["run", "run"], ["run is the model to convert"]),
        (["run", "run/small"], ["is inside of the model to convert"]),
        (["run/checkpoints/best", "run"], ["run holds the model to convert"]),
        (["run/checkpoints/best", "run", "--overwrite"], ["run holds the model to convert"]),
        (["run", "other", "--overwrite"], ["other is a run of exlstm train"]),
        (["run", ".", "--overwrite"], [". holds the model to convert"]),
        (["run", "out", "--weights", "int8", "--data", "nowhere.txt"], ["no file or folder 'nowhere.txt'"]),
        (["run", "out", "--weights", "int8", "--tokens", "0"], ["--tokens is 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_leave_nothing(here, refused, words, fragments):
    if "other" in words and not (here / "other").exists():
        shutil.copytree(here / "run", here / "other", symlinks=True)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    sentence = refused("convert", *words)
    assert all(fragment in sentence for fragment in fragments), sentence
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_a_model_is_replaced_where_that_was_asked_for(large, here, tmp_path, run, refused):
    """With its tokenizer: that of the old model would encode other texts, or none."""
    target = tmp_path / "out"
    run("convert", str(large), str(target))
    files = {path: path.read_bytes() for path in target.iterdir()}
    assert "--overwrite" in refused("convert", "run", str(target))
    assert {path: path.read_bytes() for path in target.iterdir()} == files
    run("convert", "run", str(target), "--overwrite")
    assert json.loads((target / "tokenizer.json").read_text()) == {"kind": "bytes"}
    run("convert", str(large), str(target), "--overwrite", "--layout", "huggingface")
    assert (target / "tokenizer_config.json").is_file()
    (large / "tokenizer.json").unlink()
    run("convert", str(large), str(target), "--overwrite")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
