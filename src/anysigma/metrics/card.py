"""The protocol of a figure: what must be equal before two figures may be compared."""

import hashlib
import json
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "lightning", "torchmetrics", "torch-fidelity")


def versions() -> dict[str, str]:
    """Versions that could move a figure."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def card_id(card: dict[str, Any]) -> str:
    """8 hex digits over the card's content."""
    return hashlib.sha256(json.dumps(card, sort_keys=True, default=str).encode()).hexdigest()[:8]
