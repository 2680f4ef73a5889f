"""The work that contestants share: which network, which batch, how computed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Network:
    """A U-Net of DDPM's form, in words that ours and diffusers' can both be told; `parameters`: how many both then have."""

    shape: Sequence[int]
    channels: int
    multipliers: Sequence[int]
    blocks: int
    attention: int  # height with self-attention, as in the middle
    groups: int
    norm_eps: float
    dropout: float
    asymmetric: bool  # zeros on the right and below alone, where it halves
    parameters: int


NETWORKS = {
    "35.7 M": Network((3, 32, 32), 128, (1, 2, 2, 2), 2, 16, 32, 1e-6, 0.1, True, 35_746_307),
    "9 M": Network((3, 32, 32), 64, (1, 2, 2, 2), 2, 16, 32, 1e-6, 0.1, True, 8_952_067),
    "digits": Network((1, 8, 8), 40, (1, 2), 1, 4, 10, 1e-5, 0.0, False, 1_093_961),
    "tiny": Network((1, 8, 8), 8, (1, 2), 1, 4, 2, 1e-5, 0.0, False, 44_969),
}
OURS = "default"  # whatever `python train.py` trains on digits


@dataclass(frozen=True)
class Task:
    """One contestant's work. `images`: a .npy of uint8 `[N, C, H, W]`, the same for all; `folder`: its own, to write in.

    `precision`: fp32, bf16 (autocast) or auto, `memory_format`: contiguous, channels_last or auto; auto is for ours alone
    and means what the product chooses. `S`: steps of DDIM. `fused`: the optimiser's fused kernels. `lr` and `schedule`
    matter to quality alone. `threads`: of the CPU.
    """

    network: str
    batch: int
    images: str = ""
    folder: str = ""
    device: str = "cpu"
    precision: str = "fp32"
    memory_format: str = "contiguous"
    S: int = 50
    fused: bool = False
    lr: float = 2e-4
    schedule: str = "linear"
    threads: int = 1
    seed: int = 0
    words: Sequence[str] = ()  # further words of a command line, for ours

    @property
    def net(self) -> Network:
        """The network in numbers; raises KeyError for the product's own default, which has its YAML alone."""
        return NETWORKS[self.network]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def held_to(parameters: int, task: Task, within: float = 0.0) -> int:
    """`parameters`; raises ValueError where they are further than this share from those the network is to have."""
    wanted = task.net.parameters
    if abs(parameters - wanted) > within * wanted:
        raise ValueError(f"{task.network}: {parameters:,} parameters where {wanted:,} were to be compared")
    return parameters
