"""Test that threads follow the CPUs which a process may use."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dermedge_runtime.hardware import default_threads, usable_cores, usable_cpus

TOY = Path(__file__).parents[1] / "data" / "toy.dermedge"
V1 = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n"
# By name: the content of /proc/self/cgroup, files below /sys/fs/cgroup, and the quota.
QUOTAS = {
    "no cgroup": ("", {}, 64),
    "v2, none": ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
    "v2, container": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "v2, part of a CPU": ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
    "v2, rounded up": ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
    "v2, other period": ("0::/\n", {"cpu.max": "150000 50000\n"}, 3),
    "v2, nested": ("0::/a.slice/b\n", {"a.slice/b/cpu.max": "400000 100000"}, 4),
    "v2, parent": (
        "0::/a.slice/b\n",
        {"a.slice/b/cpu.max": "400000 100000", "a.slice/cpu.max": "100000 100000"},
        1,
    ),
    "v2, path of the host": ("0::/kubepods/x\n", {"cpu.max": "300000 100000"}, 3),
    "v2, path outside": ("0::/../x\n", {"cpu.max": "300000 100000"}, 3),
    "v2, another group": ("0::/a\n", {"b/cpu.max": "100000 100000"}, 64),
    "v2 beside v1": ("0::/a\n1:name=systemd:/\n", {"unified/a/cpu.max": "200000 100000"}, 2),
    "v1": (V1, {"cpu,cpuacct/docker/abc/": "300000 100000"}, 3),
    "v1, none": (V1, {"cpu,cpuacct/docker/abc/": "-1 100000"}, 64),
    "v1, mounted as cpu": (V1, {"cpu/docker/abc/": "300000 100000"}, 3),
    "v1, path of the host": (V1, {"cpu,cpuacct/": "300000 100000"}, 3),
    "v1, cpuset only": ("2:cpuset:/a\n", {"cpuset/a/": "100000 100000"}, 64),
    "not a number": ("0::/\n", {"cpu.max": "lots of them\n"}, 64),
    "zero period": ("0::/\n", {"cpu.max": "100000 0\n"}, 64),
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on a machine of 64 CPUs, all of them allowed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def make_root(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    write(root / "proc/self/cgroup", cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        if name.endswith("cpu.max"):
            write(path, text)
        else:
            quota, period = text.split()
            write(path / "cpu.cfs_quota_us", f"{quota}\n")
            write(path / "cpu.cfs_period_us", f"{period}\n")
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", QUOTAS)
def test_a_quota_is_found_and_rounded_up(name: str, tmp_path: Path) -> None:
    cgroup, files, expected = QUOTAS[name]
    root = make_root(tmp_path, cgroup, files)
    assert usable_cpus(root) == expected
    assert default_threads(root) == (None if expected == 64 else expected)


def test_the_affinity_limits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cpus(make_root(tmp_path, "0::/\n", {"cpu.max": "400000 100000"})) == 2
    assert usable_cpus(make_root(tmp_path / "b", "0::/\n", {"cpu.max": "100000 100000"})) == 1


def test_two_cpus_of_one_core_get_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 32, 33})
    for cpu in (0, 1, 2, 32, 33):
        name = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        write(tmp_path / name, f"{cpu % 32},{cpu % 32 + 32}\n")
    assert (usable_cpus(tmp_path), default_threads(tmp_path)) == (5, 3)
    assert usable_cores(tmp_path) == 3


def test_a_system_without_affinity_counts_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (usable_cpus(tmp_path), default_threads(tmp_path)) == (64, None)


LOADED = """
import json, os, sys
import torch
from dermedge_export.toolchain import limit_torch_threads
from dermedge_runtime.bench import bench
from dermedge_runtime.hardware import default_threads, usable_cpus
from dermedge_runtime.model import load
limit_torch_threads()
before = len(os.listdir("/proc/self/task"))
with load(sys.argv[1]) as model:
    after = len(os.listdir("/proc/self/task"))
with load(sys.argv[1], threads=3) as model:
    explicit = len(os.listdir("/proc/self/task"))
report = bench(sys.argv[1], image=sys.argv[2], runs=1, warmup=0)
print(json.dumps([
    usable_cpus(), default_threads(), torch.get_num_threads(), after - before, explicit - before,
    report.cpus,
]))
"""


@pytest.mark.skipif(
    shutil.which("taskset") is None or (os.cpu_count() or 1) < 2,
    reason="needs taskset and two CPUs",
)
def test_a_process_on_one_cpu_starts_no_pool_unless_asked(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48), "pink").save(tmp_path / "a.png")
    ran = subprocess.run(
        ["taskset", "-c", "0", sys.executable, "-c", LOADED, TOY, tmp_path / "a.png"],
        capture_output=True,
        text=True,
        check=False,
        env={name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"},
    )
    assert ran.returncode == 0, ran.stderr
    # An engine with one thread computes in the calling one; with three it starts two.
    assert json.loads(ran.stdout) == [1, 1, 1, 0, 2, 1]
