"""The page and the pictures of a report: all of it is in them, whatever its letters."""

import io
import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from small_studies import COUNT, count_study, row_of

from exlstm.models.explain import aligned
from exlstm.study import Claim, Results, figures
from exlstm.study.contract import run_id, with_seed
from exlstm.study.figures import png
from exlstm.study.report import terminal_text, write_report, write_summary
from exlstm.study.results import result_path

STUDY = count_study()
FOUND = 'What <i>I</i> found & "why".\n\nA second paragraph, of `a < b`.'


def something_on(data):
    """A PNG, and more on it than one colour."""
    assert data.startswith(b"\x89PNG\r\n")
    picture = matplotlib.image.imread(io.BytesIO(data))
    return picture.shape[0] > 100 and picture.shape[1] > 100 and bool(np.ptp(picture[..., :3]) > 0.5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    runs = STUDY.planned("small")
    rows = {run_id(run): row_of(STUDY, run, validation=run.lr) for run in runs}
    rows |= {run_id(run): row_of(STUDY, run, score=0.875) for run in (with_seed(runs[1], seed) for seed in (1, 2))}
    failed = with_seed(runs[3], 1)
    rows[run_id(failed)] = row_of(STUDY, failed, error="RuntimeError: <oh>")
    path = result_path(folder, "count", "small")
    path.parent.mkdir(parents=True)
    path.with_name("found.md").write_text(FOUND, encoding="utf-8")
    results = Results(STUDY, "small", rows, 2)
    return folder, results, write_report(results, folder)


CLAIMS = {
    "ten <u>less</u> & |so| on": "not decided",
    "a claim that holds": "holds",
    "a claim that fails": "does not hold",
}


def test_files_lie_beside_the_results(written):
    folder, _, page = written
    place = folder / "results" / "count"
    assert page == place / "small.md"
    assert {path.name for path in place.iterdir()} == {"found.md", "small.md", "small-rise.png", "small-rise.pdf"}
    assert something_on((place / "small-rise.png").read_bytes())
    printed = (place / "small-rise.pdf").read_bytes()
    assert printed.startswith(b"%PDF-")
    assert b"CreationDate" not in printed  # the same results give the same file


def test_the_markdown_page_says_all(written):
    _, results, path = written
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Which number is <b>largest</b> & why?\n\nExpected:")
    assert f"## What was found\n\n{FOUND}\n" in text
    assert "## A line & <more>\n\n![A line & <more>](small-rise.png)\n\na note < here\n" in text
    for words in ('Expected: "ten" & not <i>nine</i>.', "Paper: none | at all.", "abc1234 (9 runs)", "it is not so",
                  "2 cores of a <fast> one (9 runs)",
                  "3 settings, 2 reported runs done, 1 failed, 3 not run"):  # fmt: skip
        assert words in text, words
    for claim, verdict in CLAIMS.items():
        cell = claim.replace("|", "\\|")
        assert f"| {cell} | **{verdict}** |" in text
    assert "\n\na note > there\n\n## What a run costs\n\n| model | parameters |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert "| model | a\\|b |\n|---|---|\n| one | 0.88 (0/2) |\n| two | failed |\n" in text.replace(
        results.cell(model="two").text(), "failed")  # fmt: skip


def test_a_summary_has_the_claims_and_pictures_of_all(written, tmp_path):
    _, results, _ = written
    other = Results(count_study(name="other"), "small", results.rows, 2)
    (tmp_path / "results").mkdir()
    page = write_summary([results, other], tmp_path)
    assert page == tmp_path / "results" / "small.md"
    text = page.read_text(encoding="utf-8")
    assert "Size small: 2 not decided, 2 holds, 2 does not hold." in text
    for name in ("count", "other"):
        assert f"| [{name}](" + f"{name}/small.md) | a claim that fails | **does not hold** | it is not so |\n" in text
        assert f"![A line & <more>]({name}/small-rise.png)" in text
    assert text.count("## Which number is <b>largest</b> & why?") == 2


def test_lines_in_cells_do_not_break_tables(tmp_path):
    study = count_study(COUNT.replace('evidence="it is not so"', 'evidence="first\\nsecond"'))
    run = study.planned("small")[0]
    page = write_report(Results(study, "small", {run_id(run): row_of(study, run)}, 1), make(tmp_path))
    assert "| **does not hold** | first second |" in page.read_text()


def make(folder):
    result_path(folder, "count", "small").parent.mkdir(parents=True)
    return folder


def test_the_terminal_is_told_claims_and_tables(written):
    text = terminal_text(written[1])
    for claim, verdict in CLAIMS.items():
        assert f"[{verdict}] {claim}" in text
    for words in ("Scores | <all>\nmodel  a|b\none    0.88 (0/2)\n", "it is not so", "Which number", "3 settings"):
        assert words in text


def test_what_was_found_is_about_the_small_size(tmp_path):
    run = STUDY.planned("quick")[0]
    rows = {run_id(run): row_of(STUDY, run, size="quick")}
    (make(tmp_path) / "results" / "count" / "found.md").write_text(FOUND)
    page = write_report(Results(STUDY, "quick", rows, 1), tmp_path)
    assert page.name == "quick.md"
    assert "found" not in page.read_text()


def test_without_results_there_is_no_report(tmp_path):
    with pytest.raises(
        ValueError, match=r"^there are no results in .*small\.jsonl; .*: exlstm study run count --size small"
    ):
        write_report(Results(STUDY, "small", {}, 5), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_the_same_every_time(written):
    folder, results, _ = written
    before = {path: path.read_bytes() for path in (folder / "results" / "count").iterdir()}
    write_report(results, folder)
    assert {path: path.read_bytes() for path in before} == before


def test_verdicts_and_columns():
    assert [Claim(text="", holds=holds).verdict for holds in (True, False, None)] == [
        "holds",
        "does not hold",
        "not decided",
    ]
    assert aligned([("a", "bbb", "c"), ("aaa", "b", "")]) == ["a    bbb  c", "aaa  b"]


# --------------------------------------------------------------------------------------------------------- pictures


def test_a_heat_map_has_every_number_in_its_place():
    figure = Figure()
    figures.heat_map(figure, [[0.25, None, 1.0], [0.5, 0.75, -0.1]], ["a", "b"], ["x_y", "z", "w"])
    axes = figure.axes[0]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "0.25", (1, 0): "–", (2, 0): "1.00", (0, 1): "0.50", (1, 1): "0.75", (2, 1): "-0.10"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x y", "z", "w"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    shown = axes.images[0].get_array()
    assert shown.shape == (2, 3)
    assert float(shown[1, 0]) == 0.5
    assert something_on(png(lambda f: figures.heat_map(f, [[None]], ["a"], ["b"]), (4, 3)))


def test_strips_show_every_seed_and_the_median():
    figure = Figure()
    panels = {"one": {"m": [0.1, 0.9, 0.2], "n": []}, "two": {"m": [0.5], "n": [1.0, 0.8]}, "three": {"n": [0.3]}}
    figures.strips(figure, panels, columns=2)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["one", "two", "three"]
    dots = {tuple(line.get_xdata()) for line in shown[0].lines if line.get_marker() == "o"}
    assert dots == {(0.1, 0.9, 0.2), ()}
    assert [0.2, 0.2] in [list(line.get_xdata()) for line in shown[0].lines]
    assert something_on(png(lambda f: figures.strips(f, panels), (6, 3)))


def test_lines_go_through_medians():
    figure = Figure()
    series = {"a": [(1, [0.1, 0.9, 0.2]), (2, []), (4, [0.5])], "b": [(1, []), (2, [])]}
    figures.lines(figure.subplots(), series, x_label="x", y_label="y", log_x=True)
    axes = figure.axes[0]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] == [([1, 4], [0.2, 0.5]), ([], [])]
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.get_xscale() == "log"
    assert axes.lines[0].get_color() == figures.color(0) != axes.lines[1].get_color()
