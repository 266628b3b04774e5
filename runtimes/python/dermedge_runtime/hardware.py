"""Describe the computer that this process runs on."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

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
    """What this computer is: system, machine, CPU with the flags that matter to engines, cores, Python."""
    fields = _cpuinfo()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": " ".join(flag for flag in (*X86_FLAGS, *ARM_FLAGS) if flag in flags),
        "cores": str(os.cpu_count() or 1),
        "python": platform.python_version(),
    }


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [line.partition(":") for line in reversed(lines) if ":" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}
