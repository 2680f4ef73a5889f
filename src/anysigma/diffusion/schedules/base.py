"""The one stored truth of a diffusion process: α[0..T], the cumulative signal level."""

import torch
from torch import Tensor

LONGEST = 1_000_000  # steps: the tables of a process take memory before anything says that it is too long


class NoiseSchedule:
    """α_0..α_T of q(x_t | x_0) = N(√α_t x_0, (1-α_t) I), DDIM eq. 4 (α_t is what the DDPM paper writes ᾱ_t).

    `alpha`: float64 `[T+1]`, α[0] = 1, strictly decreasing, > 0; only α[T] may be 0 (zero terminal SNR).
    It is no `nn.Module`: casting a model to bfloat16 must not touch the table.
    Raises ValueError where the table is none of this.
    """

    def __init__(self, alpha: Tensor):
        alpha = alpha.detach().to("cpu", torch.float64)
        if alpha.ndim != 1 or len(alpha) < 2 or alpha[0] != 1:
            raise ValueError("a schedule is a vector α[0..T] with T ≥ 1 and α[0] = 1")
        if not (alpha.diff() < 0).all() or alpha[-1] < 0:
            raise ValueError("α[0..T] must be strictly decreasing and positive (only α[T] may be 0)")
        self.alpha = alpha.clone()
        self._on_device = {self.alpha.device: self.alpha}

    @property
    def T(self) -> int:
        """Number of diffusion steps."""
        return len(self.alpha) - 1

    def __call__(self, t: float | Tensor) -> Tensor:
        """α_t in float64, for t in 0..T: a scalar for a number, `[B]` for a tensor, on that tensor's device.

        Whole numbers read the table; a float between two of them reads it by `between`. Raises IndexError outside 0..T.
        """
        if not isinstance(t, Tensor):
            if not 0 <= t <= self.T:
                raise IndexError(f"t={t} lies outside 0..{self.T}")
            return self.alpha[t] if isinstance(t, int) else between(self.alpha, torch.tensor(t, dtype=torch.float64))
        if t.device.type == "mps":  # has no float64: gathered on the CPU, cast by the caller
            t = t.cpu()
        if t.device not in self._on_device:
            self._on_device[t.device] = self.alpha.to(t.device)
        table = self._on_device[t.device]
        return between(table, t) if t.is_floating_point() else table[t]


def between(alpha: Tensor, t: Tensor) -> Tensor:
    """α at t in 0..T, float: the table's own value at whole numbers, log-SNR = ln(α/(1-α)) linear between them.

    Where log-SNR has an end at infinity (from 0 to 1, and up to an α_T of 0) it is α that is linear.
    """
    low, high = t.floor().long(), t.ceil().long()
    a, b, share = alpha[low], alpha[high], t.double() - low
    log_snr = torch.lerp(a.logit(), b.logit(), share)
    return torch.where((low != high) & log_snr.isfinite(), log_snr.sigmoid(), torch.lerp(a, b, share))


def alpha_from_beta(beta: Tensor) -> Tensor:
    """α_t = Π_{i≤t} (1-β_i), DDPM section 2, with α_0 = 1 before it; β float64 `[T]` in (0, 1)."""
    return torch.cat([beta.new_ones(1), torch.cumprod(1 - beta, 0)])


def alpha_from_thousand(beta: Tensor) -> Tensor:
    """`alpha_from_beta` of a β that was written down for T = 1000: scaled by 1000/T and capped at 0.999.

    The scaling keeps α_T nearly the same for every T from about 50 up; T ≤ 20 needs the cap.
    """
    return alpha_from_beta((beta * (1000 / len(beta))).clamp(max=0.999))


def check_steps(T: int) -> None:
    """Raises ValueError for T < 1 or T > LONGEST."""
    if T < 1:
        raise ValueError(f"schedule.T={T}: a process needs at least 1 step")
    if T > LONGEST:
        raise ValueError(f"schedule.T={T}: at most {LONGEST:,} steps")


def check_betas(T: int, beta_start: float, beta_end: float) -> None:
    """Raises ValueError for T < 1 and unless 0 < beta_start ≤ beta_end < 1."""
    check_steps(T)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"β must satisfy 0 < beta_start ≤ beta_end < 1, got {beta_start} and {beta_end}")
