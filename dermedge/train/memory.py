"""Read the memory of this machine, and format sizes."""

import os
from pathlib import Path

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def machine_memory() -> int:
    """Return the memory of this machine or container in bytes."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text("ascii")))
        except (OSError, ValueError):  # No such file, or "max": no limit.
            continue
    return min(limits)


def format_bytes(count: float) -> str:
    """Format a number of bytes.

    Example:
        >>> format_bytes(6.44e9), format_bytes(3.2e8)
        ('6.4 GB', '320 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
