"""How much memory a process may use: a machine's, or what a container, a job or a limit leaves of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes: the least of physical memory, the control groups' limits, SLURM's for a node, and the address space's.

    A huge number where none is known.

    Args:
        root: of the file system, whose ``proc`` and ``sys`` tell the control groups.
    """
    return min([2**63, *_physical(), *_control_groups(root), *_slurm(), *_address_space()])


def gigabytes(count: int) -> str:
    """Bytes as ``1.5 GB``."""
    return f"{count / 2**30:.1f} GB" if count >= 0.05 * 2**30 else f"{count / 2**20:.1f} MB"


def _physical() -> Iterator[int]:
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_groups(root: Path) -> Iterator[int]:
    """Limits of the group that this process is in and of those above it: version 1 and version 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0":
            base, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # A container sees its own group as the uppermost, whatever its name is outside.
        group = Path(name.strip("/"))
        for folder in (base / group, *(base / above for above in group.parents), base):
            try:
                text = (folder / file).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():  # not "max"
                yield int(text)


def _slurm() -> Iterator[int]:
    """What a job was granted on this node, which SLURM states in megabytes; 0 means all of it."""
    node, each, cpus = (os.environ.get(f"SLURM_{name}", "") for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    if node.isdecimal() and int(node):
        yield int(node) * 2**20
    elif each.isdecimal() and cpus.isdecimal() and int(each) * int(cpus):
        yield int(each) * int(cpus) * 2**20


def _address_space() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft
