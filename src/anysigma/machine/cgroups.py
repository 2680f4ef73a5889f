"""What a container may use: Linux control groups hold their processes to less memory and time than the machine has."""

from collections.abc import Iterator
from pathlib import Path

SELF, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
NONE = 2**60  # bytes: version 1 says no limit as a number near 2^63


def memory_limit() -> int | None:
    """Bytes that this process and those in its group may take together; None where nothing holds them."""
    found = [int(text) for text in read("memory", "memory.max", "memory.limit_in_bytes") if text.isdigit()]
    return min((limit for limit in found if limit < NONE), default=None)


def cpu_limit() -> float | None:
    """Cores that this process and those in its group may keep busy on average; None where nothing holds them."""
    found = [quota(text) for text in read("cpu", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return min((limit for limit in found if limit is not None), default=None)


def quota(text: str) -> float | None:
    """Cores of "quota period" in microseconds; a quota that is no number, or none above 0, is no limit."""
    parts = text.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or "0" in parts:
        return None
    return int(parts[0]) / int(parts[1])


def read(controller: str, unified: str, *names: str) -> Iterator[str]:
    """What these files say, of version 2 (`unified`) or 1, in this process's group and all that it lies in.

    A container may see its group's path as the host has it while its own group is mounted as the root: then only the
    root's files are there. Files that cannot be read are passed over.
    """
    for group, version_1 in groups(controller):
        root = MOUNTED / controller if version_1 else MOUNTED
        for place in (group, *group.parents):
            try:
                yield " ".join((root / place.relative_to("/") / name).read_text().strip()
                               for name in (names if version_1 else (unified,)))  # fmt: skip
            except (OSError, ValueError):
                continue


def groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """This process's groups of a controller, and whether they are of version 1: lines `number:controllers:path`."""
    try:
        lines = SELF.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/") and (number == "0" or controller in controllers.split(",")):
            yield Path(path), number != "0"
