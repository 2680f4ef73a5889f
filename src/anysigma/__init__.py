"""anysigma: train once with L_γ, sample with any σ."""

from anysigma.machine.torchvision_cure import cure

cure()
