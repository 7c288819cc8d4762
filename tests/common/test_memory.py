"""How much memory there is, for a process in a container or in a job."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from common import memory
from common.memory import gigabytes, memory_limit

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100 GB and no other limit."""
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory, "_physical", lambda: iter([100 * GIB]))
    monkeypatch.setattr(memory, "_address_space", lambda: iter([]))


def group(root: Path, line: str, files: dict[str, str]) -> None:
    for name, content in {"proc/self/cgroup": line, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def test_no_limit_but_the_machines(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == 100 * GIB
    group(tmp_path, "0::/user/job\n", {"sys/fs/cgroup/user/job/memory.max": "max\n"})
    assert memory_limit(tmp_path) == 100 * GIB


@pytest.mark.parametrize("place", ["user/job/", "user/", ""])
def test_groups_of_version_2_and_those_above(place: str, tmp_path: Path) -> None:
    files = {f"sys/fs/cgroup/{each}memory.max": "max" for each in ("user/job/", "user/", "")}
    group(tmp_path, "0::/user/job\n", {**files, f"sys/fs/cgroup/{place}memory.max": f"{7 * GIB}\n"})
    assert memory_limit(tmp_path) == 7 * GIB


def test_a_container_does_not_see_the_group_that_it_is_said_to_be_in(tmp_path: Path) -> None:
    group(tmp_path, "0::/docker/abc\n", {"sys/fs/cgroup/memory.max": f"{3 * GIB}"})
    assert memory_limit(tmp_path) == 3 * GIB


def test_groups_of_version_1(tmp_path: Path) -> None:
    lines = "12:cpu,cpuacct:/other\n5:memory:/slurm/job\n"
    folder = "sys/fs/cgroup/memory"
    files = {f"{folder}/slurm/job/memory.limit_in_bytes": f"{5 * GIB}", f"{folder}/memory.limit_in_bytes": f"{2**63}"}
    group(tmp_path, lines, files)
    assert memory_limit(tmp_path) == 5 * GIB


def test_what_slurm_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2048")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert memory_limit(tmp_path) == 6 * GIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4096")
    assert memory_limit(tmp_path) == 4 * GIB
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    assert memory_limit(tmp_path) == 100 * GIB


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**28 < memory_limit() <= physical
    monkeypatch.setattr(resource, "getrlimit", lambda which: (GIB if which == resource.RLIMIT_AS else 0, 0))
    assert memory_limit() <= GIB


def test_in_words() -> None:
    assert [gigabytes(count) for count in (3 * GIB // 2, 2**40, 2**20)] == ["1.5 GB", "1024.0 GB", "1.0 MB"]
