"""How much memory a run may take for samples and the parents' features."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 1 << 30
SHARE = 4
"""Without `--memory`, one part in this many of what is free: the models and a training step need the rest."""
LEAST = 1 << 28


def budget(gib: float | None) -> int:
    """Bytes for `--memory GIB`, or a share of what is free now."""
    return round(gib * GIB) if gib is not None else max(LEAST, free() // SHARE)


def free() -> int:
    """Bytes that this process could still take: of the machine, and of its control group where it has a limit."""
    limits = [_machine()]
    group = Path("/sys/fs/cgroup")
    most, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if most is not None and used is not None:
        limits.append(max(0, most - used))
    return min(limits)


def _machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return max(LEAST * SHARE, pages * os.sysconf("SC_PAGE_SIZE") // 2) if pages else 4 * GIB


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # no such file, or "max"
