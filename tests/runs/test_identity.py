"""What makes a run: which part of a config counts, in which form, and the first line in which two differ."""

import pytest
import torch

from anysigma.runs.checkpoint import FORMAT, write
from anysigma.runs.identity import asked_precision, canonical, digest, evaluation_name, first_difference, identity, said
from anysigma.runs.listing import GOES_ON, measured, point, reached, result

CONFIG = {
    "data": {"_target_": "a.Data", "root": "/here", "source": {"_target_": "a.Source", "cache": "/there", "pad": 2}},
    "schedule": {"_target_": "anysigma.diffusion.schedules.cosine.Cosine", "T": 1000}, "model": {}, "parameterization": {},
    "objective": {}, "optimizer": {"adam": {"lr": 1.0, "betas": (0.9, 0.999)}}, "ema": {}, "seed": 0, "init": None,
    "debug": False, "trainer": {"max_steps": 5, "gradient_clip_val": 1}, "sampler": {"steps": 50}, "study": {"n": 7},
}  # fmt: skip


def but(**changes):
    return {**CONFIG, **changes}


def test_places_on_the_disk_and_how_it_is_sampled_make_no_other_run():
    other = {**CONFIG["data"], "root": "/elsewhere", "source": {**CONFIG["data"]["source"], "cache": None}}
    same = but(data=other, sampler={}, study={}, trainer={"max_steps": 9, "gradient_clip_val": 1.0})
    assert identity(CONFIG) == identity(same)
    assert "root" not in identity(CONFIG)["data"] and identity(CONFIG)["data"]["source"] == {
        "_target_": "a.Source",
        "pad": 2,
    }
    for name in ("seed", "schedule", "init", "debug"):
        assert identity(but(**{name: "other"})) != identity(CONFIG)


def test_a_number_is_a_number_however_it_is_written():
    assert canonical({"a": [1.0, (2.0, 2.5)], "b": True}) == {"a": [1, [2, 2.5]], "b": True}
    assert isinstance(canonical(3.0), int) and canonical(True) is True
    assert digest(canonical(1e3)) == digest(canonical(1000))


@pytest.mark.parametrize(
    ("mine", "other", "found"),
    [
        ({"a": 1}, {"a": 1}, None), ({"a": {"b": 1}}, {"a": {"b": 2}}, ("a.b", 1, 2)), ({"a": 1}, {}, ("a", 1, None)),
        ({}, {"a": 1}, ("a", None, 1)), ({"a": 1}, {"a": True}, ("a", 1, True)), ({"a": [1]}, {"a": [2]}, ("a", [1], [2])),
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, ("a", 1, 2)), ({"a": {}}, None, ("", {"a": {}}, None)),
    ],
)  # fmt: skip
def test_the_first_difference(mine, other, found):
    assert first_difference(mine, other) == found


def test_values_are_said_in_short():
    assert said("anysigma.diffusion.schedules.cosine.Cosine") == "Cosine" and said(None) == "null" and said(0.5) == "0.5"
    assert said({"_target_": "a.b.C", "x": 1}) == "C" and said("1.2.3") == "3"


def test_an_evaluations_folder_is_a_function_of_what_is_measured():
    asked = {
        "study_node": {"n": 1},
        "sampler": {"steps": 50},
        "features": None,
        "which": "last",
        "weights": "ema",
        "data": {},
    }
    name = evaluation_name("run", "table", **asked)
    assert name.startswith("run/table-") and name == evaluation_name("run", "table", **{**asked, "data": {"root": None}})
    for change in ({"sampler": {"steps": 20}}, {"which": "best"}, {"weights": "raw"}, {"data": {"root": "/x"}},
                   {"study_node": {"n": 2}}, {"features": {"_target_": "x"}}, {"precision": "32-true"}):  # fmt: skip
        assert evaluation_name("run", "table", **{**asked, **change}) != name
    shapes = [{"_target_": "x", "shape": shape} for shape in (None, [1, 8, 8])]  # the run's, wherever it stands
    assert len({evaluation_name("run", "table", **{**asked, "features": one}) for one in shapes}) == 1


@pytest.mark.parametrize(
    "precision, tf32, own, asked",
    [
        ("auto", "auto", None, None), ("auto", False, "32-true", None), ("32-true", "auto", None, "32-true"),
        ("32-true", "auto", "32-true", None), ("32-true", True, "32-true", "tf32"), ("32-true", True, None, "32-true tf32"),
    ],
)  # fmt: skip
def test_a_precision_is_asked_for_by_name(precision, tf32, own, asked):
    assert asked_precision({"precision": precision, "tf32": tf32}, own) == asked


def test_a_folder_says_how_far_its_run_came_and_whose_it_is(tmp_path):
    assert reached(tmp_path, identity(CONFIG)) == 0
    content = {"config": CONFIG, "format": FORMAT, "step": 7, "state_dict": {"x": torch.zeros(1)}}
    content |= dict.fromkeys(GOES_ON)
    write({**content, "identity": identity(CONFIG)}, tmp_path / "checkpoints/last.ckpt")
    assert reached(tmp_path, identity(CONFIG)) == 7
    linear = {"_target_": "anysigma.diffusion.schedules.linear.Linear", "T": 1000}
    with pytest.raises(ValueError, match=r"^schedule=Linear: .* holds a run with schedule=Cosine; run=NAME starts another$"):
        reached(tmp_path, identity(but(schedule=linear)))
    with pytest.raises(ValueError, match=r"^seed=1: .* holds a run with seed=0;"):
        reached(tmp_path, identity(but(seed=1)))
    del content["loops"]
    write(content, tmp_path / "checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"no training can go on from it \(no loops\)"):
        reached(tmp_path, identity(CONFIG))


def test_a_run_points_to_its_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, evaluation = tmp_path / "logs/train/a", tmp_path / "logs/evaluate/a/fidelity-1"
    folder.mkdir(parents=True)
    evaluation.mkdir(parents=True)
    (evaluation / "grid.png").touch()
    point(folder, evaluation, ["fd 1"], step=20, weights_sha256="x")
    assert "fd 1" not in result(folder, again=False)
    assert result(folder, again=True).splitlines()[2:4] == ["fd 1", "logs/evaluate/a/fidelity-1/grid.png"]
    assert not measured(evaluation, step=20)
    (evaluation / "results.json").write_text((folder / "results.json").read_text())
    assert not measured(evaluation, step=20)  # it was cut before its page
    (evaluation / "report.html").touch()
    assert measured(evaluation, step=20) and not measured(evaluation, step=30)
    (evaluation / "results.json").write_text("{}")
    assert not measured(evaluation, step=20)
