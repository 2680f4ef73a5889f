"""A few steps on copies, to see what is fastest before a run begins."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from anysigma.machine.choice import Choice, chosen, network_facts, of_sampling, share
from anysigma.machine.distributed import say
from anysigma.machine.hardware import OF_GPU, OF_SAMPLING, PLAIN, Hardware
from anysigma.machine.trial import Work, done, fastest, forward, plan
from anysigma.training.clipping import Clipping
from anysigma.training.module import DiffusionModule


@dataclass(frozen=True)
class Rehearsal:
    """The whole step of `module` on `hardware`: forward, backward, `clip`ping, optimiser, average; `batch` of a process."""

    module: DiffusionModule
    hardware: Hardware
    batch: int
    clip: Clipping

    def choice(self) -> Choice:
        """As it was kept, or by a new trial; the same on all processes."""
        module = self.module
        facts = {
            **network_facts(self.hardware, module.denoiser, module.shape), "batch": self.batch, "block": module.block,
            "asked": {name: getattr(self.hardware, name) for name in self.names}, "optimizer": name_of(module.optimizer),
        }  # fmt: skip
        found = chosen(facts, self._try)
        if self.hardware.processes > 1:
            share(found)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """What is tried: the rest is a GPU's."""
        kinds = OF_GPU if self.hardware.device.type == "cuda" else ()
        fused = self.module.has_fused and self.hardware.precision != "16-mixed"
        return (*OF_SAMPLING, *(["fused"] if fused else []), *kinds)

    def _try(self) -> Choice:
        with torch.random.fork_rng():
            torch.set_num_threads(self.hardware.most_threads)
            images, seconds = plan(self.work, self.hardware, self.batch)
            training, gain = fastest(self.hardware, self.names, self.work(images), seconds)
            network, shape = self.module.ema.network, self.module.shape
            work = forward(network, shape, min(images, self.module.block), self.hardware.device)
            sampling, faster = fastest(self.hardware, OF_SAMPLING, work, seconds / 4)
        return {
            "training": {name: getattr(training, name) for name in self.names},
            "sampling": {name: getattr(sampling, name) for name in OF_SAMPLING},
            "gains": [round(gain, 2), round(faster, 2)],
        }

    def work(self, images: int) -> Work:
        """The step at so many images."""
        module, where = self.module, self.hardware.device
        generator = torch.Generator().manual_seed(0)
        x_0 = (2 * torch.rand(images, *module.shape, generator=generator) - 1).to(where)
        eps = torch.randn(images, *module.shape, generator=generator).to(where)
        t = (1 + torch.arange(images) * module.denoiser.process.T // images).to(where)

        def made(hardware: Hardware) -> Callable[[], None]:
            denoiser, ema = (copy.deepcopy(one).to(where) for one in (module.denoiser, module.ema))
            for one in (denoiser, ema):
                hardware.apply(one.network)
            optimizer = module.optimizer_over(denoiser.parameters(), hardware.fused)

            def step() -> None:
                hardware.set_flags()
                with hardware.autocast():
                    loss = module.objective(denoiser, x_0, t, eps).mean()
                loss.backward()
                self.clip(optimizer)
                optimizer.step()
                optimizer.zero_grad()
                ema.update(denoiser, 0)
                done(loss)

            return step

        return made


class Settled(NamedTuple):
    """The hardware of training and of sampling; `tried`: false where a trial was due and none could be made."""

    training: Hardware
    sampling: Hardware
    tried: bool = True


def settle(rehearsal: Rehearsal, record: Any) -> Settled:
    """The hardware as `record` (a checkpoint's) has it, or as a trial says; in one line."""
    hardware, before = rehearsal.hardware, rehearsal.hardware.stored(record)
    if before:
        return as_before(hardware, before)
    if all(getattr(hardware, name) != "auto" for name in rehearsal.names):
        return Settled(hardware.settled({}), hardware.settled({}))
    choice = rehearsal.choice()
    training, sampling = (hardware.settled(choice.get(name, {})) for name in ("training", "sampling"))
    if choice.get("gains"):
        of = f"{choice['gains'][0]:.2f} and {choice['gains'][1]:.2f} x as fast as {words(hardware.plain())}"
        say(f"hardware=auto: training {words(training)}, sampling {words(sampling)}: {of} in a trial here")
    return Settled(training, sampling, choice.get("tried") is not False)


def as_before(hardware: Hardware, before: dict[str, Any]) -> Settled:
    """What a run had. Where it began without a trial it stays plain: the word that changes it is said."""
    training, tried = hardware.settled(before), before.get("tried") is not False
    if not tried and hardware.precision == "auto" and training.precision == PLAIN["precision"]:
        say(f"hardware=auto: this run began without a trial and goes on in {words(training)};"
            " hardware.precision=bf16-mixed changes it, faster on most machines and no longer bit for bit")  # fmt: skip
    return Settled(training, hardware.settled(of_sampling(before) or before), tried)


def name_of(optimizer: Any) -> str:
    """A factory as where it stands and what it was given: the same in every process."""
    made = getattr(optimizer, "func", optimizer)
    where = f"{getattr(made, '__module__', '')}.{getattr(made, '__qualname__', type(made).__qualname__)}"
    return f"{where} {sorted(getattr(optimizer, 'keywords', {}).items())}"


def words(hardware: Hardware) -> str:
    """What is chosen."""
    chosen = [hardware.precision, hardware.memory_format]
    return " ".join(chosen + [name for name in ("fused", *OF_GPU) if getattr(hardware, name) is True])
