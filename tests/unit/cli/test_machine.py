"""What the machine is, read from made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mainspring.cli.machine import describe_machine, usable_cores


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/x\n5:memory:/y\n",
          "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000\n",
          "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"}, 3),
        ({"proc/self/cgroup": "4:cpu:/x\n", "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, 4),
    ],
)  # fmt: skip
def test_cores_follow_affinity_and_quota(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert usable_cores(tree(tmp_path, files)) == cores


def test_the_processor_and_what_it_can(tmp_path: Path) -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: Imaginary 9\nflags\t\t: fpu avx2 fma avx512_vnni\n\n"
    memory = "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"
    root = tree(tmp_path, {"proc/cpuinfo": cpuinfo * 2, "proc/meminfo": memory})
    machine = describe_machine(root)
    assert machine.processor == "Imaginary 9"
    assert machine.instruction_sets == ("avx2", "fma", "avx512_vnni")
    assert machine.free_bytes == 2 << 20
    assert machine.cores >= 1


def test_this_machine_is_described() -> None:
    machine = describe_machine()
    assert machine.processor
    assert 1 <= machine.cores <= machine.cores_present
    assert 0 < machine.free_bytes <= machine.memory_bytes
