"""Measure image quality on photographs, and derive the limits of the export.

Run `PYTHONPATH=tests python tests/benchmarks/quality.py DATA ...`, where each DATA is the
folder of a data set. Test images are not read. docs/benchmarks.md has the results.

Each limit is the strictest one that flags at most 1 % of the photographs of every data
set, at every size. `dark` also has to keep drawn lesions on the darkest skin. The limits of
the lesion's size come from the masks of the data sets that have masks, and with --bundle
the script also prints how many of a model's own masks they flag.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dermedge.data.masks import read_mask
from dermedge.data.split import with_split
from dermedge.data.table import Table, read_table
from dermedge.evaluation.corruptions import SEVERITIES, corrupt
from dermedge_export.quality_limits import LESION_LIMITS, PIXEL_LIMITS
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.model import load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.quality import (
    LesionSize,
    Quality,
    describe_lesion,
    describe_quality,
    measure_lesion,
    measure_quality,
)
from dermedge_runtime.spec import Preprocess

SIZES = (96, 128, 160, 224, 384)
SIZE = 160  # Of the degraded photographs.
SHARE = 0.01
DEGRADED = ("defocus_blur", "motion_blur", "underexposure", "overexposure", "glare")
DARKEST = 6
FACTORS = (1, 2, 3, 4)  # By which the photographer is too near or too far.


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
    return f"{np.mean([bool(describe_quality(q, PIXEL_LIMITS)) for q in found]):.1%}"


def lesions(table: Table, size: int, count: int) -> list[np.ndarray]:
    """Return masks of train and val, evenly spread, in the frame of the network's input."""
    frame = table.frame[(table.frame["split"] != "test") & (table.frame["mask"] != "")]
    rows = np.unique(np.linspace(0, len(frame) - 1, count).astype(int)) if len(frame) else ()
    paths = ((table.path(frame[name].iloc[row]) for name in ("mask", "image")) for row in rows)
    return [read_mask(mask, Preprocess(size=size), image) for mask, image in paths]


def derive_lesion(tables: list[Table], count: int) -> None:
    """Print the limits of the lesion's size, and what they flag at other distances."""
    small, cut = [], []
    for table in tables:
        for size in SIZES:
            found = [measure_lesion(mask) for mask in lesions(table, size, count)]
            if not found:
                continue
            small.append(int(np.quantile([f.share for f in found], SHARE, method="lower")))
            cut.append(int(np.quantile([f.border for f in found], 1 - SHARE, method="higher")))
            print(f"{table.name} {size} px: {len(found)} masks, small {small[-1]} cut {cut[-1]}")
    print(f"limits of the lesion: small {min(small)} cut {max(cut)}")
    for table in tables:
        masks = lesions(table, SIZE, count)
        for name, change in (("farther", farther), ("nearer", nearer)) if masks else ():
            shares = [
                f"{k} x {flagged_lesions([measure_lesion(change(mask, k)) for mask in masks])}"
                for k in FACTORS
            ]
            print(f"{table.name}, {name}, flagged:", *shares)


def farther(mask: np.ndarray, factor: int) -> np.ndarray:
    """Return the mask of a photograph from `factor` times the distance."""
    side = len(mask)
    small, start = mask[::factor, ::factor], (side - side // factor) // 2
    far = np.zeros_like(mask)
    far[start : start + len(small), start : start + len(small)] = small
    return far


def nearer(mask: np.ndarray, factor: int) -> np.ndarray:
    """Return the mask of the middle of a photograph, `factor` times as large."""
    side = len(mask)
    start = (side - side // factor) // 2
    part = mask[start : start + side // factor, start : start + side // factor]
    return part.repeat(factor, 0).repeat(factor, 1)


def flagged_lesions(found: list[LesionSize]) -> str:
    """Return the share of masks that the export's limits flag."""
    return f"{np.mean([bool(describe_lesion(size, LESION_LIMITS)) for size in found]):.1%}"


def judge_model(bundle: Path, tables: list[Table], count: int) -> None:
    """Print the measures and the flagged share of a model's masks of photographs."""
    with load(bundle) as model:
        for table in tables:
            masks = (model.predict(photo).mask for _, photo in photographs(table, count))
            found = [measure_lesion(mask) for mask in masks if mask is not None]
            shares = np.quantile([size.share for size in found], (SHARE, 0.5, 1 - SHARE))
            border = np.quantile([size.border for size in found], 1 - SHARE)
            print(f"{table.name}, masks of {bundle.name}: share {shares}, border {border:.0f},")
            print(f"  flagged: {flagged_lesions(found)}")


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
        return describe_quality(measure_quality(pixels), PIXEL_LIMITS)

    own, before = median(judge), median(lambda: preprocess(photo, spec))
    return f"{size} px: quality {own:.0f} us, preprocessing of decoded pixels {before:.0f} us"


def main() -> None:
    """Print the limits, the flagged shares and the cost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=200, help="per data set")
    parser.add_argument("--degraded", type=int, default=100, help="degraded ones per data set")
    parser.add_argument("--masks", type=int, default=1000, help="per data set")
    parser.add_argument("--bundle", type=Path, help="of a model that segments the lesion")
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
    derive_lesion(tables, options.masks)
    if options.bundle is not None:
        judge_model(options.bundle, tables, options.images)
    for size in (160, 224):
        print(cost(size))


if __name__ == "__main__":
    main()
