"""Compare class activation maps with occlusion.

    python tests/benchmarks/class_map.py STUDENT ../shared/data/ham10000

STUDENT is a model folder that was trained on the data set. Each place of the map is covered
in the image with the image's mean colour, one after the other, and the logit of the most
probable label is computed again. The script prints the rank correlation of the map with the
drop of the logit over the places, for val images at equal distances in the table.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from dermedge.data.table import read_table
from dermedge.models import load_model_folder
from dermedge_export.class_map import map_task, with_class_map
from dermedge_export.context import module_runner
from dermedge_runtime.preprocess import preprocess


def main() -> None:
    """Print the correlation of each image, and their mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=20)
    arguments = parser.parse_args()
    student = load_model_folder(arguments.student)
    model = with_class_map(student)
    run, maps, diagnosis = module_runner(model.module), map_task(model.spec), model.spec.diagnosis
    assert maps is not None
    assert diagnosis is not None
    val = {image for image, _, split in student.split if split == "val"}
    table = read_table(arguments.data)
    rows = table.frame[table.frame["image_id"].isin(val)]
    rows = rows.iloc[:: max(1, len(rows) // arguments.images)][: arguments.images]
    found = []
    for identifier, path in zip(rows["image_id"], rows["image"], strict=True):
        image = preprocess(table.path(path), model.spec.preprocess)
        outputs = run(image[None])
        top = int(outputs[diagnosis.name][0].argmax())
        cam = outputs[maps.name][0, top]
        covered = run(cover(image, *cam.shape))[diagnosis.name][:, top]
        drop = (outputs[diagnosis.name][0, top] - covered).reshape(cam.shape)
        ranks = float(spearmanr(cam.ravel(), drop.ravel()).statistic)
        # Rank of the map's peak among the drops: 0 is the place that counts most.
        place = int((drop > drop.flat[cam.argmax()]).sum())
        found.append((ranks, place))
        label = diagnosis.labels[top].id
        print(f"{identifier} {label} correlation {ranks:.2f}, peak has drop number {place + 1}")
    ranks, places = np.array(found).T
    share = float((places < drop.size / 4).mean())
    print(
        f"{len(found)} images, map {cam.shape[0]} x {cam.shape[1]}: mean correlation "
        f"{ranks.mean():.2f}, median {np.median(ranks):.2f}, positive for {(ranks > 0).sum()}; "
        f"the peak is among the quarter of places with the largest drop in {share:.0%}"
    )


def cover(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return copies of an image, in each of which another place has the mean colour."""
    colour, size = image.mean((0, 1)).astype(np.uint8), len(image)
    copies = np.repeat(image[None], height * width, 0)
    for copy, (y, x) in zip(copies, np.ndindex(height, width), strict=True):
        rows = slice(size * y // height, size * (y + 1) // height)
        copy[rows, size * x // width : size * (x + 1) // width] = colour
    return copies


if __name__ == "__main__":
    main()
