"""The same weights through lm-evaluation-harness by two routes: our model, and its own one for transformers."""

import json
import math
import shutil
import sys

import datasets
import huggingface_hub
import pytest
import torch
import transformers
from lm_eval.__main__ import HarnessCLI
from lm_eval.api.instance import Instance

import exlstm.cli
from document_commands import ROOT, commands_of, runs
from exlstm.data.tokenizer import ByteTokenizer
from exlstm.harness import main
from exlstm.harness.model import HarnessModel
from exlstm.hf import save_tokenizer
from exlstm.runtime.machine import pick_device

PAIRS = [
    ("def add(a, b):\n    return a ", "+ b"),
    ("def add(a, b):\n    return a ", "in b"),
    ("x", "y"),
    ("", "import os"),
    ("a longer context, so that rows of a batch differ in length", " and"),
]
TEXTS = [("a text of some length, longer than others",), ("q",), ("another text, é漢",)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    exlstm.save(exlstm.LM(exlstm.lm_from_pattern("msM", vocab_size=257, width=32)), place)
    save_tokenizer(ByteTokenizer(), place)
    return str(place)


def requests(kind, arguments):
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def theirs(folder):
    """Their model of a folder. Imported here, and not in a test, where every call is looked at: that takes a minute."""
    from lm_eval.models.huggingface import HFLM

    def build(**options):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu", **options)

    return build


def test_both_routes_give_the_same_numbers(folder, theirs):
    ours, other = HarnessModel(folder, batch_size=2, device="cpu"), theirs()
    assert other.max_length > 2**30
    found = ours.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    expected = other.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]

    asked = [(text, {"until": [stop], "max_gen_toks": 12}) for text, _ in PAIRS if text for stop in ("\n", "q")]
    answers = [model.generate_until(requests("generate_until", asked), disable_tqdm=True) for model in (ours, other)]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 2

    # with the boundary, theirs would count it as the first token of a text, once more
    windowed = HarnessModel(folder, batch_size=2, device="cpu", window=16)
    for model, limits in ((ours, {}), (windowed, {"max_length": 16})):
        other = theirs(add_bos_token=False, **limits)
        totals = model.loglikelihood_rolling(requests("rolling", TEXTS), disable_tqdm=True)
        assert totals == pytest.approx(
            other.loglikelihood_rolling(requests("rolling", TEXTS), disable_tqdm=True), rel=1e-5
        )


def results(folder, out, *words):
    arguments = ["--tasks", "exlstm_choices,exlstm_text,exlstm_copy", "--include_path", "examples/lm_eval"]
    assert main([*words, *arguments, "--batch_size", "3", "--device", "cpu", "--output_path", str(out)]) == 0
    (file,) = out.rglob("results_*.json")
    return json.loads(file.read_text())["results"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_line_on_the_tasks_of_the_examples(folder, tmp_path, monkeypatch, capfd):
    """Both routes of docs/harness.md, without a network, give the numbers of the definition."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    ours = results(folder, tmp_path / "ours", "--model", "exlstm", "--model_args", f"pretrained={folder}")
    hf = ["--model", "hf", "--model_args", f"pretrained={folder},add_bos_token=False"]
    other = results(folder, tmp_path / "hf", "run", *hf)
    assert ours.keys() == other.keys() == {"exlstm_choices", "exlstm_text", "exlstm_copy"}

    lm, total, size = exlstm.load(folder), 0.0, 0
    for line in (ROOT / "examples/lm_eval/text.jsonl").read_text().splitlines():
        text = json.loads(line)["text"].encode()
        tokens_BT = torch.tensor([[256, *text]])
        log_probs = lm(tokens_BT)[0][:, :-1].log_softmax(-1).gather(2, tokens_BT[:, 1:, None])
        total, size = total - log_probs.sum().item(), size + len(text)
    bits = total / math.log(2) / size
    for found in (ours, other):
        assert found["exlstm_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
        assert 0 <= found["exlstm_choices"]["acc,none"] <= 1
        assert found["exlstm_copy"]["exact_match,none"] == 0  # weights are random
    assert "exlstm_text" in capfd.readouterr().out


LINES = [words[1:] for words in commands_of(ROOT / "docs/harness.md") if words[0] == "exlstm"]


@pytest.fixture
def asked(monkeypatch):
    """The settings with which the harness would have begun."""
    found = []
    monkeypatch.setattr(HarnessCLI, "execute", lambda _, arguments: found.append(arguments))
    return found


def test_the_page_has_three_lines():
    assert [words[1:3] for words in LINES] == [["--model", "exlstm"], ["--model", "exlstm"], ["--model", "hf"]]


@pytest.mark.parametrize("words", LINES, ids=lambda words: words[2] + words[-1])
def test_the_lines_of_the_page_are_parsed(words, asked):
    assert exlstm.cli.main(words) == 0
    (arguments,) = asked
    assert arguments.device == str(pick_device("auto"))
    assert arguments.tasks


def test_a_device_that_is_given_stays(asked, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text("tasks: x\ndevice: cuda:1\n")
    main(["--device", "cuda:0", "--tasks", "x"])
    main(["run", "--config", str(settings)])
    settings.write_text("tasks: x\n")
    main(["run", "--config", str(settings)])
    main(["ls", "tasks"])
    assert [getattr(arguments, "device", "none there") for arguments in asked] == [
        "cuda:0", None, str(pick_device("auto")), "none there"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", [words for words in LINES if runs(["exlstm", *words])], ids=lambda words: words[2])
def test_the_lines_of_the_page_run(words, folder, tmp_path, monkeypatch, capfd):
    """The commands as written, without a network, with models where they name them."""
    for name in ("runs/demo", "model"):
        shutil.copytree(folder, tmp_path / name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for library in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(library, "HF_HUB_OFFLINE", True)
    assert exlstm.cli.main(words) == 0
    assert "exlstm_text" in capfd.readouterr().out


def test_words_that_it_does_not_know(capsys):
    assert main(["run", "--no-such-option", "3"]) == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(ValueError, match=r"pip install 'exlstm\[eval\]'"):
        main(["--tasks", "x"])
