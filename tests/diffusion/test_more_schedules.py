import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from anysigma.compose import config
from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.quadratic import Quadratic
from anysigma.diffusion.schedules.sigmoid import Sigmoid
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR

CONF = Path(__file__).parents[2] / "conf"
config.register()


def quadratic(i, T, start, end):
    return (math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * i / (T - 1)) ** 2


def sigmoid(i, T, start, end):
    return start + (end - start) / (1 + math.exp(6 - 12 * i / (T - 1)))


KINDS = {"quadratic": (Quadratic, quadratic), "sigmoid": (Sigmoid, sigmoid)}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def product(beta):
    alpha = [1.0]
    for b in beta:
        alpha.append(alpha[-1] * (1 - b))
    return torch.tensor(alpha, dtype=torch.float64)


@pytest.mark.parametrize("T", [10, 100, 1000, 4000])
@pytest.mark.parametrize("start, end", [(1e-4, 0.02), (8.5e-4, 0.012)])
def test_alpha_is_the_product_of_the_formula(kind, T, start, end):
    build, beta = kind
    expected = [min(beta(i, T, start, end) * 1000 / T, 0.999) for i in range(T)]
    torch.testing.assert_close(build(T, start, end).alpha, product(expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize("T", [1, 2, 37])
def test_a_table_starts_at_one_and_falls_to_above_zero(kind, T):
    alpha = kind[0](T, 1e-4, 0.02).alpha
    assert alpha.shape == (T + 1,) and alpha[0] == 1 and (alpha.diff() < 0).all() and alpha[-1] > 0


@pytest.mark.parametrize("T, start, end", [(0, 1e-4, 0.02), (10, 0, 0.02), (10, 0.02, 1e-4), (10, 1e-4, 1)])
def test_numbers_that_make_no_schedule_are_refused(kind, T, start, end):
    with pytest.raises(ValueError, match=r"T=0|beta_start"):
        kind[0](T, start, end)


def test_stable_diffusion_ends_where_it_is_known_to():
    # √α_T of Stable Diffusion is 0.068265, Lin et al. 2024 table 1.
    assert Quadratic(1000, 0.00085, 0.012).alpha[-1].sqrt().item() == pytest.approx(0.068265, abs=1e-6)


# --- zero terminal SNR ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [Linear(), Cosine(), Linear(2), Sigmoid(), Quadratic(1000, 0.00085, 0.012)], ids=lambda s: type(s).__name__
)
def test_no_signal_is_left_at_T_and_alpha_1_is_kept(schedule):
    found = ZeroTerminalSNR(schedule)
    assert found.T == schedule.T and found.alpha[0] == 1 and found.alpha[-1].item() == 0
    assert found.alpha[1].item() == pytest.approx(schedule.alpha[1].item(), rel=1e-15)
    assert (found.alpha.diff() < 0).all() and (found.alpha <= schedule.alpha * (1 + 1e-15)).all()


def test_the_roots_are_shifted_and_scaled():
    a = Linear().alpha.tolist()
    first, last = math.sqrt(a[1]), math.sqrt(a[1000])
    expected = [((math.sqrt(x) - last) * first / (first - last)) ** 2 for x in a[1:]]
    torch.testing.assert_close(
        ZeroTerminalSNR(Linear()).alpha[1:], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_it_changes_no_schedule_that_has_it():
    once = ZeroTerminalSNR(Linear())
    torch.testing.assert_close(ZeroTerminalSNR(once).alpha, once.alpha, rtol=1e-12, atol=0)


def test_one_step_cannot_have_both_ends():
    with pytest.raises(ValueError, match="T=1"):
        ZeroTerminalSNR(Linear(1))


def test_x_T_is_the_noise():
    q, eps = GaussianProcess(ZeroTerminalSNR(Linear())), torch.randn(3, 1, 2, 2)
    assert torch.equal(q.q_sample(torch.randn(3, 1, 2, 2), 1000, eps), eps)


# --- as words ------------------------------------------------------------------------------------------------------


def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["schedule=zero_terminal_snr", "logger=csv", *words])


@pytest.mark.parametrize(
    "words, kind, T",
    [
        ([], Linear(), 1000),
        (["schedule.schedule.T=100"], Linear(100), 100),
        (["schedule@schedule.schedule=cosine"], Cosine(), 1000),
    ],
)
def test_what_it_rescales_is_typed(words, kind, T):
    cfg = composed("parameterization=v", *words)
    check_train(cfg)
    schedule = build(cfg.schedule)
    assert schedule.T == T and torch.equal(schedule.alpha, ZeroTerminalSNR(kind).alpha)


def test_the_words_for_v_build_and_those_for_eps_end_in_one_line():
    build(composed("parameterization=v", "objective=v_mse").job.module.denoiser.process)
    with pytest.raises(ValueError, match=r"zero_terminal_snr.*parameterization=v") as refused:
        build(composed().job.module.denoiser)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"zero_terminal_snr.*parameterization=v"):  # before anything heavy is built
        check_train(composed())
    build(composed("parameterization=v").job.module.denoiser)
    build(composed("parameterization=x0").job.module.denoiser)


def test_scaled_linear_has_the_numbers_of_stable_diffusion():
    assert torch.equal(build(composed("schedule=scaled_linear").schedule).alpha, Quadratic(1000, 0.00085, 0.012).alpha)
