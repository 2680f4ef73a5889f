"""torchvision's registry wheel beside a CPU build of torch: without this, importing lightning fails.

That wheel is built for CUDA torch. Beside `torch==…+cpu` its compiled operators do not load, and its Python side then
registers fake kernels for two operators that do not exist ("operator torchvision::nms does not exist"). lightning
imports torchmetrics imports torchvision, so everything falls. Two operator schemas cure it. Beside a torchvision that
matches its torch the same definitions would abort the process, so they are made only where the pair does not match.
"""

import sys
from importlib import metadata

_library = None  # must be kept alive: the definitions go when it does


def cure() -> None:
    """Define torchvision::nms and ::qnms where torch is a CPU build and torchvision is not; else nothing."""
    global _library
    if _library is not None or "torchvision" in sys.modules or not mismatched():
        return
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def mismatched() -> bool:
    """Whether torch is a `+cpu` build and the installed torchvision is not, read from files, importing neither."""
    try:
        if not metadata.version("torch").endswith("+cpu"):
            return False
        torchvision = metadata.distribution("torchvision")
    except metadata.PackageNotFoundError:
        return False
    version = torchvision.locate_file("torchvision/version.py")
    return "+cpu" not in version.read_text() if version.exists() else False
