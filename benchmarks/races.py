"""Which contestants meet over which work, and what is wanted of the ratio."""

from dataclasses import dataclass, field, replace
from typing import Any

BOTH = ("contiguous", "channels_last")
COMES, BF16 = "as it comes", "bf16"


@dataclass(frozen=True)
class Entry:
    """A contestant: its name in the table, its function, its precision.

    `formats`: memory formats; where there is more than one, a short trial finds the faster, and it is said.
    """

    name: str
    who: str
    precision: str = "fp32"
    formats: tuple[str, ...] = ("contiguous",)
    more: dict[str, Any] = field(default_factory=dict)  # of its task

    @property
    def ours(self) -> bool:
        """Whether it needs no peer."""
        return self.who.startswith("ours.")


@dataclass(frozen=True)
class Race:
    """Contestants that work in turn. `wanted`: (one, the other, the ratio of their images/s that is wanted, or None).

    `steps`: of a turn, where they are fixed; else as many as take about the time that a turn is to have.
    """

    key: str
    title: str
    network: str
    batch: int
    entries: tuple[Entry, ...]
    wanted: tuple[tuple[str, str, float | None], ...] = ()
    S: int = 50
    steps: int | None = None

    def quick(self) -> "Race":
        """The same contestants over work that takes no time."""
        network = self.network if self.network in ("digits", "default") else "digits"
        title = f"{self.key}, quick: the {network} network, batch 16"
        return replace(self, title=title, network=network, batch=16, S=min(self.S, 3), steps=1)


def named(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    """By name."""
    return {entry.name: entry for entry in entries}


OURS, THEIRS, OTHERS = "anysigma", "diffusers", "denoising-diffusion-pytorch"


def against_peers(work: str) -> tuple[Entry, ...]:
    """Everybody as it comes, and those that know bf16 under it, in the faster memory format."""
    return (
        Entry(f"{OURS}, {COMES}", f"ours.{work}", "auto", ("auto",)),
        Entry(f"{THEIRS}, {COMES}", f"diffusers_peer.{work}"),
        Entry(f"{OTHERS}, {COMES}", f"denoising_peer.{work}"),
        Entry(f"{OURS}, {BF16}", f"ours.{work}", "bf16", BOTH),
        Entry(f"{THEIRS}, {BF16}", f"diffusers_peer.{work}", "bf16", BOTH),
    )


def wanted(default: float | None, bf16: float | None, others: float | None) -> tuple[tuple[str, str, float | None], ...]:
    """Ours against each, what is asked of it."""
    ours = f"{OURS}, {COMES}"
    return (
        (ours, f"{THEIRS}, {COMES}", default),
        (f"{OURS}, {BF16}", f"{THEIRS}, {BF16}", bf16),
        (ours, f"{OTHERS}, {COMES}", others),
    )


def step(network: str, batch: int, device: str = "cpu") -> Race:
    """A whole training step: forward, loss, backward, clipping, Adam or AdamW, EMA."""
    goals = wanted(None, 3.0, None) if device == "cuda" else wanted(3.5, 1.15, 3.0)
    title = f"training step, {network} network, batch {batch}"
    return Race(f"step-{slug(network)}-{batch}", title, network, batch, against_peers("step"), goals)


def sampling(network: str, S: int, device: str = "cpu", batch: int = 16) -> Race:
    """A batch by DDIM in S steps."""
    goals = wanted(3.0, None, None) if device == "cuda" else wanted(3.5, 1.3, None)
    title = f"DDIM, S = {S}, {network} network, batch {batch}"
    return Race(f"sample-{slug(network)}", title, network, batch, against_peers("sample"), goals, S=S, steps=1)


def slug(network: str) -> str:
    """Without a space."""
    return network.replace(" ", "")


def digits() -> Race:
    """What precision, memory format and the optimiser's kernels make of our default run's step, in a bare loop."""
    entries = tuple(
        Entry(
            f"{precision}, {memory}, {'fused' if fused else 'foreach'} Adam",
            "ours.bare",
            precision,
            (memory,),
            {"fused": fused},
        )
        for precision in ("fp32", "bf16")
        for memory in BOTH
        for fused in (False, True)
    )
    first = entries[0].name
    pairs = tuple((entry.name, first, None) for entry in entries[1:])
    return Race("digits", "training step, digits, the default network, batch 128", "default", 128, entries, pairs)


def loop() -> Race:
    """Our loop against a loop written by hand over the same network, images and optimiser; fp32, one memory format."""
    alike = {"words": ("hardware.fused=false",)}
    entries = (
        Entry("by hand", "ours.bare"),
        Entry("ours: EMA, logging", "ours.step", more=alike),
        Entry("ours: every callback that does not sample", "ours.loop", more=alike),
    )
    pairs = tuple((entry.name, "by hand", 0.97) for entry in entries[1:])
    title = "our loop against one written by hand, digits, batch 128, turns of 200 steps"
    return Race("loop", title, "default", 128, entries, pairs, steps=200)


def races(device: str = "cpu") -> dict[str, Race]:
    """All of them, by key; on a CPU the large network's samples come in 10 steps, since 50 take minutes."""
    batches = (128, 256) if device == "cuda" else (16, 128)
    found = [step(network, batch, device) for network in ("35.7 M", "9 M") for batch in batches]
    found.append(sampling("35.7 M", *((50, device, 256) if device == "cuda" else (10, device))))
    found.append(sampling("digits", 50, device, 64))
    return {race.key: race for race in [*found, digits(), loop()]}
