"""A child process: `python -m benchmarks.worker`, told by JSON lines on stdin what to make and when to compute."""

import importlib

import anysigma  # noqa: F401  first: it makes torch and torchvision meet, for peers too
from benchmarks.task import Task
from benchmarks.turns import from_parent


def main() -> None:
    """The first order names the contestant, `module.function`, and its task; the others are its own."""
    turns = from_parent()
    order = next(iter(turns))
    import torch

    task = Task(**order["task"])
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    module, function = order["who"].split(".")
    getattr(importlib.import_module(f"benchmarks.{module}"), function)(turns, task)


if __name__ == "__main__":
    main()
