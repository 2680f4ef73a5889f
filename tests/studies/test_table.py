"""Study `table`: what it lays out, what it marks, what it repeats of the paper."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from anysigma.data.digits import Digits
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Quadratic, Trailing, Uniform
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.metrics.anchors import Anchor
from anysigma.metrics.features import ClassifierFeatures
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.results import Result, Row
from anysigma.studies.base import CannotServe, Model
from anysigma.studies.table import (
    PAPER,
    Grid,
    SamplerTable,
    best,
    change,
    changes,
    curves,
    paper_cells,
    paper_change,
    papers_own,
    values,
)  # fmt: skip

ROOT = Path(__file__).parents[2]


UNIFORM = {"steps": 50, "tau": Uniform(), "clip": False}
ROWS = {
    "ddim": Generalized(**UNIFORM, sigma=Eta(0.0)),
    "ddpm": Generalized(**UNIFORM | {"steps": None}, sigma=Eta(1.0)),
    "ddpm_large": Generalized(**UNIFORM | {"clip": True}, sigma=SigmaHat()),
}
SOLVER = DPMSolverPP(**UNIFORM)


def table(**changed):
    facts = dict(
        steps=[10, 20, 2000], samplers=ROWS, taus={}, full=False, n=None, sets=2, splits=2, seed=0, block=8, cache=None,
    )  # fmt: skip
    return SamplerTable(**{**facts, **changed})


def shown(given, T=1000, **changed):
    """(τ, name, S) of every cell."""
    return [(cell.tau, cell.label, cell.S) for cell in table(**changed).cells(given, T)]


def test_the_cells_are_the_grid_and_a_given_sampler_that_differs_in_s_alone_is_one_of_them():
    cells = list(table().cells(replace(ROWS["ddim"], steps=7), 1000))
    assert [(c.label, c.S) for c in cells] == [(one, S) for one in ("η = 0", "η = 1", "σ̂") for S in (10, 20)]
    assert [c.sampler for c in cells[::2]] == [replace(one, steps=10) for one in ROWS.values()]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (SOLVER, ["η = 0", "η = 1", "σ̂", "DPMSolverPP"]),
        (replace(ROWS["ddim"], clip=True), ["η = 0, not clipped", "η = 1", "σ̂", "η = 0, clipped"]),
        (replace(ROWS["ddim"], tau=Trailing()), ["η = 0, uniform τ", "η = 1", "σ̂", "η = 0, trailing τ"]),
        (replace(ROWS["ddim"], sigma=Eta(0.3)), ["η = 0", "η = 1", "σ̂", "η = 0.3"]),
    ],
)
def test_the_given_sampler_has_a_row_and_names_say_what_differs(given, names):
    assert list(dict.fromkeys(label for _, label, _ in shown(given))) == names


def test_names_follow_from_the_fields_and_not_from_the_keys():
    renamed = {f"my {name}": one for name, one in ROWS.items()}
    assert shown(SOLVER, samplers=renamed) == shown(SOLVER)


def test_taus_make_a_table_each_and_an_explicit_list_is_one_cell_of_its_own():
    taus = {"even": Uniform(), "late": Trailing()}
    given = replace(ROWS["ddim"], tau=Quadratic())  # under every rule it is the row that is there
    expected = [(tau, one, S) for tau in taus for one in ("η = 0", "η = 1", "σ̂") for S in (10, 20)]
    assert shown(given, taus=taus) == expected
    listed = replace(ROWS["ddim"], tau=[1000, 500, 3])
    cells = list(table(taus=taus).cells(listed, 1000))
    own = [cell for cell in cells if cell.sampler == listed]
    assert [(cell.tau, cell.S) for cell in own] == [("even", 3), ("late", 3)] and len(cells) == 14


def test_full_adds_all_steps_and_no_s_exceeds_t():
    ddim = ROWS["ddim"]
    assert table(full=True).steps_of(ddim, 1000) == [10, 20, 1000]
    assert table().steps_of(ddim, 10) == [10]
    assert table().steps_of(ddim, 4) == [4]


def test_a_row_of_one_cell_leaves_the_others_columns_empty():
    setting = {"sampler": "Generalized", "sigma": "Eta(eta=0.0)", "tau": "Uniform()", "clip": False}
    other = {"sampler": "DPMSolverPP", "tau": "Explicit(values=(9, 3))", "clip": True}
    cells = {("η = 0", S): distances(10.0 + S, params=setting | {"S": S}) for S in (10, 20)}
    found = Grid("", cells | {("mine", 2): distances(5.0, params=other | {"S": 2})}, REAL)
    table = values(found)
    assert table.rows == [
        ["η = 0", "false", "", "20.00 ± 0.10", "30.00 ± 0.10"], ["mine", "true", "5.00 ± 0.10", "", ""],
    ]  # fmt: skip
    assert table.note == "Lower is better. 360 real images in their place: real images 2.5 (one draw ± 0.9, 200 draws)."
    assert changes(found).rows == [["η = 0", "", "–", "–", "", "-33 %*"], ["mine", "", "", "", "", ""]]
    assert "1 comparison;" in changes(found).note and "paper" not in str(changes(found).columns)
    assert [curve.label for curve in curves(found).curves] == ["η = 0", "mine", "real images"]


def test_a_grid_is_named_for_its_tau_and_a_sampler_that_cannot_clip_has_no_word_for_it():
    cells = {("mine", 10): distances(5.0, params={"sampler": "Mine", "tau": "Uniform()", "S": 10})}
    assert Grid("even", cells, REAL).name == "table_even" and Grid("", cells, REAL).name == "table"
    assert Grid("", cells, REAL).clips == {"mine": ""} and Grid("", cells, REAL).title == ", uniform τ"


REAL = SimpleNamespace(
    features=SimpleNamespace(metric="fd_digits"), data=SimpleNamespace(source=None, train=range(1437)), n=360
)


def distances(value, shift=(-0.1, 0.0, 0.1), **facts):
    """A row of three sets whose mean is `value`."""
    sets = [value + one * 3**0.5 for one in shift]
    mean, error = mean_and_error(sets)
    beside = {"real images": Anchor(2.5, 0.9, 0.06, 200)}
    return Row("fd_digits", mean, error, 360, sets=sets, anchors=beside, **facts)


def test_a_change_is_marked_by_pairs_and_never_from_one_set():
    one, near = distances(10.0, shift=(-1, 0, 1)), distances(10.3, shift=(-1.02, 0, 1.02))
    assert change(near, one, []) == "+3 %*"  # unpaired the two would be far within their errors
    assert change(distances(10.3, shift=(1, 0, -1)), one, []) == "+3 %"
    assert change(one, one, []) == "–"
    alone = Row("fd_digits", 5.0, sets=[5.0])
    verdicts = []
    assert change(alone, one, verdicts) == "-50 %" and verdicts == [None]


CIFAR10 = type("CIFAR10", (), {})


@pytest.mark.parametrize(
    ("changed", "own"),
    [
        ({}, True), ({"n": 10_000}, False), ({"metric": "fd_cifar_resnet56"}, False), ({"train": range(60_000)}, False),
        ({"source": object()}, False), ({"tau": "Uniform()"}, False), ({"clip": True}, False),
        ({"sigma": "Eta(eta=0.3)"}, False), ({"weights": "not the published ones"}, False),
        ({"sigma": "SigmaHat()"}, False), ({"sigma": "SigmaHat()", "clip": True}, True),
    ],
)  # fmt: skip
def test_the_papers_rows_stand_beside_its_own_protocol_alone(changed, own):
    facts = {"metric": "fid", "source": CIFAR10(), "train": range(50_000), "n": 50_000} | changed
    card = {"features_weights": facts.get("weights", "published")}
    real = SimpleNamespace(
        features=SimpleNamespace(metric=facts["metric"], card=lambda: card),
        n=facts["n"],
        data=SimpleNamespace(source=facts["source"], train=facts["train"]),
    )  # fmt: skip
    setting = {"sampler": "Generalized", "sigma": "Eta(eta=0.0)", "tau": "Quadratic()", "clip": False, "S": 10} | changed
    assert papers_own(setting, real) == own
    found = Grid("", {("a", 10): distances(13.0, params=setting)}, real)
    assert any("paper" in row[0] for row in values(found).rows) == own
    assert any("paper" in curve.label for curve in curves(found).curves) == own


def test_the_best_cell_is_said_with_what_it_cannot_be_told_from():
    cells = [distances(10.0, params={"S": 1}), distances(10.4, params={"S": 2}), distances(30.0, params={"S": 3})]
    result = Result("table", rows=[*cells, Row("kid_digits", 0.0, params={"S": 3})])
    best(result, "fd_digits")
    assert [row.key for row in result.rows] == [True, False, False, False]
    assert "S = 1, chosen from 3 by its value" in result.lines[0]
    cells[1] = distances(10.4, shift=(0.1, 0.0, -0.1), params={"S": 2})
    result = Result("table", rows=cells)
    best(result, "fd_digits")
    assert "not distinguishable from 1 of the others, fewer than" in result.lines[0]
    result = Result("table", rows=[Row("fd_digits", value, sets=[value], params={"S": 1}) for value in (1.0, 2.0)])
    best(result, "fd_digits")
    assert "distinguishable" not in result.lines[0]


def test_the_papers_figures_stand_at_their_s():
    assert paper_cells("σ̂", [20, 30, 1000]) == ["133.37", "", "3.17"]
    assert paper_change("η = 1", "η = 0", 10) == "+207 %" and paper_change("η = 1", "η = 0", 30) == ""
    assert paper_change(None, "η = 0", 10) == paper_change("η = 1", None, 10) == ""
    assert all(len(row) == 5 for row in PAPER.values())


@pytest.mark.parametrize("steps", [[], [0, 10]])
def test_an_impossible_grid_is_one_line(steps):
    with pytest.raises(ValueError, match="whole numbers from 1"):
        table(steps=steps)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 steps in a folder of its own."""
    folder = tmp_path_factory.mktemp("trained")
    light = ("model.channels=8", "model.multipliers=[1]")
    command(folder, "train.py", "debug=true", "logger=csv", "run=small", *light)
    return folder


def command(folder, script, *words):
    done = subprocess.run([sys.executable, ROOT / script, *words], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# η = 0 and σ̂ alone
FEW = ("~study.samplers.eta_02", "~study.samplers.eta_05", "~study.samplers.ddpm", "sampler.clip=false")


def test_the_table_is_printed_recorded_with_a_card_a_setting_and_goes_on_from_its_shards(trained):
    words = ["checkpoint=small", "study=table", "debug=true", "logger=csv", "study.steps=[2,4]", *FEW]
    said = command(trained, "evaluate.py", *words)
    assert "fd_digits over S, uniform τ" in said and "σ̂" in said
    (path,) = (trained / "logs/evaluate/small").glob("table-*/results.json")
    results = json.loads(path.read_text())
    distances = [row for row in results["rows"] if row["metric"] == "fd_digits"]
    assert len(distances) == 4 and len({row["card"] for row in distances}) == 4
    assert [results["cards"][row["card"]]["clip"] for row in distances] == [False, False, True, True]
    shards = sorted(path.parent.glob("shards/*/*.npy"))
    kept, lost = shards[0], shards[1]
    stamp, whole = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()  # as if the evaluation had been cut here
    command(trained, "evaluate.py", *words)
    assert kept.stat().st_mtime_ns == stamp and lost.read_bytes() == whole
    assert json.loads(path.read_text())["rows"] == results["rows"]


def test_a_solver_of_one_file_has_a_row_in_the_table_and_a_strip_in_the_trajectory(trained):
    words = ["checkpoint=small", "debug=true", "logger=csv", "sampler=dpmpp", "sampler.steps=4", "study.steps=[2,4]"]
    said = command(trained, "evaluate.py", *words, "study=table", *FEW[:3])
    assert "DPMSolverPP" in said
    (path,) = [p for p in (trained / "logs/evaluate/small").glob("table-*/results.json") if "DPMSolverPP" in p.read_text()]
    rows = [row for row in json.loads(path.read_text())["rows"] if row["metric"] == "fd_digits"]
    assert [(row["params"]["sampler"], row["params"]["S"]) for row in rows] == [
        (one, S) for one in ("Generalized", "Generalized", "DPMSolverPP") for S in (2, 4)
    ]
    assert len(list(path.parent.glob("shards/*"))) == 6
    command(trained, "evaluate.py", *words[:-1], "study=trajectory")
    (path,) = (trained / "logs/evaluate/small").glob("trajectory-*/results.json")
    [section] = json.loads(path.read_text())["sections"]
    assert "η = 0; η = 1; DPMSolverPP." in section["pictures"]["trajectory_steps"]["caption"]


def test_a_study_that_a_sampler_cannot_serve_ends_in_one_line(trained):
    words = ["checkpoint=small", "debug=true", "logger=csv", "sampler=dpmpp", "sampler.steps=4", "study=reconstruction"]
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", *words], cwd=trained, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: DDIM's step encodes, and DPMSolverPP has no encoder; use sampler=ddim"


@pytest.mark.parametrize("sets", [1, 3])
def test_every_cell_begins_with_the_same_noise_and_every_set_with_its_own(tmp_path, sets):
    """In one step no rule adds noise: from the same x_T all samplers make the same images, and no set is another's."""
    source = Digits()
    data = SimpleNamespace(train=source.train, held_out=source.held_out, hash="h", source=source, shape=(1, 8, 8))
    denoiser = Denoiser.of(lambda x_t, t: 0.9 * x_t, Linear())
    study = table(steps=[1], samplers={**ROWS, "ddpm_large": replace(ROWS["ddpm"], sigma=Eta(0.5))}, sets=sets, n=40)
    model = Model(denoiser, (1, 8, 8), {"step": 0})
    result = study.run(model, ROWS["ddim"], data, ClassifierFeatures("digits", (1, 8, 8)), tmp_path)
    found = [row for row in result.rows if row.metric == "fd_digits"]
    assert len(found) == 3 and all(row.sets == found[0].sets for row in found)
    assert len(set(found[0].sets)) == sets == len(found[0].sets)
    assert sum(row.key for row in result.rows) == 1
    if sets == 1:
        assert "No comparison" in result.tables[1].note and "*" not in str(result.tables[1].rows)


def test_cells_that_a_step_refuses_are_left_out_with_their_reason(tmp_path):
    model = Model(Denoiser.of(lambda x_t, t: 0.9 * x_t, Cosine()), (1, 8, 8), {})
    result = Result("table")
    cells = list(table(steps=[10, 1000]).cells(ROWS["ddim"], 1000))
    found = table().allowed(cells, model, result)
    assert [(cell.label, cell.S) for cell in found] == [("η = 0", 10), ("η = 1", 10), ("σ̂", 10), ("σ̂", 1000)]
    assert [line.split(" is left out: ")[0] for line in result.lines] == ["η = 0, S = 1000", "η = 1, S = 1000"]
    assert "from t=1000 to 999 multiplies the network's error by 30.6" in result.lines[0]
    with pytest.raises(CannotServe, match="is left out: the unclipped step from t=1000"):
        table().allowed([cell for cell in cells if cell not in found], model, result)
