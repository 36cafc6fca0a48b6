"""Results on disk: whole lines only, the newest of a run, and never a number lost."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import count_study, row_of

from exlstm.study import results
from exlstm.study.results import ResultFile, provenance, result_path

STUDY = count_study()
RUNS = STUDY.planned("small")


@pytest.fixture
def file(tmp_path):
    found = ResultFile(result_path(tmp_path, "count", "small"))
    assert found.read() == {}
    assert found.start(resume=False, overwrite=False) == {}
    for run in RUNS[:3]:
        found.add(row_of(STUDY, run))
    return found


def test_rows_come_back(file, tmp_path):
    assert file.path == tmp_path / "results" / "count" / "small.jsonl"
    rows = file.read()
    assert list(rows.values()) == [row_of(STUDY, run) for run in RUNS[:3]]
    assert all(name == row["id"] for name, row in rows.items())
    assert all(json.loads(line)["format"] == 1 for line in file.path.read_text().splitlines())


def test_a_row_says_what_it_is_of():
    row = row_of(STUDY, replace(RUNS[1], seed=4), size="quick")
    assert {key: row[key] for key in ("study", "size", "seed", "facets", "config", "status")} == {
        "study": "count",
        "size": "quick",
        "seed": 4,
        "facets": {"model": "one", "task": "count"},
        "config": {"kind": "Count", "model": "one", "lr": 0.2, "seed": 4},
        "status": "done",
    }
    failed = row_of(STUDY, RUNS[0], error="Traceback\nRuntimeError: no luck")
    assert failed["status"] == "failed"
    assert "metrics" not in failed


def test_provenance_names_commit_machine_and_versions():
    found = provenance()
    assert set(found) == {"commit", "machine", "versions"}
    assert found["machine"]["cores"] >= 1
    assert {"python", "exlstm", "torch", "numpy"} <= set(found["versions"])
    json.dumps(found)


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_line_that_was_cut_off_is_dropped_and_written_over(file, cut):
    whole = file.path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    torn = whole[: -len(last)] + last[:cut]
    file.path.write_bytes(torn)
    assert len(file.read()) == 2
    assert file.path.read_bytes() == torn  # reading changes nothing
    assert len(file.start(resume=True, overwrite=False)) == 2
    file.add(row_of(STUDY, RUNS[4]))
    assert [row["id"] for row in file.read().values()] == [row_of(STUDY, RUNS[k])["id"] for k in (0, 1, 4)]
    assert file.path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"format": 2, "id": "x"}', '{"id": "x"}'])
def test_a_damaged_line_is_named(file, line):
    lines = file.path.read_text().splitlines()
    file.path.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    for read in (file.read, lambda: file.start(resume=True, overwrite=False)):
        with pytest.raises(ValueError, match=rf"^line 2 of {file.path} is no result of format 1; restore the file\.$"):
            read()


def test_results_are_kept_unless_somebody_says_otherwise(file):
    before = file.path.read_bytes()
    with pytest.raises(ValueError, match=r"has results of 3 runs; add to them with --resume, delete them with --overw"):
        file.start(resume=False, overwrite=False)
    with pytest.raises(ValueError, match=r"^--resume keeps the results, --overwrite deletes them; give one of them\.$"):
        file.start(resume=True, overwrite=True)
    assert file.path.read_bytes() == before
    assert len(file.start(resume=True, overwrite=False)) == 3
    assert file.path.read_bytes() == before
    assert file.start(resume=False, overwrite=True) == {}
    assert file.read() == {}


def test_resume_and_overwrite_need_no_results(tmp_path):
    for how in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        assert ResultFile(tmp_path / "new" / "small.jsonl").start(**how) == {}


def test_the_newest_line_of_a_run_counts(file):
    file.add(row_of(STUDY, RUNS[0], error="no luck"))
    assert [row["status"] for row in file.read().values()] == ["failed", "done", "done"]
    file.add(row_of(STUDY, RUNS[0], score=0.75))
    rows = file.read()
    assert len(rows) == 3
    assert rows[row_of(STUDY, RUNS[0])["id"]]["metrics"]["tests"][0]["score"] == 0.75
    assert len(file.path.read_text().splitlines()) == 5


def test_a_full_disk_costs_a_sentence(file, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(results, "sync", full)
        message = (
            rf"^could not write {file.path}: No space left on device; free some space, then go on with --resume\.$"
        )
        with pytest.raises(ValueError, match=message):
            file.add(row_of(STUDY, RUNS[4]))
    assert len(file.start(resume=True, overwrite=False)) >= 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_disk_that_is_really_full():
    with pytest.raises(ValueError, match=r"^could not write /dev/full: No space left on device; .* --resume\.$"):
        ResultFile(Path("/dev/full")).add(row_of(STUDY, RUNS[4]))


def test_a_row_is_on_the_disk_when_add_returns(file, monkeypatch):
    seen = []
    monkeypatch.setattr(results, "sync", lambda path: seen.append(path.read_bytes()))
    file.add(row_of(STUDY, RUNS[5]))
    assert seen == [file.path.read_bytes()]


def test_a_folder_that_cannot_be_made_costs_a_sentence(tmp_path):
    (tmp_path / "results").write_text("a file")
    file = ResultFile(result_path(tmp_path, "count", "small"))
    with pytest.raises(
        ValueError, match=r"^could not write .*small\.jsonl: .*; free some space or change the perm.*\.$"
    ):
        file.start(resume=False, overwrite=False)
