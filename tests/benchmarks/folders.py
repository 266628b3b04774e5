"""Measure `data check` and `predict` on a folder of many images, against another version.

    python tests/benchmarks/folders.py --against CHECKOUT [--images N] [--json OUT]

Both versions run in turns, so that a busy machine slows down both. CPU time and peak
memory are those of the whole process. Run it by hand; no test asserts a time.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from dermedge_export.synthetic.lesions import CLASSES, draw_lesion
from dermedge_runtime.hardware import describe_device

HERE = Path(__file__).parents[2]
TOY = HERE / "tests" / "data" / "toy.dermedge"
DRAWN = 200
PARTS = ("", "export", "runtimes/python")
COMMAND = "import sys; from dermedge.cli import main; main(sys.argv[1:])"


def make_set(folder: Path, images: int) -> None:
    """Write JPEG files with drawn lesions; a comment makes every file another one."""
    (folder / "images").mkdir(parents=True)
    drawn = []
    for seed in range(min(DRAWN, images)):
        buffer = io.BytesIO()
        lesion = draw_lesion(seed, height=192, width=256).image
        Image.fromarray(lesion).save(buffer, "JPEG", quality=90)
        drawn.append(buffer.getvalue())
    rows = ["image_id,image,dx,lesion_id"]
    for number in range(images):
        data, comment = drawn[number % len(drawn)], f"{number:08}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"images/{number}.jpg").write_bytes(data[:2] + segment + data[2:])
        rows.append(f"i{number},images/{number}.jpg,{CLASSES[number % len(CLASSES)]},L{number}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def measure(root: Path, arguments: list[str]) -> dict[str, float]:
    """Run a command of the version at `root`; return its CPU time and peak memory."""
    paths = os.pathsep.join(str(root / part) for part in PARTS)
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=root,  # Python looks there first
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(arguments[:2])} of {root} failed. Run it to see why.")
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def main() -> None:
    """Parse the command line, measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="checkout of a version")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "set"
        make_set(data, options.images)
        commands = {
            "data check": ["data", "check", str(data)],
            "predict": ["predict", str(TOY), str(data / "images"), "--json", "--threads", "1"],
        }
        runs: dict[str, Any] = {name: {"former": [], "this": []} for name in commands}
        for _ in range(options.rounds):
            for name, arguments in commands.items():
                for version, root in (("former", options.against), ("this", HERE)):
                    runs[name][version].append(measure(root, arguments))
    result = {"device": describe_device(), "images": options.images, "runs": runs, "ratios": {}}
    for name, versions in runs.items():
        for key in ("cpu_s", "peak_mb"):
            former, this = (min(run[key] for run in versions[v]) for v in ("former", "this"))
            result["ratios"][f"{name} {key}"] = round(this / former, 3)
            print(f"{name:11} {key:8} former {former:8.1f} this {this:8.1f}  {this / former:.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
