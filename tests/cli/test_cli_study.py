"""`exlstm study`: list, run, report, compare, on a small study that runs in this process."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))
from small_studies import COUNT, lines_of, run_here

from exlstm.cli import main
from exlstm.study import runner


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "count.py").write_text(COUNT)
    (tmp_path / "study" / "second.py").write_text(COUNT.replace("0.2}", "0.1}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run_local", run_here)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_help(run):
    assert run("study") == run("study", "--help")
    out = run("study", "--help")
    assert all(re.search(rf"\b{name}\b", out) for name in ("list", "run", "plan", "report", "compare"))
    assert "usage: exlstm study COMMAND" in out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("list", ["folder"]),
        ("run", ["size", "only", "seeds", "jobs", "device", "cluster", "resume", "overwrite", "folder"]),
        ("report", ["size", "seeds", "folder"]),
        ("plan", ["size", "seeds", "tflops", "folder"]),
        ("compare", ["folder"]),
    ],
)
def test_help_of_a_command_names_its_options(run, command, options):
    out = run("study", command, "--help")
    assert all(f"--{option}" in out for option in options)
    assert "{None}" not in out


def test_list_run_report_compare(here, run):
    out = run("study", "list")
    assert out.count("Which number is <b>largest</b> & why?") == 2
    assert re.search(r"^count +– +– +– +Which number", out, re.MULTILINE)
    ran = out = run("study", "run", "count", "--size", "quick")
    assert "[9/9] done    bad, count, lr 0.2, seed 1: score 0.201, 0 s" in out
    assert "one    0.10 (0/1)" in out
    assert "The report with its pictures: study/results/count/quick.md\n" in out
    assert len(lines_of(here / "study/results/count/quick.jsonl")) == 9  # 6 rates, then one seed of 3 models
    assert "0 failed, 0 not run" in out
    out = run("study", "list")
    assert re.search(r"^count +3 of 3 +– +– +Which number", out, re.MULTILINE)
    assert re.search(r"^second +– +– +– +Which number", out, re.MULTILINE)
    (here / "study/results/count/quick.md").unlink()
    assert ran.endswith(run("study", "report", "count", "--size", "quick"))
    assert run("study", "report", "--size", "quick").endswith("study/results/quick.md\n")
    assert run("study", "plan", "count", "--size", "quick").endswith("at 200 TFLOP/s; 9 other runs\n")
    assert (here / "study/results/count/quick.md").exists()
    run("study", "run", "second", "--size", "quick", "--only", "model=two,model=bad")
    out = run("study", "compare", "count@quick", "second@quick")
    assert "bad, count, lr=0.2  0.201 (2)    0.200 (1)     -0.001" in out
    assert out.endswith("4 settings in both, 2 only in count@quick, 0 only in second@quick\n")


def test_small_has_five_seeds_and_resume_goes_on(here, run):
    run("study", "run", "count", "--only", "model=one", "--seeds", "1")
    assert len(lines_of(here / "study/results/count/small.jsonl")) == 3
    out = run("study", "run", "count", "--resume")
    assert len(lines_of(here / "study/results/count/small.jsonl")) == 6 + 15
    assert "[18/18]" in out
    run("study", "run", "count", "--overwrite", "--seeds", "1")
    assert len(lines_of(here / "study/results/count/small.jsonl")) == 9


def test_runs_that_failed_are_no_success(here, capsys, refused):
    (here / "broken").touch()
    code = main(["study", "run", "count", "--size", "quick"])
    out, err = capsys.readouterr()
    assert code == 2
    assert err == (
        "exlstm study: 2 of 8 runs failed, one with 'RuntimeError: no luck today'; try them again with: "
        "exlstm study run count --size quick --resume.\n"
    )
    assert re.search(r"bad +failed", out)  # the report of the others is there all the same
    assert "failed  bad, count, lr 0.1, seed 0: RuntimeError: no luck today" in out
    (here / "broken").unlink()
    assert main(["study", "run", "count", "--size", "quick", "--resume"]) == 0


def test_brackets_in_questions_are_shown(here, run):
    (here / "study" / "count.py").write_text(COUNT.replace("Which number", "Is [bold] or [1:0] what"))
    assert "Is [bold] or [1:0] what is" in run("study", "list")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("runn",), r"there is no command 'runn', perhaps you mean run; exlstm study --help lists them\."),
        (("run", "cuont"), r"there is no study 'cuont' in study; there are count, second\."),
        (("run", "count", "--size", "huge"), r".*huge.*; see exlstm study run --help\."),
        (("run", "count", "--size", "paper"), r"study count has no runs of size paper; use another size\."),
        (("run", "count", "--sise", "small"), r"'--sise' is no option.*; see exlstm study run --help\."),
        (("run", "count", "--only", "model=ten"), r"--only has model=ten; there are bad, one, two\."),
        (("run", "count", "--seeds", "0"), r"--seeds is 0; .*\."),
        (("run", "count", "--device", "gpu"), r"--device 'gpu' is not on this machine; .*\."),
        (("run",), r".*NAME.*; see exlstm study run --help\."),
        (("report", "count"), r"there are no results in study/results/count/small\.jsonl; get some with: .*\."),
        (("report", "nine"), r"there is no study 'nine' in study; .*\."),
        (("plan", "count", "--tflops", "0"), r"--tflops is 0; .*\."),
        (("report",), r"no study in study has a report of size small; run: exlstm study run NAME\."),
        (("compare", "count", "second"), r"there are no results in .*; name a study that has run, .*\."),
        (("compare", "count@x", "second"), r"'count@x' has a size that does not exist; .*\."),
        (("list", "--folder", "nowhere"), r"there are no studies in .*nowhere; .*\."),
    ],
)
def test_a_mistake_costs_a_sentence(here, refused, words, message):
    assert re.fullmatch(rf"exlstm study: {message}", refused("study", *words))
    assert not (here / "study" / "results").exists()


def test_ctrl_c_says_how_to_go_on(here, monkeypatch, capsys):
    def interrupted(*rest, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_local", interrupted)
    assert main(["study", "run", "count", "--only", "model=one,task=count", "--seeds", "3", "--overwrite"]) == 130
    out = capsys.readouterr().out
    assert out == "\nstopped; go on with: exlstm study run count --only model=one,task=count --seeds 3 --resume\n"
