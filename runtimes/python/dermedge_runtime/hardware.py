"""Describe the computer that this process runs on."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

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


def _read_cpuinfo() -> dict[str, str]:
    """Return the fields of the first CPU in /proc/cpuinfo; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    # Reversed, so that the first CPU overwrites the others.
    pairs = [line.partition(":") for line in reversed(lines) if ":" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}
