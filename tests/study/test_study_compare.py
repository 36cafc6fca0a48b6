"""Two sets of results side by side."""

import pytest
from small_studies import count_study, row_of

from exlstm.study.compare import comparison, result_rows
from exlstm.study.contract import with_seed
from exlstm.study.results import ResultFile, result_path

STUDY = count_study()
ONE, ONE_HIGH, TWO = STUDY.planned("small")[:3]


def rows(*scores):
    return [row_of(STUDY, with_seed(run, seed), score=score) for run, seed, score in scores]


def test_medians_of_settings_that_both_have():
    a = rows((ONE, 0, 0.1), (ONE, 1, 0.2), (ONE, 2, 0.9), (ONE_HIGH, 0, 0.5))
    b = rows((ONE, 0, 0.75), (TWO, 0, 0.5))
    lines = comparison("before", a, "after", b).splitlines()
    assert lines == [
        "setting             before     after      difference",
        "one, count, lr=0.1  0.200 (3)  0.750 (1)  +0.550",
        "1 settings in both, 1 only in before, 1 only in after",
    ]
    assert comparison("b", b, "a", a).splitlines()[1].endswith("0.750 (1)  0.200 (3)  -0.550")


def test_a_run_counts_with_the_mean_of_its_tests():
    a = rows((ONE, 0, 0.0))
    a[0]["metrics"]["tests"].append({"score": 1.0})
    assert "0.500 (1)  0.250 (1)  -0.250" in comparison("a", a, "b", rows((ONE, 0, 0.25)))


def test_nothing_in_common():
    lines = comparison("a", rows((ONE, 0, 0.5)), "b", rows((TWO, 0, 0.5))).splitlines()
    assert len(lines) == 2
    assert lines[1] == "0 settings in both, 1 only in a, 1 only in b"


def test_results_by_name_size_and_file(tmp_path):
    for size, score in (("small", 0.25), ("quick", 0.5)):
        file = ResultFile(result_path(tmp_path, "count", size))
        file.start(resume=False, overwrite=False)
        file.add(row_of(STUDY, ONE, size=size, score=score))
        file.add(row_of(STUDY, TWO, size=size, error="x"))  # what has failed is no result
    found = {
        name: [row["metrics"]["tests"][0]["score"] for row in result_rows(name, tmp_path)]
        for name in ("count", "count@small", "count@quick", str(file.path))
    }
    assert found == {"count": [0.25], "count@small": [0.25], "count@quick": [0.5], str(file.path): [0.5]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("count@big", r"'count@big' has a size that does not exist; use one of quick, small, paper\."),
        ("count", r"there are no results in .*small\.jsonl; name a study that has run, NAME@SIZE, or a \.jsonl file\."),
        ("x.jsonl", r"there are no results in x\.jsonl; .*\."),
    ],
)
def test_what_is_not_there_is_said(tmp_path, name, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        result_rows(name, tmp_path)
