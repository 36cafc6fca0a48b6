"""Options of the command line: what parsing takes; every mistake costs one sentence on stderr and exit code 2."""

import shutil
from dataclasses import fields, replace

import pytest
from processes import run_process

from exlstm.cli import main
from exlstm.cli.commands import COMMANDS
from exlstm.cli.generate import Generate
from exlstm.cli.parse import parse, take_choice
from exlstm.train.config import TrainConfig
from exlstm.train.recipes import recipe


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
