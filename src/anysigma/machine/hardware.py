"""The machine a run uses: what Lightning's Trainer and Fabric share, threads, memory format, and what else is only speed."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from anysigma.machine.threads import cores, follow

ACCELERATORS, STRATEGIES = ("auto", "cpu", "gpu", "cuda", "mps"), ("auto", "ddp")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
FORMATS = ("auto", "channels_last", "contiguous")
# What a trial settles, each in its order, with the plain value that the other has to beat.
PLAIN = {
    "precision": "32-true", "memory_format": "contiguous", "fused": False,
    "tf32": False, "cudnn_benchmark": False, "compile": False,
}  # fmt: skip
OF_SAMPLING = ("precision", "memory_format")  # what sampling may choose otherwise than training
MOST_THREADS = 1024
OF_GPU = ("tf32", "cudnn_benchmark", "compile")


@dataclass(frozen=True)
class Hardware:
    """Where and how numbers are computed. Every `auto` is settled once: by a trial, by what a run had, or as `PLAIN` says.

    `devices`: how many, auto, or a list of GPUs; `precision`: 32-true, bf16-mixed, 16-mixed; `threads`: CPU threads of a
    process (0: as many as cores are free to it, following what others use); `memory_format`: channels_last or contiguous;
    `fused`: the optimiser's fused form, where it has one. On a GPU: `tf32` products of float32, `cudnn_benchmark`,
    `compile`d network.
    `timeout`: seconds in which every process has to answer the others, else all end.
    Raises ValueError for a GPU that is not there, for another precision and for fp16 or a list of devices on a CPU.
    """

    accelerator: str = "auto"
    devices: int | str | Sequence[int] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    threads: int = 0
    memory_format: str = "auto"
    fused: bool | str = "auto"
    tf32: bool | str = "auto"
    cudnn_benchmark: bool | str = "auto"
    compile: bool | str = "auto"
    timeout: int = 600

    def __post_init__(self):
        for name, words in (("accelerator", ACCELERATORS), ("strategy", STRATEGIES)):
            if getattr(self, name) not in words:
                raise ValueError(f"hardware.{name}={getattr(self, name)}: {', '.join(words)}")
        if self.threads > MOST_THREADS:
            raise ValueError(f"hardware.threads={self.threads}: at most {MOST_THREADS}; 0 follows the free cores")
        if self.threads < 0 or self.num_nodes < 1 or self.devices in (0, []):
            said = f"hardware.threads={self.threads}, num_nodes={self.num_nodes}, devices={self.devices}"
            raise ValueError(f"{said}: no number of threads is below 0, and at least 1 node and device are needed")
        if self.timeout < 1:
            raise ValueError(f"hardware.timeout={self.timeout}: seconds, at least 1")
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(f"hardware.accelerator={self.accelerator}: no CUDA device here; hardware=cpu runs without")
        if self.memory_format not in FORMATS:
            raise ValueError(f"hardware.memory_format={self.memory_format}: {', '.join(FORMATS)}")
        for name in ("fused", *OF_GPU):
            if getattr(self, name) not in ("auto", True, False):
                raise ValueError(f"hardware.{name}={getattr(self, name)}: auto, true or false")
        if self.precision not in PRECISIONS:
            said = f"hardware.precision={self.precision}: {', '.join(PRECISIONS)}"
            raise ValueError(f"{said}; weights and their average stay in fp32")
        self._check_devices()
        if not self._on_gpu and str(self.precision).startswith("16"):
            raise ValueError(f"hardware.precision={self.precision}: fp16 needs a GPU; a CPU takes 32-true or bf16-mixed")

        if self.fused is True and self.precision == "16-mixed":
            raise ValueError("hardware.fused=true: a fused optimiser takes fp16's scaled gradients, which cannot be clipped")

    def _check_devices(self) -> None:
        """Raises ValueError for what names no devices; Lightning would end in a trace."""
        if not isinstance(self.devices, int | str) and not self._on_gpu:
            raise ValueError(f"hardware.devices={list(self.devices)}: a list names GPUs; a CPU takes a number of processes")
        if isinstance(self.devices, str) and self.devices != "auto":
            raise ValueError(f"hardware.devices={self.devices}: a number, auto, or a list of GPUs")
        if isinstance(self.devices, int) and self.devices < (-1 if self._on_gpu else 1):
            raise ValueError(f"hardware.devices={self.devices}: a number of processes from 1; -1, all of them, is for GPUs")

    @property
    def _on_gpu(self) -> bool:
        return self.accelerator in ("gpu", "cuda") or (self.accelerator == "auto" and torch.cuda.is_available())

    def placed(self) -> "Hardware":
        """With the accelerator and the processes that there are."""
        return replace(self._launched(), accelerator=self._accelerator)

    def plain(self) -> "Hardware":
        """Every `auto` that a trial would settle as the plain value."""
        return replace(self, **{name: value for name, value in PLAIN.items() if getattr(self, name) == "auto"})

    def settled(self, choice: dict[str, Any]) -> "Hardware":
        """Every `auto` as a trial or a run before has it, where it can be had here; what the choice leaves open is plain."""
        allowed = {"precision": self._precisions, "memory_format": FORMATS[1:]}
        taken = {
            name: choice[name]
            for name in PLAIN
            if getattr(self, name) == "auto"
            and isinstance(choice.get(name), str | bool)
            and choice[name] in allowed.get(name, (True, False))
        }
        if "16-mixed" in (self.precision, taken.get("precision")):
            taken.pop("fused", None)  # a record of another precision
        return replace(self, **taken).plain()

    def stored(self, record: Any) -> dict[str, Any]:
        """The hardware that a run's checkpoint records; nothing where it was another accelerator, or this is no record."""
        same = isinstance(record, dict) and record.get("accelerator") == self._accelerator
        return record if same and record.get("precision") in self._precisions else {}

    @property
    def _precisions(self) -> tuple[str, ...]:
        """Those that can be computed here."""
        bf16 = ("bf16-mixed",) if not self._on_gpu or torch.cuda.is_bf16_supported() else ()
        return ("32-true", *bf16, *(("16-mixed",) if self._on_gpu else ()))

    @property
    def _accelerator(self) -> str:
        return ("gpu" if self._on_gpu else "cpu") if self.accelerator == "auto" else self.accelerator

    def _launched(self) -> "Hardware":
        """As torchrun says, where it started this process: so many processes a node, so many nodes."""
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
            return self
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        strategy = "ddp" if self.strategy == "auto" else self.strategy
        return replace(self, devices=here, num_nodes=int(os.environ["WORLD_SIZE"]) // here, strategy=strategy)

    @property
    def processes(self) -> int:
        """How many compute, on all nodes."""
        return self._processes_here * self.num_nodes

    @property
    def _processes_here(self) -> int:
        if isinstance(self.devices, int):
            return max(1, self.devices if self.devices > 0 else torch.cuda.device_count())
        return len(self.devices) if not isinstance(self.devices, str) else max(1, torch.cuda.device_count())

    @property
    def computes(self) -> str:
        """The precision of a figure: what a GPU rounds products of float32 to is a part of it."""
        return f"{self.precision} tf32" if self._on_gpu and self.tf32 is True else self.precision

    @property
    def follows(self) -> bool:
        """Whether the threads follow the free cores: on a CPU, unless their number is fixed or is 1 anyway."""
        return self.threads == 0 and self._accelerator == "cpu" and self.most_threads > 1

    @property
    def most_threads(self) -> int:
        """Threads of this process while nobody else uses its cores."""
        return self.threads or max(1, cores() // (self._processes_here if self._accelerator == "cpu" else 1))

    def set_flags(self) -> None:
        """What holds for the whole process and only a GPU knows."""
        if self._on_gpu:
            precision = "tf32" if self.tf32 is True else "ieee"
            torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = precision
            torch.backends.cudnn.benchmark = self.cudnn_benchmark is True

    def apply(self, network: torch.nn.Module) -> torch.nn.Module:
        """Set threads and flags, give the network its memory format, compile it."""
        torch.set_num_threads(self.most_threads)
        self.set_flags()
        if self.compile is True:
            network.compile()
        return network.to(memory_format=getattr(torch, f"{self.memory_format}_format", torch.channels_last))

    @property
    def device(self) -> torch.device:
        """Where this process computes, before anything has been launched."""
        kind = {"gpu": "cuda"}.get(self._accelerator, self._accelerator)
        return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)

    def autocast(self) -> torch.autocast:
        """The precision, as Trainer and Fabric set it."""
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return torch.autocast(self.device.type, kinds.get(self.precision), enabled=self.precision in kinds)

    def follow(self, network: torch.nn.Module) -> None:
        """Let the threads follow the free cores before every call of the network, where they do."""
        if self.follows:
            follow(network, self.most_threads, self.compile is True)

    def lightning(self, together: Callable[..., Any] | None = None) -> dict[str, Any]:
        """The keywords that Trainer and Fabric share; `together`: their strategy for several processes, by its timeout."""
        found = {name: getattr(self, name) for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
        several = self.strategy == "ddp" or self.processes > 1
        return found | ({"strategy": together(timeout=self.timeout)} if together is not None and several else {})
