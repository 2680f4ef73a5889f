"""Study `table`: what it lays out, what it marks, what it repeats of the paper."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.report.results import Row
from anysigma.studies.table import PAPER, SamplerTable, change, paper_cells, paper_change

ROOT = Path(__file__).parents[2]


def table(**changed):
    facts = dict(
        steps=[10, 20, 2000], etas=[0.0, 1.0], sigma_hat=True, eta_clip=False, sigma_hat_clip=True,
        taus={"uniform": Uniform()}, full=False, n=None, sets=2, splits=2, seed=0, block=8, cache=None,
    )  # fmt: skip
    return SamplerTable(**{**facts, **changed})


def test_the_cells_are_the_grid_and_sigma_hat_alone_is_clipped():
    cells = list(table().settings(1000))
    assert [(c.sigma, c.steps) for c in cells] == [(s, S) for s in ("η=0", "η=1", "σ̂") for S in (10, 20)]
    assert [c.sampler.clip for c in cells] == [False] * 4 + [True] * 2
    assert [c.sampler.sigma for c in cells[::2]] == [Eta(0.0), Eta(1.0), SigmaHat()]


def test_full_adds_all_steps_and_no_s_exceeds_t():
    assert table(full=True).steps_of(1000) == [10, 20, 1000]
    assert table().steps_of(10) == [10]
    assert table().steps_of(4) == [4]


def test_a_change_is_marked_only_where_it_exceeds_two_errors_of_the_difference():
    one, near, far = (Row("fd_digits", v, 0.3) for v in (10.0, 10.8, 10.9))
    assert change(near, one) == "+8 %" and change(far, one) == "+9 %*" and change(one, one) == "–"
    assert change(Row("fd_digits", 5.0), one) == "-50 %"


def test_the_papers_figures_stand_at_their_s():
    assert paper_cells("σ̂", [20, 30, 1000]) == ["133.37", "", "3.17"]
    assert paper_change("η=1", "η=0", 10) == "+207 %" and paper_change("η=1", "η=0", 30) == ""
    assert all(len(row) == 5 for row in PAPER.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": []}, "whole numbers"),
        ({"etas": [2.0]}, "η must lie"),
        ({"etas": [], "sigma_hat": False}, "no row is left"),
    ],
)
def test_an_impossible_grid_is_one_line(changed, message):
    with pytest.raises(ValueError, match=message):
        table(**changed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 20 steps in a folder of its own."""
    folder = tmp_path_factory.mktemp("trained")
    command(folder, "train.py", "debug=true", "logger=csv", "run=small")
    return folder


def command(folder, script, *words):
    done = subprocess.run([sys.executable, ROOT / script, *words], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_is_printed_recorded_with_a_card_a_setting_and_goes_on_from_its_shards(trained):
    words = ["checkpoint=small", "study=table", "debug=true", "logger=csv", "study.steps=[2,4]", "study.etas=[0.0]"]
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
