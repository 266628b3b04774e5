"""Measure image quality on photographs, and derive the limits of the export.

Run `PYTHONPATH=tests python tests/benchmarks/quality.py DATA ...`, where each DATA is the
folder of a data set. Test images are not read. docs/benchmarks.md has the results.

Each limit is the strictest one that flags at most 1 % of the photographs of every data
set, at every size. `dark` also has to keep drawn lesions on the darkest skin.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dermedge.data.split import with_split
from dermedge.data.table import Table, read_table
from dermedge.evaluation.corruptions import SEVERITIES, corrupt
from dermedge_export.quality_limits import QUALITY_LIMITS
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.quality import Quality, describe_quality, measure_quality
from dermedge_runtime.spec import Preprocess

SIZES = (96, 128, 160, 224, 384)
SIZE = 160  # Of the degraded photographs.
SHARE = 0.01
DEGRADED = ("defocus_blur", "motion_blur", "underexposure", "overexposure", "glare")
DARKEST = 6


def photographs(table: Table, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield photographs of train and val, evenly spread over the table."""
    frame = table.frame[table.frame["split"] != "test"]
    for row in np.unique(np.linspace(0, len(frame) - 1, count).astype(int)):
        path = table.path(str(frame["image"].iloc[row]))
        yield str(frame["image_id"].iloc[row]), Image.open(path).convert("RGB")


def measure(picture: Image.Image, size: int) -> Quality:
    """Measure a photograph at one size of the network's input."""
    return measure_quality(preprocess(picture, Preprocess(size=size)))


def derive(clean: dict[tuple[str, int], list[Quality]], drawn: list[Quality]) -> None:
    """Print the limit of each data set and size, and the strictest common one."""

    def limit(name: str, share: float) -> dict[tuple[str, int], int]:
        # `lower` and `higher` keep a limit that flags at most the share.
        method = "lower" if share < 0.5 else "higher"
        return {
            key: int(np.quantile([getattr(q, name) for q in found], share, method=method))
            for key, found in clean.items()
        }

    sharp, dark = limit("sharpness", SHARE), limit("brightness", SHARE)
    bright, glare = limit("brightness", 1 - SHARE), limit("glare", 1 - SHARE)
    for key in clean:
        print(*key, f"sharpness {sharp[key]} dark {dark[key]}", end=" ")
        print(f"bright {bright[key]} glare {glare[key]}")
    darkest = int(np.quantile([q.brightness for q in drawn], SHARE, method="lower"))
    print(f"drawn lesions on skin type {DARKEST}: dark {darkest}")
    print(
        f"limits: sharpness {min(sharp.values())} dark {min(darkest, *dark.values())} "
        f"bright {max(bright.values())} glare {max(glare.values())}"
    )


def flagged(found: list[Quality]) -> str:
    """Return the share of images that the export's limits flag."""
    return f"{np.mean([bool(describe_quality(q, QUALITY_LIMITS)) for q in found]):.1%}"


def cost(size: int, runs: int = 500) -> str:
    """Return the time of the measures next to that of preprocessing a 600 x 450 photo."""
    photo = np.random.default_rng(0).integers(0, 256, (450, 600, 3)).astype(np.uint8)
    spec = Preprocess(size=size)
    pixels = preprocess(photo, spec)

    def median(call: object) -> float:
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            call()  # type: ignore[operator]
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e6

    def judge() -> tuple[str, ...]:
        return describe_quality(measure_quality(pixels), QUALITY_LIMITS)

    own, before = median(judge), median(lambda: preprocess(photo, spec))
    return f"{size} px: quality {own:.0f} us, preprocessing of decoded pixels {before:.0f} us"


def main() -> None:
    """Print the limits, the flagged shares and the cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=200, help="per data set")
    parser.add_argument("--degraded", type=int, default=100, help="degraded ones per data set")
    options = parser.parse_args()
    clean: dict[tuple[str, int], list[Quality]] = {}
    tables = [with_split(read_table(folder)) for folder in options.data]
    for table in tables:
        for _, picture in photographs(table, options.images):
            for size in SIZES:
                clean.setdefault((table.name, size), []).append(measure(picture, size))
    drawn = [
        measure(Image.fromarray(draw_lesion(seed, fitzpatrick=DARKEST).image), SIZE)
        for seed in range(options.degraded)
    ]
    derive(clean, drawn)
    print(f"drawn lesions on skin type {DARKEST}, flagged: {flagged(drawn)}")
    for table in tables:
        shares = ", ".join(f"{size} px {flagged(clean[table.name, size])}" for size in SIZES)
        print(f"{table.name}, not degraded, flagged: {shares}")
        for name in DEGRADED:
            found: dict[int, list[Quality]] = {severity: [] for severity in SEVERITIES}
            for image_id, picture in photographs(table, options.degraded):
                for severity in SEVERITIES:
                    degraded = corrupt(picture, name, severity, image_id)
                    found[severity].append(measure(degraded, SIZE))
            print(f"{table.name}, {name}:", *(f"{s} {flagged(q)}" for s, q in found.items()))
    for size in (160, 224):
        print(cost(size))


if __name__ == "__main__":
    main()
