"""Describe the computer that this process runs on, and the part of it that it may use."""

import functools
import math
import os
import platform
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

# Instruction sets that change which kernels an engine selects, and so its speed.
X86_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)
ARM_FLAGS = ("neon", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2")


def describe_device() -> Mapping[str, str]:
    """Describe this computer's system, CPU and Python.

    Returns:
        `system`, `machine`, `cpu`, `flags` (instruction sets that matter to engines,
        empty if the system does not list them), `cores` and `python`.

    Example:
        >>> sorted(describe_device())
        ['cores', 'cpu', 'flags', 'machine', 'python', 'system']
    """
    fields = _read_cpuinfo()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": " ".join(flag for flag in (*X86_FLAGS, *ARM_FLAGS) if flag in flags),
        "cores": str(os.cpu_count() or 1),
        "python": platform.python_version(),
    }


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use, at least 1.

    It is the number in the process's affinity, or the CPU quota of its cgroup (v1 or
    v2, rounded up) if that is smaller. A container's limit of CPUs is such a quota.

    Args:
        root: Folder that holds `proc` and `sys`.

    Example:
        >>> 1 <= usable_cpus() <= os.cpu_count()
        True
    """
    return max(1, min([len(_allowed_cpus()), *map(math.ceil, _cpu_quotas(root))]))


def default_threads(root: Path = Path("/")) -> int | None:
    """Return the number of threads for an engine, or None to let the engine choose.

    Engines start one thread per physical core of the machine. Where this process may
    use only a part of the machine, that is too many, and threads wait for each other
    (https://github.com/uxlfoundation/oneTBB/issues/190).

    Args:
        root: As in `usable_cpus`.

    Returns:
        None if this process may use all CPUs. Otherwise the number of CPUs that it may
        use, at most one per physical core.
    """
    return None if usable_cpus(root) >= (os.cpu_count() or 1) else usable_cores(root)


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of physical cores that this process may use, at least 1.

    Args:
        root: As in `usable_cpus`.

    Example:
        >>> 1 <= usable_cores() <= usable_cpus()
        True
    """
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    # CPUs of one core have the same list of siblings. A CPU without a list counts alone.
    cores = {_read_text(root / topology.format(cpu)) or str(cpu) for cpu in _allowed_cpus()}
    return min(usable_cpus(root), len(cores))


def _allowed_cpus() -> Collection[int]:
    """Return the CPUs in this process's affinity; all CPUs where it has none."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


@functools.cache
def _cpu_quotas(root: Path) -> tuple[float, ...]:
    """Return the CPU quotas of this process's cgroups and of their parents, in CPUs.

    They are read once, because `Model.stream` asks for them in every call.
    """
    quotas: list[float] = []
    mounted = root / "sys/fs/cgroup"
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has no names of controllers. Beside version 1 it has its own folder.
        names = ("", "unified") if not controllers else (controllers, *controllers.split(","))
        # A parent's quota limits its children too. Within a container the path may be
        # the host's, of which only the last folder is mounted; so the top counts too.
        group = PurePosixPath("/", path).relative_to("/")
        for name in names:
            for folder in (group, *group.parents):
                quotas += _read_quota(mounted / name / folder)
    return tuple(quotas)


def _read_quota(folder: Path) -> Iterator[float]:
    quota, _, period = _read_text(folder / "cpu.max").partition(" ")
    if not quota:
        quota = _read_text(folder / "cpu.cfs_quota_us")
        period = _read_text(folder / "cpu.cfs_period_us")
    # No quota is "max" in version 2 and -1 in version 1.
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        yield int(quota) / int(period)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("ascii", errors="replace").strip()
    except OSError:
        return ""


def _read_cpuinfo() -> dict[str, str]:
    """Return the fields of the first CPU in /proc/cpuinfo; empty on other systems."""
    lines = _read_text(Path("/proc/cpuinfo")).splitlines()
    # Reversed, so that the first CPU overwrites the others.
    pairs = [line.partition(":") for line in reversed(lines) if ":" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}
