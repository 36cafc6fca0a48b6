"""The command line: help, and every command on a small run."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from processes import TINY, run_process, start_process

import exlstm
from exlstm.cli import main
from exlstm.cli.commands import COMMANDS
from exlstm.train.config import TrainConfig
from exlstm.train.recipes import RECIPES, recipe
from exlstm.train.run_folder.summary import RunSummary


def test_help_as_a_program():
    done = run_process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(re.search(rf"\b{name}\b", done.stdout) for name in COMMANDS)
    assert run_process().stdout == done.stdout
    assert run_process("--version").stdout == f"exlstm {exlstm.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name, run):
    out = run(name, "--help")
    for field in fields(COMMANDS[name].options):
        flag = field.name.replace("_", "-")
        assert f"--{flag}" in out or field.name in ("run", "model", "source", "target", "folder", "answer"), flag
    assert "{None}" not in out


def test_help_of_train_names_the_recipes(run):
    assert all(name in run("train", "--help") for name in ("--recipe", *RECIPES))


def test_train_leaves_a_run(here):
    names = {path.name for path in (here / "run").iterdir()}
    expected = {
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "loss.png",
        "report.html",
        "summary.json",
        "checkpoints",
    }
    assert names >= expected
    records = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    samples = [record["sample"] for record in records if "sample" in record]
    assert samples
    assert all(sample.startswith("def ") for sample in samples)


def test_eval_compares_context_lengths(here, run):
    out = run("eval", "run", "--context", "16,64,256", "--tokens", "512")
    assert re.findall(r"^ +(16|64|256)  ", out, re.MULTILINE) == ["16", "64", "256"]
    assert "bits/byte" in out
    assert "step 40" in out
    (here / "other.txt").write_text("a mat on the cat\n" * 100)
    assert "other.txt" in run("eval", "run", "--data", "other.txt", "--context", "32")
    assert "test part" in run("eval", "run", "--part", "test", "--context", "32", "--checkpoint", "last")


@pytest.mark.parametrize("weights", ["int8", "int4", "bfloat16"])
def test_eval_compares_weights(here, run, weights):
    out = run("eval", "run", "--context", "32", "--tokens", "512", "--weights", weights)
    assert f"With {weights} weights:" in out
    before, after = compared(out, "the whole text")
    assert before != after
    assert after == pytest.approx(before, rel=0.05)


def compared(out, where):
    """The two scores of the last line."""
    found = re.search(rf"^{where}: bits per byte ([\d.]+) -> ([\d.]+) ", out, re.MULTILINE)
    return tuple(map(float, found.groups()))


def test_eval_compares_equal_bytes(here, run):
    """A pass that was cut off read other bytes: then the longest context is compared, of which both read all."""
    out = run("eval", "run", "--context", "32,16", "--tokens", "512", "--minutes", "1e-9", "--weights", "int8")
    rows = re.findall(r"^ +32 +[\d.]+ +[\d.]+ +([\d.]+) ", out, re.MULTILINE)
    assert compared(out, "context 32") == tuple(map(float, rows))


def test_a_run_whose_checkpoint_is_quantised(here, tmp_path, run, refused):
    copy = tmp_path / "copy"
    shutil.copytree(here / "run", copy, symlinks=True)
    checkpoint = copy / "checkpoints/step-00000040"
    exlstm.save(exlstm.quantize(exlstm.load(checkpoint), "int8"), tmp_path / "small")
    shutil.copytree(tmp_path / "small", checkpoint, dirs_exist_ok=True)
    options = ("--context", "32", "--tokens", "512")
    compared = run("eval", "run", *options, "--weights", "int8")
    assert re.search(r"^.*all, state kept.*$", compared.partition("With int8")[2], re.MULTILINE)[0] in run(
        "eval", str(copy), *options
    )
    words = ("--prompt", "the ", "--max-tokens", "20")
    assert run("generate", str(copy), *words) == run("generate", "run", *words, "--weights", "int8")
    assert run("generate", str(copy), *words, "--weights", "int8") == run("generate", str(copy), *words)
    for words in (("eval", "int8"), ("eval", "int4"), ("generate", "int4")):
        assert "quantised already" in refused(words[0], str(copy), "--weights", words[1])
    (checkpoint / "config.json").unlink()
    assert "config.json" in refused("eval", str(copy), "--weights", "int8")


def test_presets_lists_sizes(run):
    out = run("presets")
    assert all(name in out for name in exlstm.PRESETS)
    assert "6,865,424,896" in out
    lines = [line.split() for line in out.splitlines()]
    assert lines.index(["rivals", "of", "Table", "1"]) < next(
        number for number, words in enumerate(lines) if "gpt3-356m" in words
    )
    assert next(words for words in lines if "llama-407m" in words)[1:6] == [
        "406,635,520",
        "403,046,592",
        "after",
        "2,048",
        "tokens",
    ]
    blocks = {words[0]: words[1:] for words in lines[lines.index(["rivals", "as", "published"]) :] if words}
    assert blocks["mlstm"][:2] == ["m", "The"]
    assert all(len(blocks[name]) > 1 for name in exlstm.MIXERS)


def test_runs_are_listed(here, run, tmp_path):
    (line,) = json.loads(run("runs", ".", "--json"))
    assert (line["run"], line["state"], line["steps"], line["problem"]) == ("run", "finished", 40, None)
    heading, *lines = run("runs", ".").splitlines()
    assert [text.split()[:3] for text in lines] == [["run", "finished", "40"]]
    assert run("runs", str(tmp_path)) == f"no runs below {tmp_path}\n"


def test_summary_takes_a_preset_or_a_run(here, run):
    assert "6,865,424,896" in run("summary", "xlstm-7b")
    assert run("summary", "run") == run("summary", "laptop-tiny")


def test_summary_says_how_weights_are_stored(here, tmp_path, run):
    model = exlstm.load("run/checkpoints/best")
    exlstm.save(exlstm.quantize(model, "int4"), tmp_path / "int4")
    exlstm.save(model.bfloat16(), tmp_path / "bfloat16")
    for name, kind in {"int4": "int4 and float32", "bfloat16": "bfloat16"}.items():
        found = re.search(rf"^weights {kind}, ([\d,]+) bytes$", run("summary", str(tmp_path / name)), re.MULTILINE)
        head = (tmp_path / name / "model.safetensors").stat().st_size - int(found[1].replace(",", ""))
        assert 0 < head < 8192


def test_explain_shows_training_prefill_and_decoding(here, run):
    out = run("explain", "run", "--batch", "2", "--length", "16")
    for words in (
        "batch 2, 16 tokens",
        "training, T = 16",
        "prefill, T = 16",
        "decoding, T = 1",
        "  mlstm  ",
        "  slstm  ",
    ):
        assert words in out


PEAK = """
import resource, sys
from exlstm.cli import main
code = main(["explain", "xlstm-7b", "--length", "1"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say how much memory was used")
def test_explain_needs_no_memory_for_weights():
    """xlstm-7b has 27 GB of them, the largest 0.8 GB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *table, peak = done.stdout.splitlines()
    assert re.search(r"^training, T = 1 +linear +225 ", "\n".join(table), re.MULTILINE), done.stdout
    assert int(peak) < 2.5e9


def test_demo_trains_generates_and_says_where_things_are(here, run):
    options = ("--run", "demo", "--data", "text.txt", "--tokenizer", "bytes", "--steps", "3", "--no-carry-state", *TINY)
    out = run("demo", *options, "--yardsticks")
    for words in ("trigram", "gzip -9", "xz -9", "def ", "loss.png", "report.html"):
        assert words in out


def test_a_recipe_replaces_the_former_demo_and_no_other_run(monkeypatch):
    """Neither has the user asked for it, nor can --resume be meant so."""
    seen = []
    monkeypatch.setattr("exlstm.train.run.train", lambda config, **_: seen.append(config) or RunSummary(**NOTHING))
    for words in (("demo",), ("demo", "--resume"), ("demo", "--run", "run"), ("train", "--recipe", "demo")):
        assert main(list(words)) == 0
    assert [(config.run, config.resume, config.overwrite) for config in seen] == [
        ("runs/demo", False, True), ("runs/demo", True, False), ("run", False, False), ("runs/demo", False, False)
    ]  # fmt: skip


NOTHING = {"run": "", "stopped": "signal", "step": 0, "tokens": 0, "seconds": 0, "parameters": 0, "seed": 0}


def test_recipes_are_the_defaults_that_other_options_change(monkeypatch):
    seen = []
    monkeypatch.setitem(COMMANDS, "train", replace(COMMANDS["train"], run=seen.append))
    monkeypatch.setitem(COMMANDS, "demo", replace(COMMANDS["demo"], run=seen.append))
    assert main(["train"]) == main(["demo"]) == main(["demo", "--minutes", "none", "--seed", "7"]) == 0
    assert main(["train", "--recipe", "demo", "--lr", "1e-4"]) == main(["train", "--lr=1e-4", "--recipe=demo"]) == 0
    demo = recipe("demo")
    assert seen == [
        TrainConfig(), demo, replace(demo, minutes=None, seed=7), replace(demo, lr=1e-4), replace(demo, lr=1e-4)
    ]  # fmt: skip


def test_recipes_keep_their_promises():
    assert recipe("demo").minutes <= 3.5  # of the five minutes of `make demo`
    assert recipe("stdlib-45m").minutes + recipe("stdlib-45m").final_minutes <= 44
    assert all(one.data is None for one in RECIPES.values())  # the standard library: nothing to download
    for one in RECIPES.values():
        exlstm.preset(one.preset)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_in_training_saves(trained, tmp_path, run):
    folder = str(tmp_path / "stopped")
    with start_process(trained, "train", "--data", "text.txt", "--run", folder, "--steps", "1000000", *TINY) as process:
        assert any(b"step 1 " in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""
    assert b"--resume" in rest
    assert run("generate", folder, "--prompt", "the", "--max-tokens", "3").startswith("the")
