"""What a container may use, from files as Linux lays them out."""

import pytest
import torch

from anysigma.data.placement import free
from anysigma.machine import cgroups, threads
from anysigma.machine.cgroups import cpu_limit, memory_limit
from anysigma.machine.threads import cores


@pytest.fixture
def laid(tmp_path, monkeypatch):
    """A way to lay out /proc/self/cgroup and files below /sys/fs/cgroup."""
    monkeypatch.setattr(cgroups, "SELF", tmp_path / "self")
    monkeypatch.setattr(cgroups, "MOUNTED", tmp_path / "mounted")

    def lay(lines, files):
        (tmp_path / "self").write_text(lines)
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return lay


MEMORY = "9:name=systemd:/\n4:memory:/docker/x\n"
CPU = "3:cpuset:/\n2:cpu,cpuacct:/docker/x\n"


@pytest.mark.parametrize(
    "lines, files, limit",
    [
        ("0::/\n", {"memory.max": 4096}, 4096),  # a container that sees itself as the root
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": 8192, "memory.max": "max"}, 8192),
        ("0::/a/b\n", {"a/b/memory.max": 4096, "a/memory.max": 8192}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": 8192, "a/memory.max": 4096}, 4096),
        ("0::/a:b\n", {"a:b/memory.max": 4096}, 4096),
        (MEMORY, {"memory/docker/x/memory.limit_in_bytes": 4096}, 4096),
        (MEMORY, {"memory/memory.limit_in_bytes": 4096}, 4096),  # the host's path, the container's mount
        (MEMORY, {"memory/docker/x/memory.limit_in_bytes": 9223372036854771712}, None),
        (MEMORY + "0::/\n", {"memory/docker/x/memory.limit_in_bytes": 4096}, 4096),
        ("", {"memory.max": 4096}, None),
        ("0::\nno line of ours\n", {"memory.max": 4096}, None),
        ("0::/\n", {"memory.max": "x y"}, None),
    ],
)
def test_memory_is_held_to_the_smallest_limit_above_this_process(laid, lines, files, limit):
    laid(lines, files)
    assert memory_limit() == limit


@pytest.mark.parametrize(
    "lines, files, limit",
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        (CPU, {"cpu/docker/x/cpu.cfs_quota_us": 400000, "cpu/docker/x/cpu.cfs_period_us": 100000}, 4.0),
        (CPU, {"cpu/docker/x/cpu.cfs_quota_us": -1, "cpu/docker/x/cpu.cfs_period_us": 100000}, None),
        (CPU, {"cpu/docker/x/cpu.cfs_quota_us": 400000}, None),
        ("0::/\n", {"cpu.max": "0 0"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
    ],
)
def test_cores_are_a_quota_over_its_period(laid, lines, files, limit):
    laid(lines, files)
    assert cpu_limit() == limit


def test_a_system_without_control_groups_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "SELF", tmp_path / "none")
    assert memory_limit() is None and cpu_limit() is None


def test_room_for_images_is_the_containers(laid):
    laid("0::/\n", {"memory.max": 3 * 2**20})
    assert free(torch.device("cpu")) == 3 * 2**20
    laid("0::/\n", {"memory.max": 2**59})
    assert 10**8 < free(torch.device("cpu")) < 10**15  # the host has less


@pytest.mark.parametrize("text, count", [("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4), ("max 100000", 4)])
def test_threads_are_no_more_than_the_containers_whole_cores(laid, monkeypatch, text, count):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "affinity", lambda: {0, 1, 2, 3})
    laid("0::/\n", {"cpu.max": text})
    assert cores() == count
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # a launcher has shared them out
    assert cores() == 3
