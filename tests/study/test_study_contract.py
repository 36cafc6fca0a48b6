"""Studies as files, and the names that runs go by."""

import hashlib
import json
import sys
from dataclasses import dataclass, fields, make_dataclass, replace

import pytest
from small_studies import COUNT, Quiet, count_study, training

from exlstm.mixers.attention import AttentionConfig
from exlstm.study import Lesson, stack
from exlstm.study.contract import find_study, load_study, run_id, setting_id, settings, studies, to_json, with_seed
from exlstm.study.runner import Work, work_on


@dataclass(frozen=True, kw_only=True)
class Simple:
    size: int = 3
    what: tuple[str, ...] = ("a", "b")
    lr: float = 0.5
    seed: int = 0


def test_a_run_is_named_by_a_hash_of_its_values_and_nothing_else():
    text = '{"kind": "Simple", "size": 4, "what": ["a"]}'  # what is as by default does not count
    run = Simple(size=4, what=("a",))
    assert run_id(run) == hashlib.sha256(text.encode()).hexdigest()[:16]
    order = [(name, Simple.__annotations__[name], getattr(Simple, name)) for name in ("what", "seed", "size", "lr")]
    turned = make_dataclass("Simple", order, frozen=True)
    assert run_id(turned(size=4, what=("a",))) == run_id(run)
    other = make_dataclass("Other", order, frozen=True)
    assert run_id(other(size=4, what=("a",))) != run_id(run)


def test_a_field_that_comes_later_leaves_the_names_of_old_results():
    later = make_dataclass("Simple", [("new", int, 7)], bases=(Simple,), frozen=True, kw_only=True)
    assert run_id(later(size=4)) == run_id(Simple(size=4))
    assert run_id(later(size=4, new=8)) != run_id(Simple(size=4))
    # inside of other values too
    nested = make_dataclass("Nested", [("inner", object, None)], frozen=True)
    assert run_id(nested((later(),))) == run_id(nested((Simple(),))) != run_id(nested((later(new=8),)))


def test_every_field_of_a_training_counts():
    run = training()
    block = run.architecture.blocks[0]
    changed = {
        "model": "another",
        "architecture": replace(run.architecture, blocks=(replace(block, mixer=replace(block.mixer, heads=2)),)),
        "lessons": (replace(run.lessons[0], dense=True),),
        "varied": (("a", "b"),),
        "enough": 0.9,
        "dtype": "bfloat16",
    }
    runs = [run]
    for field in fields(run):
        value = changed[field.name] if field.name in changed else getattr(run, field.name) + 1
        runs.append(replace(run, **{field.name: value}))
    runs.append(replace(run, varied=(("b", "a"),)))
    runs.append(replace(run, lessons=(replace(run.lessons[0], test=((12, 20),)),)))
    runs.append(replace(run, lessons=run.lessons * 2))
    assert len({run_id(each) for each in runs}) == len(runs)
    # a setting forgets the learning rate and the seed, and nothing else
    same = [each for each in runs if setting_id(each) == setting_id(run)]
    assert same == [run, replace(run, lr=run.lr + 1), replace(run, seed=run.seed + 1)]


def test_settings_are_groups_in_order():
    a, b = Simple(), Simple(size=4)
    runs = [a, b, replace(a, lr=0.1), replace(b, seed=2)]
    assert list(settings(runs)) == [[a, runs[2]], [b, runs[3]]]
    assert with_seed(a, 5) == replace(a, seed=5)

    @dataclass(frozen=True, kw_only=True)
    class NoRate:
        size: int = 3
        seed: int = 0

    assert setting_id(NoRate()) == setting_id(NoRate(seed=4)) != setting_id(NoRate(size=4))


def test_plain_data_of_a_config():
    found = to_json(training())
    assert json.loads(json.dumps(found)) == found
    lesson = {"task": "parity", "train": [3, 12], "test": [[12, 20], [3, 12]], "dense": False, "both_ways": False}
    assert found["lessons"] == [lesson]
    assert found["architecture"]["width"] == 8
    assert to_json({"a": (1, Lesson(task="s3", train=(3, 4), test=((3, 4),)))})["a"][1]["task"] == "s3"


# ------------------------------------------------------------------------------------------------------------ files


def test_a_study_is_read():
    study = count_study()
    assert study.question == "Which number is <b>largest</b> & why?"
    assert study.text.startswith('Expected: "ten"')
    assert study.text.endswith("at all.")
    assert study.source == COUNT
    assert len(study.planned("small")) == 6


def test_annotations_of_a_study_may_be_text():
    text = COUNT.replace("import os\n", "from __future__ import annotations\nimport os\n", 1)
    assert len(load_study("later", text).planned("small")) == 6


HEAD = '"""A question?"""\n'
RUNS = "def runs(size):\n    return []\n"
REPORT = "def report(results):\n    return []\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (HEAD + "def runs(size) return", r"study s cannot be read \(SyntaxError: .*\); mend its file\."),
        (HEAD + "import no_such_thing", r"study s cannot be read \(ModuleNotFoundError: .*no_such_thing.*\); .*\."),
        (HEAD + "1 / 0", r"study s cannot be read \(ZeroDivisionError: division by zero\); mend its file\."),
        (RUNS + REPORT, r"study s has no docstring; see `exlstm\.study\.contract`\."),
        (HEAD + REPORT, r"study s has no runs; see .*\."),
        (HEAD + RUNS, r"study s has no report; see .*\."),
        (HEAD + RUNS + "report = 3", r"study s has no report; see .*\."),
    ],
)
def test_a_text_that_is_no_study_is_refused(source, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        load_study("s", source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return [Count(", "return []; [Count("), r"study count has no runs of size small; use another size\."),
        (("(0.1, 0.2)]", "(0.1, 0.1)]"), r"study count lists a run twice \(.*'one'.*\); list every run once\."),
        (("return [Count(", "return [3]; [Count("), r"study count lists 3, which is no run; .*`Training`.*\."),
        (("lr=lr) for model", "lr=0.1, seed=round(10 * lr)) for model"), r"study count lists seeds of a setting .*\."),
    ],
)  # fmt: skip
def test_a_list_of_runs_that_cannot_be_is_refused(change, message):
    assert COUNT.count(change[0]) == 1
    with pytest.raises(ValueError, match=rf"^{message}$"):
        count_study(COUNT.replace(*change)).planned("small")


def test_a_folder_of_studies(tmp_path):
    with pytest.raises(ValueError, match=r"^there are no studies in .*; go to a clone of exlstm, .* --folder\.$"):
        studies(tmp_path / "nowhere")
    for name in ("b", "a", "_hidden"):
        (tmp_path / f"{name}.py").write_text(COUNT)
    assert list(studies(tmp_path)) == ["a", "b"]
    assert find_study("b", tmp_path).name == "b"
    with pytest.raises(ValueError, match=r"^there is no study 'c' in .*; there are a, b\.$"):
        find_study("c", tmp_path)


def test_studies_are_utf8(tmp_path):
    (tmp_path / "count.py").write_bytes(COUNT.replace("any", "μ").replace("Which", "Wèlche").encode())
    assert find_study("count", tmp_path).question.startswith("Wèlche")


# ---------------------------------------------------------------------------------------------------------- workers


def test_a_worker_executes_the_text_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = count_study()
    run = with_seed(study.planned("small")[3], 7)
    row = work_on(Work(study.name, study.source, "small", run_id(run), 7), Quiet())
    assert row["metrics"]["tests"][0]["score"] == run.lr + 0.007
    other = study.source.replace("self.seed / 1000", "self.seed / 10")
    row = work_on(Work(study.name, other, "small", run_id(run), 7), Quiet())
    assert row["metrics"]["tests"][0]["score"] == run.lr + 0.7
    assert [line.split()[:3] for line in (tmp_path / "log.txt").read_text().splitlines()] == [["two", "0.2", "7"]] * 2


def test_the_module_of_a_study_can_be_found_by_its_classes():
    study = count_study(name="findable")
    assert sys.modules[type(study.planned("small")[0]).__module__].runs is study.runs


def test_architectures_are_part_of_a_run():
    one, two = (training(architecture=stack((AttentionConfig(heads=heads),), width=8)) for heads in (1, 2))
    assert run_id(one) != run_id(two)
