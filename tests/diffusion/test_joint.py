import pytest
import torch
from conftest import CountingNoise

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.joint import joint
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR

SCHEDULES = {"linear": Linear(37), "cosine": Cosine(37), "zero terminal": ZeroTerminalSNR(Linear(37))}


def coefficients(q: GaussianProcess, sigma) -> dict[int, torch.Tensor]:
    """t → what x_t is made of: row 0 the coefficient of x_0, row 1 + j that of the j-th noise."""
    basis = torch.eye(1 + q.T, dtype=torch.float64)[:, :, None]
    noise = CountingNoise((1 + q.T, 1), basis[:, 1:].transpose(0, 1))
    return {t: x_t[:, 0] for t, x_t in joint(q, basis[:, 0], sigma, noise)}


@pytest.fixture(params=SCHEDULES)
def q(request):
    return GaussianProcess(SCHEDULES[request.param])


@pytest.mark.equation("joint", "lemma")
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
def test_every_x_t_follows_its_marginal(q, eta):
    found = coefficients(q, Eta(eta))
    assert list(found) == list(range(q.T, 0, -1))
    for t, row in found.items():
        assert row[0].item() == pytest.approx(q.alpha(t).sqrt().item(), abs=1e-10), t
        assert row[1:].square().sum().item() == pytest.approx(1 - q.alpha(t).item(), abs=1e-10), t


def test_eta_1_is_the_markov_chain(q):
    # Cov(x_s, x_t | x_0) = √(α_t/α_s)(1-α_s), that of DDPM eq. 2.
    found = coefficients(q, Eta(1.0))
    for t in range(1, q.T + 1):
        for s in range(1, t):
            expected = (q.alpha(t) / q.alpha(s)).sqrt() * (1 - q.alpha(s))
            assert (found[t][1:] @ found[s][1:]).item() == pytest.approx(expected.item(), abs=1e-10)


def test_eta_0_is_a_line_and_eta_between_is_neither():
    q = GaussianProcess(Linear(37))
    assert all((row[2:] == 0).all() for row in coefficients(q, Eta(0.0)).values())
    covariance = {eta: (lambda c: (c[37][1:] @ c[10][1:]).item())(coefficients(q, Eta(eta))) for eta in (0.0, 0.5, 1.0)}
    assert covariance[0.0] > covariance[0.5] > covariance[1.0]


def test_a_variance_outside_the_family_is_refused(q):
    with pytest.raises(ValueError, match="no member"):
        coefficients(q, SigmaHat())


def test_the_shape_and_dtype_of_x_0_are_kept(q):
    x_0 = torch.ones(2, 3, 4, 5)
    states = [x_t for _, x_t in joint(q, x_0, Eta(0.5), lambda: torch.ones_like(x_0))]
    assert len(states) == 37 and {(x_t.shape, x_t.dtype) for x_t in states} == {(x_0.shape, torch.float32)}
