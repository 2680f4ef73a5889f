import json
from dataclasses import replace

import pytest

from anysigma.metrics.anchors import Anchor
from anysigma.report.figures import collect, figures, number, phrase, run_of
from anysigma.report.ranking import compare
from anysigma.report.results import Result, Row, rows_of, write_results

CARD = {
    "checkpoint": "logs/train/a/checkpoints/last.ckpt", "step": 100, "weights": "ema 0.99", "weights_sha256": "00",
    "seed": 0, "block": 8, "shape": [1, 8, 8], "n": 100, "sets": 3, "features": "digits",
    "data_hash": "d", "versions": {"torch": "2"},
}  # fmt: skip
PARAMS = {"sampler": "Generalized", "S": 10, "sigma": "Eta(eta=0.0)", "tau": "Uniform()", "clip": True}


BESIDE = {"real images": Anchor(8.0, 1.0, 0.1, 100)}


def written(folder, *figures, metric="fd_digits", better=-1, card=None, **content):
    """results.json with a row for each (value, error, params that differ), three sets of 100 behind each."""
    rows = []
    for value, error, params in figures:
        params = {**PARAMS, **params}
        spread = (error or 0) * 3**0.5 * (-1) ** int(value)  # no two of them vary together
        sets = [value - spread, value, value + spread] if error is not None else [value]
        facts = {"better": better, "sets": sets, "anchors": BESIDE, "card": {**params, **(card or {})}}
        rows.append(Row(metric, value, error, 100, params, **facts))
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.json", [Result("fidelity", rows=rows, card=CARD)])
    known = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**known, **content}))
    return str(folder)


def lines(text):
    return [line.split() for line in text.splitlines()]


def test_the_best_comes_first_and_what_cannot_be_told_apart_says_so(tmp_path):
    a = written(tmp_path / "a", (40.0, 1.0, {"S": 10}))
    b = written(tmp_path / "b", (12.0, 1.0, {"S": 50}), card={"checkpoint": "logs/train/b/checkpoints/last.ckpt", "step": 7})
    c = written(tmp_path / "c", (13.0, 1.0, {"S": 100, "sigma": "SigmaHat()"}))
    text = compare([a, b, c])
    assert [line[1] for line in lines(text)[2:5]] == ["b", "c", "a"]
    assert "not distinguishable from 1" in text.splitlines()[3]
    assert "distinguishable" not in text.splitlines()[4]
    assert "real images 8.0 ± 1.0" in text
    assert "σ̂" in text


def test_an_expensive_samplers_fewer_sets_keep_it_in_the_ranking(tmp_path):
    few = {"sets": 2, "fewer_sets": "2 in place of 5: 1,000 network evaluations an image"}
    a, b = written(tmp_path / "a", (40.0, 1.0, {"S": 10})), written(tmp_path / "b", (12.0, 1.0, {"S": 1000}), card=few)
    text = compare([a, b])
    assert [line[1] for line in lines(text)[2:4]] == ["b", "a"] and "Welch" in text and "in pairs" not in text


def test_higher_is_better_for_precision(tmp_path):
    a = written(tmp_path / "a", (0.2, 0.01, {}), metric="precision_digits", better=1)
    b = written(tmp_path / "b", (0.7, 0.01, {}), metric="precision_digits", better=1)
    assert [line[1] for line in lines(compare([a, b]))[2:4]] == ["b", "a"]


@pytest.mark.parametrize(
    ("card", "params", "line"),
    [
        ({"n": 500}, {}, "n: 100 | 500"),
        ({"data_hash": "e"}, {}, "data_hash: d | e"),
        ({"weights": "raw"}, {}, "weights: ema 0.99 | raw"),
        ({"versions": {"torch": "3"}}, {}, "versions.torch: 2 | 3"),
        ({}, {"tau": "Quadratic()"}, "tau: Uniform() | Quadratic()"),
        ({}, {"clip": False}, "clip: True | False"),
    ],
)
def test_cards_that_differ_are_not_ranked(tmp_path, card, params, line):
    a, b = written(tmp_path / "a", (20.0, 1.0, {})), written(tmp_path / "b", (12.0, 1.0, params), card=card)
    with pytest.raises(ValueError, match=r"the cards of a \| b differ") as error:
        compare([a, b])
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    name = line.split(":")[0].split(".")[0]
    assert f"across=[{name}]" in str(error.value)
    assert f"Ranked across {name}" in compare([a, b], [name])


def test_only_the_same_protocol_is_matched_within_a_table(tmp_path):
    both = [(20.0, 1.0, {"tau": "Uniform()"}), (30.0, 1.0, {"tau": "Quadratic()"})]
    text = compare([written(tmp_path / "a", *both), written(tmp_path / "b", (12.0, 1.0, {}))])
    assert "30.0" not in text
    assert "1 more without a counterpart" in text
    text = compare([written(tmp_path / "a", *both), written(tmp_path / "b", *both)])
    assert "Fidelity, uniform τ, lower is better" in text and "Fidelity, quadratic τ, lower is better" in text


def test_nothing_in_common_or_one_alone_is_one_line(tmp_path):
    a, b = written(tmp_path / "a", (1.0, None, {})), written(tmp_path / "b", (1.0, None, {}), metric="fid")
    with pytest.raises(ValueError, match="no figure in common: a has fd_digits; b has fid"):
        compare([a, b])
    with pytest.raises(ValueError, match="two evaluations"):
        compare([a])


def test_a_metric_of_which_neither_way_is_better_is_listed_and_not_ranked(tmp_path):
    a, b = (written(tmp_path / name, (value, 1.0, {}), better=0) for name, value in (("a", 9.0), ("b", 1.0)))
    text = compare([a, b])
    assert "not ranked" in text
    assert [line[1] for line in lines(text)[2:4]] == ["a", "b"]


def test_two_that_disagree_which_way_is_better_are_refused_in_one_line(tmp_path):
    a = written(tmp_path / "a", (9.0, 1.0, {}))
    b = written(tmp_path / "b", (1.0, 1.0, {}), better=1)
    for refused in (lambda: compare([a, b]), lambda: figures(collect([a, b]))):
        with pytest.raises(
            ValueError, match=r"fidelity fd_digits: lower is better in .*/a/.*, higher is better in"
        ) as error:
            refused()
        assert "\n" not in str(error.value)


def test_a_row_comes_back_from_results_json_with_its_whole_card(tmp_path):
    row = Row("wobble", 1.5, 0.5, 3, {"S": 2}, 1, [1.0, 2.0], None, BESIDE, "Wobbliness", "digits", True, {"S": 2})
    write_results(tmp_path / "results.json", [Result("new", rows=[row], card={"n": 3})])
    ((_, content),) = collect(str(tmp_path))
    assert content["format"] == 3
    assert list(rows_of(content)) == [("new", replace(row, card={"n": 3, "S": 2}))]
    assert row.name == "Wobbliness in digits features"
    assert Row("images_per_second", 1.0).name == "images per second"
    with pytest.raises(ValueError, match="wobble: better=2"):
        Row("wobble", 1.0, better=2)


def test_an_older_format_is_refused_with_what_to_do(tmp_path):
    written(tmp_path, (9.0, 1.0, {}), format=1)
    with pytest.raises(ValueError, match=r"results\.json: format 1, this version reads 3; measure again: ") as error:
        collect(str(tmp_path))
    assert "\n" not in str(error.value)


def test_collect_finds_files_folders_and_globs_and_passes_over_trainings(tmp_path):
    a = written(tmp_path / "x" / "a", (1.0, 0.1, {}))
    written(tmp_path / "x" / "b", (1.0, 0.1, {}))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "results.json").write_text('{"format": 3, "step": 3, "lines": []}')
    assert len(collect(a)) == len(collect(f"{a}/results.json")) == 1
    assert len(collect(str(tmp_path))) == len(collect(str(tmp_path / "*"))) == len(collect([a, str(tmp_path)])) == 2
    for nothing in (tmp_path / "train", tmp_path / "missing", tmp_path / "y*"):
        with pytest.raises(ValueError, match=r"no results\.json"):
            collect(str(nothing))
    written(tmp_path / "x" / "c", format=9)
    with pytest.raises(ValueError, match="format 9"):
        collect(str(tmp_path))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (867.8776, 3.619, "867.9 ± 3.6"), (148064.3, 2542.2, "148064 ± 2542"), (1.99e-6, 3e-8, "1.99e-06 ± 3e-08"),
        (0, None, "0"), (None, None, "–"), (12.3, None, "12.30"), (0.5, 0.0, "0.5000"), (float("nan"), 1, "nan"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_their_error_leaves(value, error, text):
    assert number(value, error) == text


def test_names_as_a_person_reads_them():
    assert phrase(PARAMS) == "S = 10, η = 0, uniform τ, clipped"
    assert phrase({"sigma": "SigmaHat()", "clip": False}) == "σ̂, not clipped"
    assert phrase({"sampler": "DPMSolverPP", "S": 5}) == "DPMSolverPP, S = 5"
    assert run_of("logs/train/a/checkpoints/last.ckpt") == "a"
    assert run_of("logs/train/a/checkpoints/best.ckpt") == "a/best"
