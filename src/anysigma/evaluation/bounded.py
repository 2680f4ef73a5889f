"""A network from a stranger's config: no larger than the weights that come with it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from anysigma.compose.config import build
from anysigma.compose.targets import ConfigError


def network(node: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """The network that a config describes, on the CPU, for weights that a file holds.

    Raises ConfigError where it would have more parts or more numbers than the file could fill. It is built without
    memory first: a line of text is enough to ask for all that a machine has.
    """
    most = 1000 + 30 * len(state)
    with at_most(most):
        try:
            with torch.device("meta"):
                described = sum(tensor.numel() for tensor in build(node).state_dict().values())
        except InstantiationException:  # said where it is built in earnest, by a network that needs numbers to be built too
            described = 0
        held = sum(map(stored, state.values()))
        if described > held:
            raise ConfigError(f"the checkpoint's config describes a network of {described:,} numbers, it holds {held:,}")
        return build(node)


def stored(tensor: Tensor) -> int:
    """How many numbers of a tensor lie in the file: one that is repeated lies there once."""
    try:
        return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())
    except (RuntimeError, NotImplementedError):  # sparse and others that lie otherwise, in no checkpoint of ours
        return 0


@contextmanager
def at_most(parts: int) -> Iterator[None]:
    """Raises ConfigError where more modules than that become parts of others."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > parts:
            raise ConfigError(f"the checkpoint's config describes a network of more than {parts:,} parts")

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()
