"""The command line: every command on a small run; every mistake costs one sentence on stderr and exit code 2."""

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
from exlstm.cli.generate import Generate
from exlstm.cli.parse import parse, take_choice
from exlstm.train.config import TrainConfig
from exlstm.train.recipes import RECIPES, recipe
from exlstm.train.run_folder.summary import RunSummary

# ----------------------------------------------------------------------------------------------------------- help


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
        assert f"--{flag}" in out or field.name in ("run", "model", "source", "target", "folder"), flag
    assert "{None}" not in out


def test_help_of_train_names_the_recipes(run):
    assert all(name in run("train", "--help") for name in ("--recipe", *RECIPES))


# ----------------------------------------------------------------------------------------------------- the commands


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


# ----------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["trin"], ["'trin'", "perhaps you mean train", "exlstm --help"]),
        (["--foo"], ["'--foo'", "exlstm --help"]),
        (["train", "--stps", "3"], ["'--stps'", "perhaps you mean --steps", "exlstm train --help"]),
        (["train", "--minutess=3"], ["'--minutess'", "perhaps you mean --minutes"]),
        (["train", "text.txt"], ["'text.txt' is no option"]),
        (["train", "--steps", "many"], ["--steps", "'many' is not a whole number"]),
        (["train", "--steps", "2.5"], ["--steps", "'2.5' is not a whole number"]),
        (["train", "--lr", "high"], ["--lr", "'high' is not a number"]),
        (["train", "--steps"], ["--steps"]),
        (["train", "--lr", "-1"], ["--lr -1.0", "positive number"]),
        (["train", "--schedule", "linear"], ["--schedule", "'linear'", "cosine"]),
        (["train", "--recipe", "nope"], ["'nope'", "demo"]),
        (["train", "--recipe"], ["--recipe", "demo"]),
        (["train", "--resume"], ["--run"]),
        (["train", "--from", "nowhere"], ["no run or model at nowhere"]),
        (
            ["train", "--from", "run", "--preset", "laptop-small"],
            ["--preset 'laptop-small' cannot be used with --from"],
        ),
        (["train", "--preset", "huge"], ["'huge'", "laptop-small"]),
        (["train", "--data", "nowhere.txt"], ["'nowhere.txt'"]),
        (["train", "--data", "empty.txt"], ["empty.txt"]),
        (["train", "--data", "text.txt", "--blocks", "mxs"], ["'mxs'"]),
        (["train", "--data", "text.txt", "--tokenizer", "words"], ["'words'", "bpe:4096"]),
        (["train", "--data", "text.txt", "--device", "cuda:77"], ["'cuda:77'", "cpu"]),
        (["train", "--data", "text.txt", "--run", "run"], ["--resume", "--overwrite"]),
        (["train", "--data", "text.txt", "--run", "text.txt"], ["text.txt is a file"]),
        (["train", "--data", "text.txt", "--run", "mine", "--overwrite"], ["keep.me", "--run"]),
        (["train", "--data", "short.txt", "--length", "5000", "--run", "new"], ["5000"]),
        (["eval"], ["MODEL is missing", "exlstm eval --help"]),
        (["eval", "nowhere"], ["nowhere"]),
        (["eval", "mine"], ["mine has no weights"]),
        (["eval", "run/checkpoints/best"], ["is of no run", "--data"]),
        (["eval", "run", "--context", "long"], ["'long'", "256,1024"]),
        (["eval", "run", "--context", "0"], ["'0'"]),
        (["eval", "run", "--context", "100000000"], ["100000000"]),
        (["eval", "run", "--part", "train"], ["--part", "'train'", "val"]),
        (["eval", "run", "--data", "nowhere"], ["'nowhere'"]),
        (["generate"], ["MODEL is missing"]),
        (["generate", "nowhere"], ["nowhere"]),
        (["generate", "run", "--temperature", "-1"], ["temperature", "-1"]),
        (["generate", "run", "--top-p", "0"], ["top_p", "0"]),
        (["generate", "run", "--top-k", "0"], ["top_k", "0"]),
        (["generate", "run", "--max-tokens", "-1"], ["--max-tokens is -1"]),
        (["generate", "run", "--checkpoint", "newest"], ["'newest'", "best, last"]),
        (["generate", "run", "--checkpoint", "41"], ["41", "best"]),
        (["generate", "run", "--device", "tpu9"], ["'tpu9'", "cpu"]),
        (["summary"], ["PRESET_OR_MODEL is missing"]),
        (["summary", "laptop-smal"], ["'laptop-smal'", "perhaps you mean laptop-small"]),
        (["explain", "nowhere"], ["'nowhere'", "exlstm presets"]),
        (["explain", "--batch", "0"], ["--batch is 0"]),
        (["presets", "--all"], ["'--all'"]),
        (["runs", "nowhere"], ["no folder 'nowhere'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_costs_one_sentence(words, fragments, here, refused):
    (here / "empty.txt").touch()
    (here / "short.txt").write_text("a few words\n" * 30)
    (here / "mine").mkdir(exist_ok=True)
    (here / "mine/keep.me").touch()
    before = sorted(path for path in here.rglob("*") if path.is_file())
    sentence = refused(*words)
    assert all(fragment in sentence for fragment in fragments), sentence
    assert sorted(path for path in here.rglob("*") if path.is_file()) == before, "a mistake must not leave files behind"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "checkpoints/step-00000040/model.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing"])
@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_damaged_run_is_named(name, damage, command, here, tmp_path, refused):
    copy = tmp_path / "copy"
    shutil.copytree(here / "run", copy, symlinks=True)
    file = copy / name
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "foreign":
        file.write_bytes(b'{"something": "else"}')
    else:
        file.unlink()
    assert refused(command, str(copy)) != ""


# tyro draws its boxes with other characters where the output is not UTF-8
@pytest.mark.parametrize("encoding", [pytest.param("utf-8", marks=pytest.mark.slow), "ascii"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["generate"], "exlstm generate: MODEL is missing; see exlstm generate --help."),
        (["train", "--steps", "x"], "exlstm train: --steps: 'x' is not a whole number; see exlstm train --help."),
        (
            ["generate", "nowhere"],
            "exlstm generate: there is no run or model at nowhere; name a folder with a model, or a file of weights.",
        ),
    ],
)
def test_the_same_sentence_in_a_process(words, sentence, encoding):
    done = run_process(*words, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence + "\n")


def test_a_bug_is_not_hidden(monkeypatch):
    def broken(options):
        raise RuntimeError("a bug")

    monkeypatch.setitem(COMMANDS, "presets", replace(COMMANDS["presets"], run=broken))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["presets"])


def test_parse_takes_none_where_an_option_may_be_left_out():
    options = parse(
        TrainConfig, ["--minutes", "none", "--data", "None"], program="x", description="", default=recipe("demo")
    )
    assert (options.minutes, options.data) == (None, None)
    with pytest.raises(ValueError, match="--lr: 'none' is not a number; see x --help"):
        parse(TrainConfig, ["--lr", "none"], program="x", description="")


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["--data", "a"], "a"),
        (["--data", "a", "b:0.3"], ("a", "b:0.3")),
        (["--data", "a", "--data", "b:0.3"], ("a", "b:0.3")),
        (["--data=a", "--steps", "3", "--data=b c", "--data", "d", "e", "--no-yardsticks"], ("a", "b c", "d", "e")),
        (["--data", ""], ""),
        (["--steps", "3"], None),
    ],
    ids=str,
)
def test_several_texts(words, data):
    options = parse(TrainConfig, words, program="x", description="")
    assert options.data == data
    assert options.steps == (3 if "--steps" in words else None)
    assert options.yardsticks == ("--no-yardsticks" not in words)


def test_an_option_with_several_values_may_be_repeated():
    """The last one does not win."""
    words = ["run", "--stop", "a", "--prompt", "x", "--stop=b c", "--stop", "d", "e", "--seed=3", "--no-quiet"]
    options = parse(Generate, words, program="x", description="")
    assert (options.stop, options.prompt, options.seed) == (("a", "b c", "d", "e"), "x", 3)
    assert parse(Generate, ["run", "--stop=--", "--seed", "3"], program="x", description="").stop == ("--",)


def test_a_text_that_is_missing():
    with pytest.raises(ValueError, match="--data: a value is missing; see x --help"):
        parse(TrainConfig, ["--data", "--steps", "3"], program="x", description="")


def test_eval_says_what_was_left_out(here, tmp_path, run, refused):
    (tmp_path / "text.txt").write_text("a mat on the cat\n" * 100)
    (tmp_path / "photo.jpg").write_bytes(b"\0" * 99)
    words = ("eval", "run", "--context", "32", "--data")
    assert "(1 of 2 files does not look like text: photo.jpg; --binary takes them)" in run(*words, str(tmp_path))
    assert "--binary" in refused(*words, str(tmp_path / "photo.jpg"))
    assert "99 bytes" in run(*words, str(tmp_path / "photo.jpg"), "--binary")


def test_parse_tells_given_from_left_out_for_every_option():
    for field in fields(TrainConfig):
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            ways = [[flag], [f"--no-{flag[2:]}"], [f"--no_{field.name}"]]
        else:
            ways = [[flag, str(field.default)], [f"{flag}={field.default}"], [f"--{field.name}", str(field.default)]]
        for words in ways:
            needed = {} if field.name != "resume" and field.name != "overwrite" else {"run": "r"}
            options = parse(TrainConfig, words, program="x", description="", default=TrainConfig(**needed))
            assert options.given == {field.name, *needed}, words


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--batch", "16"], ["--batch 16 differs from the 4 of the run to resume"]),
        (["--yardsticks", "--length=256"], ["--length 256 differs from the 32"]),
        (
            ["--batch", "4", "--no-carry-state", "--workers", "0"],
            ["used up its budget after 40", "--steps +1000"],
        ),
        (["--steps", "40"], ["used up its budget after 40 steps"]),
        (["--recipe", "stdlib-45m"], ["differs from"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_resuming_refuses_what_would_be_ignored(words, fragments, here, refused):
    sentence = refused("train", "--run", "run", "--resume", *words)
    assert all(fragment in sentence for fragment in fragments), sentence


def test_settings_from_a_file_and_a_model_to_start_from(monkeypatch, tmp_path, refused):
    seen = []
    monkeypatch.setitem(COMMANDS, "train", replace(COMMANDS["train"], run=seen.append))
    file = tmp_path / "c.json"
    file.write_text('{"batch": 3, "preset": "laptop-tiny", "lr": 1.0}')
    assert (
        main(["train", "--config", str(file), "--batch", "5"]) == main(["train", f"--config={file}", "--from=m"]) == 0
    )
    assert main(["train", "--from", "m", "--lr", "1.0"]) == 0
    assert seen == [
        TrainConfig(batch=5, preset="laptop-tiny", lr=1.0), TrainConfig(batch=3, from_model="m", lr=1.0),
        TrainConfig(from_model="m", lr=1.0),
    ]  # fmt: skip
    assert "both given" in refused("train", "--config", str(file), "--recipe", "demo")
    assert "No such file" in refused("train", "--config", "nowhere.json")
    assert "cannot be read" in refused("train", "--config")


def test_a_budget_with_a_plus_is_on_top(monkeypatch, refused):
    seen = []
    monkeypatch.setitem(COMMANDS, "train", replace(COMMANDS["train"], run=seen.append))
    assert main(["train", "--run", "r", "--resume", "--minutes", "+10"]) == 0
    assert main(["train", "--run", "r", "--resume", "--steps=+1000"]) == 0
    assert [str(seen[0].minutes), str(seen[1].steps)] == ["+10", "+1000"]
    assert "adds to a run" in refused("train", "--minutes", "+10")


def test_take_choice_leaves_the_other_words():
    assert take_choice("--pick", ["a", "--pick", "one", "b"], {"one": 1}) == (1, ["a", "b"])
    assert take_choice("--pick", ["a", "--picked=one"], {"one": 1}) == (None, ["a", "--picked=one"])


# ------------------------------------------------------------------------------------ pipes, signals, terminals


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
