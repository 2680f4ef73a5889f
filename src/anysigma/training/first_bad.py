"""The first step whose number was not finite, found out without a wait for the device."""

import torch
from torch import Tensor

NONE = 2**62
PATIENCE = 25  # steps: a loss scaler halves its scale of 2¹⁶ at every gradient that overflows, which is no failure


class FirstBad:
    """Notes on the device, with every number it is shown, the first step at which it was not finite.

    `asked` begins a copy to the host, and tells what the copy before it brought: the device has come past that one long
    ago, so nobody waits. On a CPU there is no one to wait for: `now` is free. `patience`: so many in a row are a failure.
    """

    def __init__(self, device: torch.device, patience: int = 1):
        self.patience = patience
        self._first = torch.full((), NONE, dtype=torch.long, device=device)
        self._row = torch.zeros((), dtype=torch.long, device=device)
        self._copy: Tensor | None = None
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    @property
    def free(self) -> bool:
        """Whether `now` waits for nothing."""
        return self._first.device.type == "cpu"

    def note(self, number: Tensor, k: int) -> None:
        """The number of step k, a scalar on the device."""
        self._row = torch.where(number.detach().isfinite(), 0, self._row + 1)
        self._first = torch.where(self._row >= self.patience, self._first.clamp(max=k - self.patience + 1), self._first)

    def asked(self) -> int | None:
        """What stood when this was last called; None where every number was finite until then."""
        before = self._copy
        if self._copied is None:
            self._copy = self._first
            return said(before)
        if before is not None:
            self._copied.synchronize()
        self._copy = torch.empty((), dtype=torch.long, pin_memory=True).copy_(self._first, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()
        return said(before)

    def now(self) -> int | None:
        """What stands now; waits for the device."""
        return said(self._first)


def said(first: Tensor | None) -> int | None:
    """The step, None where there is none."""
    k = NONE if first is None else int(first)
    return None if k == NONE else k
