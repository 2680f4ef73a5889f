"""Schedules side by side, with and without a checkpoint."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from anysigma.compose import config
from anysigma.compose.config import build, check
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.objective import Elbo, MinSNR
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR
from anysigma.studies.base import Model
from anysigma.studies.schedule import Schedules

CONF = str(Path(__file__).parents[2] / "conf")
config.register()


def run(model=None, **schedules):
    gammas = {"elbo": Elbo(1.0), "min_snr": MinSNR(5.0)}
    return Schedules(schedules, gammas, [0.001, 0.5, 1.0]).run(model, None, None, None, None)


def cells(result, title):
    (table,) = [table for table in result.tables if table.title == title]
    return {row[0]: row[1:] for row in table.rows}


def test_tables_hold_ddpms_numbers():
    result = run(linear=Linear(), cosine=Cosine(T=10))
    assert cells(result, "Signal left at T")["linear"] == ["1000", "0.0001", "0.02", "0.00635"]  # α_T = 4.036e-5
    assert cells(result, "α_t")["linear"] == ["0.9999", "0.07859", "4.036e-05"]
    assert cells(result, "SNR_t")["linear"][0] == "9999"
    assert cells(result, "γ_t of min_snr")["linear"] == ["0.0005001", "1", "1"]
    beta, bar, before = 0.02, 4.0358e-05, 4.0358e-05 / 0.98
    tilde = (1 - before) / (1 - bar) * beta
    assert float(cells(result, "γ_t of elbo")["linear"][2]) == pytest.approx(
        beta**2 / (2 * tilde * 0.98 * (1 - bar)), rel=1e-3
    )
    assert {row.params["schedule"]: row.value for row in result.rows}["linear"] == pytest.approx(4.0358e-05**0.5, rel=1e-4)
    assert cells(result, "α_t")["cosine"][0] == f"{Cosine(T=10).alpha[1].item():.4g}"  # t is at least 1


def test_plots_hold_every_t_and_leave_out_what_no_axis_can_show():
    result = run(linear=Linear(50), zero=ZeroTerminalSNR(Linear(50)))
    lengths = {name: [len(curve.x) for curve in plot.curves] for name, plot in result.plots.items()}
    assert lengths == {
        "schedule_alpha": [50, 50], "schedule_snr": [50, 49], "schedule_gamma_elbo": [50, 49],
        "schedule_gamma_min_snr": [50, 50],
    }  # fmt: skip
    assert all(math.isfinite(y) for plot in result.plots.values() for curve in plot.curves for y in curve.y)
    assert cells(result, "γ_t of elbo")["zero"][2] == "inf" and cells(result, "Signal left at T")["zero"][3] == "0"


def test_a_checkpoints_own_schedule_is_added():
    denoiser = SimpleNamespace(process=GaussianProcess(Cosine(40)))
    result = run(Model(denoiser, (1, 2, 2), {"step": 7}), linear=Linear())
    assert [row.params["schedule"] for row in result.rows] == ["linear", "this run's"] and result.card == {"step": 7}
    assert result.plots["schedule_alpha"].curves[1].label == "this run's"


def test_shares_lie_in_0_to_1():
    with pytest.raises(ValueError, match="each t/T"):
        Schedules({}, {}, [0.0])


def test_the_words_a_person_types_reach_each_schedule():
    words = ["study=schedule", "study.schedules.cosine.T=100", "study.schedules.zero_terminal_snr.schedule.T=60"]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("evaluate", words)
    check(cfg)
    study = build(cfg.study)
    assert {"linear", "cosine", "sigmoid", "quadratic", "zero_terminal_snr"} <= study.schedules.keys()
    assert study.schedules["cosine"].T == 100 and study.schedules["zero_terminal_snr"].T == 60
    assert not study.needs_checkpoint and not study.needs_features


@pytest.mark.parametrize("name", ["likelihood", "objective", "schedule"])
def test_debug_and_the_root_words_are_followed(name):
    with initialize_config_dir(CONF, version_base="1.3"):
        small, large = (compose("evaluate", [f"study={name}", *words]) for words in (["debug=true"], ["n=7", "seed=3"]))
    if name != "schedule":
        assert small.study.n < 20 and large.study.n == 7 and large.study.seed == 3
    assert build(small.study) is not None
