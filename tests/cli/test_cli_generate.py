"""`exlstm generate` as a program for a terminal: texts, many texts, conversations, states in files, Ctrl-C."""

import io
import json
import pkgutil
import re
import signal
import sys
from functools import partial

import pytest
import torch
from processes import run_process, start_process

import exlstm
from exlstm.cli import main


def test_generate_is_decided_by_its_seed(here, run):
    options = ("run", "--prompt", "the cat", "--max-tokens", "40", "--temperature", "1")
    first, again, other = (run("generate", *options, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert first.startswith("the cat")
    assert first.endswith("\n")
    assert run("generate", *options, "--checkpoint", "40", "--seed", "1") == first


def test_generate_passes_every_setting_on(here, run):
    options = ("generate", "run", "--prompt", "the ", "--max-tokens", "30")
    greedy = run(*options, "--temperature", "0")
    assert run(*options, "--temperature", "5", "--top-k", "1") == greedy
    assert run(*options, "--temperature", "5", "--top-p", "1e-9") == greedy
    assert run(*options, "--temperature", "5", "--top-p", "1", "--min-p", "1") == greedy
    assert run(*options, "--temperature", "0", "--repetition-penalty", "9") != greedy
    assert len(run(*options, "--temperature", "0", "--max-tokens", "3")) < len(greedy)


def test_generate_without_a_prompt_begins_a_document(here, run):
    assert run("generate", "run", "--max-tokens", "20").strip() != ""


def test_generate_with_fewer_bits(here, run):
    options = ("generate", "run", "--prompt", "the ", "--max-tokens", "20")
    assert run(*options, "--weights", "int8").startswith("the ")


ENDLESS = ("generate", "run", "--prompt", "the ", "--temperature", "0", "--max-tokens", "1000000")


def test_text_streams_and_a_reader_that_leaves_ends_it(trained):
    with start_process(trained, *ENDLESS) as process:
        assert process.stdout.read(12).startswith(b"the ")  # comes although the command has not ended
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


def test_every_piece_is_shown_at_once(here, monkeypatch):
    from exlstm.infer.requests import Event

    class Screen(io.StringIO):
        shown = ""

        def flush(self):
            self.shown = self.getvalue()

    def events(*args, **options):
        for piece in ("one", "two", "three"):
            yield Event(request=0, token=1, text=piece)
            assert screen.shown.endswith(piece)

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr("exlstm.infer.generate.stream", events)
    assert main(["generate", "run", "--prompt", "zero"]) == 0
    assert screen.getvalue() == "zeroonetwothree\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_the_text_and_not_the_program(trained, tmp_path):
    """The state of what was said is kept, and goes on."""
    file = tmp_path / "state"
    with start_process(trained, *ENDLESS, "--save-state", str(file)) as process:
        said = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        said += process.stdout.read()
        assert process.wait(timeout=60) == 0
        notes = process.stderr.read().decode()
    assert said.endswith(b" [stopped]\n")
    assert re.search(r"tokens read in .*, [\d,]+ generated at [\d,.]+ tokens/s, state 6,032 bytes", notes)
    text = said.removesuffix(b" [stopped]\n")
    kept = exlstm.load_state(file, exlstm.load(trained / "run/checkpoints/best"))
    assert kept.counts == (1 + len(text),)  # a boundary, and a byte is a token


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_in_a_conversation_ends_the_reply(trained):
    """The next line is answered."""
    words = ("generate", "run", "--chat", "--turn", "{}", "--temperature", "0", "--max-tokens", "1000000")
    with start_process(trained, *words) as process:
        process.stdin.write(b"the cat\n")
        process.stdin.flush()
        process.stdout.read(30)
        process.send_signal(signal.SIGINT)
        assert any(line.endswith(b"[stopped]\n") for line in process.stdout)
        out, _ = process.communicate(b"/undo\n/help\n/quit\n", timeout=60)
        assert process.returncode == 0
    assert b"/again" in out


@pytest.mark.slow
def test_a_terminal_without_the_characters_gets_question_marks(trained):
    words = ("generate", "run", "--prompt", "é😀", "--max-tokens", "3")
    done = run_process(*words, cwd=trained, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("??")


# ------------------------------------------------------------------------------------------ prompts, samples, stops


def test_a_prompt_from_a_file_or_standard_input(here, tmp_path, run, monkeypatch):
    options = ("generate", "run", "--max-tokens", "20")
    want = run(*options, "--prompt", "the cat\nsat")
    (tmp_path / "prompt").write_text("the cat\nsat")
    assert run(*options, "--file", str(tmp_path / "prompt")) == want
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\nsat")))
    assert run(*options, "--file", "-") == want


def test_many_prompts(here, tmp_path, run):
    """A JSON object per line, in order; each as it would be alone with its seed."""
    lines = ["the cat", "a mat and", "", "while two dogs ran"]
    (tmp_path / "prompts").write_text("\n".join(lines))
    options = ("generate", "run", "--max-tokens", "12", "--temperature", "1")
    out = run(*options, "--prompts", str(tmp_path / "prompts"), "--logprobs", "2", "--seed", "5")
    found = [json.loads(line) for line in out.splitlines()]
    assert [answer["prompt"] for answer in found] == lines
    for index, answer in enumerate(found):
        alone = run(*options, "--prompt", lines[index], "--seed", str(5 + index))
        assert alone == f"{lines[index]}{answer['completion']}\n"
        assert len(answer["logprobs"]) == len(answer["top_logprobs"]) == answer["tokens"]
        assert all(len(top) == 2 for top in answer["top_logprobs"])
        assert max(answer["logprobs"]) <= 0


def test_samples_of_one_prompt(here, run):
    options = ("generate", "run", "--prompt", "the cat", "--max-tokens", "15", "--temperature", "1")
    out = run(*options, "--samples", "3", "--seed", "7")
    parts = re.split(r"--- seed (\d+) \(length\)\n", out)
    assert parts[1::2] == ["7", "8", "9"]
    assert parts[2::2] == [run(*options, "--seed", seed) for seed in ("7", "8", "9")]


def test_stop_strings(here, run):
    options = ("generate", "run", "--prompt", "the ", "--temperature", "0", "--max-tokens", "60")
    text = run(*options).removeprefix("the ").rstrip("\n")
    stop = text[20:23]
    assert run(*options, "--stop", stop) == f"the {text[: text.index(stop)]}\n"


def test_stop_strings_of_many_prompts(here, tmp_path, run):
    (tmp_path / "prompts").write_text("the \n")
    options = ("generate", "run", "--prompts", str(tmp_path / "prompts"), "--temperature", "0", "--max-tokens", "60")
    text = json.loads(run(*options))["completion"]
    stop = text[20:23]
    found = json.loads(run(*options, "--stop", stop))
    assert (found["completion"], found["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_every_prompt_has_a_seed_of_its_own(here, tmp_path, run, monkeypatch):
    """Also when there are more of them than are answered at a time."""
    monkeypatch.setattr("exlstm.cli.generate.GROUP", 2)
    (tmp_path / "prompts").write_text("the \n" * 5)
    options = ("--max-tokens", "20", "--temperature", "1")
    out = run("generate", "run", *options, "--prompts", str(tmp_path / "prompts"), "--seed", "5")
    for index, line in enumerate(out.splitlines()):
        alone = run("generate", "run", *options, "--prompt", "the ", "--seed", str(5 + index))
        assert f"the {json.loads(line)['completion']}\n" == alone


def test_the_state_after_a_stop_string_is_that_of_what_was_said(here, tmp_path, run):
    """The state excludes the tokens of the stop string."""
    options = ("generate", "run", "--prompt", "the ", "--temperature", "0", "--max-tokens", "60")
    text = run(*options).rstrip("\n")
    said = run(*options, "--stop", text[24:27], "--save-state", str(tmp_path / "state")).rstrip("\n")
    model = exlstm.load("run/checkpoints/best")
    kept, want = exlstm.load_state(tmp_path / "state", model), model.read([256, *said.encode()])
    assert kept.counts == want.counts
    assert kept.logits_BC.allclose(want.logits_BC, rtol=1e-4, atol=1e-4)


def test_quiet(here, capsys):
    assert main(["generate", "run", "--prompt", "the ", "--max-tokens", "3", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------- states in files


def test_a_state_goes_on_as_if_it_had_never_stopped(here, tmp_path, run):
    """Reading in two runs, then sampling: the same text as in one."""
    file, options = str(tmp_path / "state"), ("--temperature", "1", "--max-tokens", "30")
    want = run("generate", "run", "--prompt", "the cat sat on a mat", *options)
    assert (
        run("generate", "run", "--prompt", "the cat sat", "--max-tokens", "0", "--save-state", file) == "the cat sat\n"
    )
    size = (tmp_path / "state").stat().st_size
    assert run("generate", "run", "--state", file, "--prompt", " on a mat", *options) == want.removeprefix(
        "the cat sat"
    )
    run("generate", "run", "--state", file, "--prompt", " on a mat" * 50, *options, "--save-state", file)
    assert abs((tmp_path / "state").stat().st_size - size) < 64  # a count has more digits


def test_a_state_of_another_model_is_refused(here, tmp_path, run, refused):
    file = str(tmp_path / "state")
    other = exlstm.LM(exlstm.lm_from_pattern("m", vocab_size=257, width=32))
    exlstm.save_state(other.read([1, 2]), file)
    assert "another model" in refused("generate", "run", "--state", file, "--prompt", "x")
    assert "nowhere" in refused("generate", "run", "--state", "nowhere", "--prompt", "x")


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--prompt", "a", "--file", "b"], ["--prompt and --file do not go together"]),
        (["--chat", "--prompts", "b"], ["--prompts and --chat do not go together"]),
        (["--samples", "0"], ["--samples is 0"]),
        (["--samples", "2", "--save-state", "x"], ["--save-state keeps one state", "--samples 2"]),
        (["--save-state", "nowhere/x"], ["there is no folder nowhere for x"]),
        (["--prompts", "x", "--state", "y"], ["are for one prompt"]),
        (["--turn", "User:"], ["--turn 'User:' has no {}"]),
        (["--logprobs", "1"], ["--logprobs is for --prompts"]),
        (["--file", "nowhere"], ["nowhere"]),
        (["--save-state", "text.txt"], ["text.txt is there and is no state", "name another file"]),
        (["--save-state", "run"], ["run is a folder"]),
        (["--tokenizer", "nowhere.json"], ["nowhere.json"]),
        (["--weights", "int3"], ["int3", "int8"]),
        (["--checkpoint", "39"], ["no checkpoint of step 39"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(here, refused, words, fragments):
    text = (here / "text.txt").read_bytes()
    sentence = refused("generate", "run", *words)
    assert all(fragment in sentence for fragment in fragments), sentence
    assert (here / "text.txt").read_bytes() == text


# ------------------------------------------------------------------------------------------------- conversations


def chat(folder, *lines, words=()):
    options = ("generate", "run", "--chat", "--temperature", "0.7", "--max-tokens", "12", *words)
    return run_process(*options, cwd=folder, standard_input="".join(f"{line}\n" for line in lines))


@pytest.fixture
def talk(here, run, monkeypatch):
    """A conversation in this process; of what is typed, an exception is raised and a function called. Returns all that
    was printed."""

    def talk(*lines, words=()):
        typed = iter(lines)

        def read(prompt):
            line = next(typed, EOFError())
            print(end=prompt)
            while callable(line):
                line()
                line = next(typed, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        return run("generate", "run", "--chat", "--max-tokens", "20", *words)

    return talk


def hang_up():
    signal.raise_signal(getattr(signal, "SIGHUP", signal.SIGTERM))


@pytest.mark.parametrize("end", [EOFError(), "/quit", hang_up], ids=["end of input", "/quit", "closed terminal"])
def test_a_conversation_is_kept_at_its_end(here, tmp_path, talk, end):
    """Its turns are as they were read: a document's beginning, and a line's end between two of them."""
    file = str(tmp_path / "talk")
    out = talk("a cat", "sat", end, words=("--save-state", file, "--turn", "you {} it", "--temperature", "0"))
    first, second = (part.strip("\n") for part in out.split("> ")[1:3])
    model = exlstm.load("run/checkpoints/best")
    kept = exlstm.load_state(file, model)
    want = model.read([256, *f"you a cat it{first}\nyou sat it{second}".encode()])
    assert kept.counts == want.counts
    assert kept.logits_BC.allclose(want.logits_BC, rtol=1e-4, atol=1e-4)
    assert "nothing to take back" in talk("/undo", "and", words=("--state", file, "--save-state", f"{file}2"))
    assert exlstm.load_state(f"{file}2", model).counts[0] > kept.counts[0] + 20


def same(one, other):
    """Whether two files keep the same conversation."""
    model = exlstm.load("run/checkpoints/best")
    one, other = (exlstm.load_state(file, model) for file in (one, other))
    return one.counts == other.counts and torch.equal(one.logits_BC, other.logits_BC)


def test_ctrl_c_at_an_empty_prompt_does_not_end_a_conversation(tmp_path, talk):
    once, again = (tmp_path / name for name in ("once", "again"))
    words = ("--temperature", "0", "--save-state")
    talk("a cat", "sat", words=(*words, str(once)))
    out = talk(
        KeyboardInterrupt(), "a cat", KeyboardInterrupt(), KeyboardInterrupt(), "sat", words=(*words, str(again))
    )
    assert out.count("/quit ends the conversation") == 3
    assert same(again, once)


@pytest.mark.parametrize("command", ["sat", "/again"])
@pytest.mark.parametrize("place", ["exlstm.models.lm.LM.read", "exlstm.infer.generate.stream"])
def test_ctrl_c_before_the_first_token_ends_the_reply_only(tmp_path, talk, monkeypatch, place, command):
    """Reading the line or deciding on a first token: the conversation before it is there, and goes on."""

    def press(*args, **options):
        raise KeyboardInterrupt

    before, after = (tmp_path / name for name in ("before", "after"))
    whole = pkgutil.resolve_name(place)
    patch, unpatch = (partial(monkeypatch.setattr, place, act) for act in (press, whole))
    lines = ("a cat", f"/save {before}", patch, command, unpatch, f"/save {after}", "on", "/undo")
    out = talk(*lines, words=("--temperature", "0"))
    assert out.count("[stopped") == 1
    assert same(after, before) == place.endswith("read")


def test_again_after_undo_is_another_reply_to_the_line_before(talk):
    words = ("--temperature", "0")
    first, second = (talk("a cat", *more, "/again", words=words) for more in ((), ("sat", "/undo")))
    assert second.rpartition("> ")[0].rpartition("> ")[2] == first.rpartition("> ")[0].rpartition("> ")[2]


def test_what_is_forgotten_cannot_be_taken_back(tmp_path, talk):
    file = tmp_path / "talk"
    assert "nothing to take back" in talk("a cat", "/reset", "/undo")
    assert "nothing to take back" in talk("a cat", f"/save {file}", f"/load {file}", "/undo")


def test_again_is_another_reply(talk):
    first, second = (part.strip() for part in talk("a cat", "/again", words=("--temperature", "1")).split("> ")[1:3])
    assert first != second


@pytest.mark.slow
def test_a_conversation_keeps_its_state(here, tmp_path):
    """In a file, too: two programs say what one says. What was taken back is forgotten."""
    file = tmp_path / "talk"
    once = chat(here, "the cat", f"/save {file}", "sat on", words=("--seed", "3"))
    assert once.returncode == 0, once.stderr
    assert "state of" in once.stderr
    undone = chat(here, "the cat", "green hills", "/undo", f"/save {file}2", words=("--seed", "3"))
    assert undone.returncode == 0, undone.stderr
    model = exlstm.load(here / "run/checkpoints/best")
    one, two = (exlstm.load_state(f, model) for f in (file, f"{file}2"))
    assert one.counts == two.counts
    assert one.logits_BC.equal(two.logits_BC)
    replies = [part.partition("\n")[0] for part in once.stdout.split("> ")[1:]]
    later = chat(here, f"/load {file}", "sat on", words=("--seed", "4"))  # a reply has the seed plus its number
    assert later.stdout.split("> ")[2].partition("\n")[0] == replies[2]


@pytest.mark.slow
def test_the_words_of_a_conversation(here, tmp_path):
    done = chat(here, "/help", "/undo", "/save", "/sing", "/load nowhere", "", "hello", "/again", "/reset", "/save x")
    assert done.returncode == 0, done.stderr
    for said in (
        "/save FILE", "nothing to take back", "/save needs the name of a file", "no command /sing", "nowhere",
        "there is nothing to keep yet",
    ):  # fmt: skip
        assert said in done.stdout, said
    assert not (here / "x").exists()


def test_a_reply_ends_where_the_user_would_speak(talk):
    """The model's own idea of the user's next line is not shown, and not remembered."""
    said = talk("the cat", words=("--turn", "a{}", "--temperature", "0", "--max-tokens", "300"))
    assert "\na" not in said
