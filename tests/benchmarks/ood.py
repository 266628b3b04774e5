"""Compare scores that tell images without skin, and clinical photographs, from dermoscopy.

    python tests/benchmarks/ood.py STUDENT ../shared/data/ham10000 \
        --clinical ../shared/data/pad_ufes_20 --near ../shared/data/isic2017 -o runs/ood

STUDENT is a model folder that was trained on the first data set. Each score is fitted on
its train images, and its threshold keeps 95 % of its val images. The table gives the
share of test images that is kept, and the share of the other images that is flagged:
drawn ones, photographs of scikit-image and scikit-learn with crops of them, the clinical
photographs, and dermoscopy from another source. The last two scores also learn from
foreign images: drawn ones with other seeds, or the train rows of the clinical set, whose
other rows, of other patients, are the column. Its 95 % interval resamples patients. It needs
scikit-image and pytorch-ood
(`pip install scikit-image pytorch-ood`). Features are computed once and kept in the
output folder.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.split import with_split
from dermedge.data.table import groups, read_table
from dermedge.models import TrainedModel, load_model_folder
from dermedge.models.ood import AXES, FeatureDistance, fit_distance, fit_foreign
from dermedge.train.ood import DRAWN as FITTED
from dermedge_export.evaluation.metrics import bootstrap, weighted_mean
from dermedge_export.evaluation.ood import fit_ood_threshold
from dermedge_export.synthetic.foreign import KINDS, draw_foreign
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.files import atomic_write
from dermedge_runtime.preprocess import preprocess

Pixels = NDArray[np.uint8]
Score = Callable[["Features"], NDArray[np.floating]]
DRAWN = 100 * len(KINDS)
CROPS = 15  # of each photograph
OWN = ("train", "val", "fitted")  # sets that a score or a threshold is fitted on
LEFT_OUT = ("color",)  # 10 x 15 pixels


class Features:
    """Pooled features [N, D], logits of the diagnosis [N, K], and the kind of each image."""

    def __init__(self, pooled: torch.Tensor, logits: torch.Tensor, kinds: list[str]) -> None:
        self.pooled, self.logits, self.kinds = pooled, logits, np.array(kinds)


def main() -> None:
    """Compute the features, fit each score, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("student", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clinical", type=Path, required=True)
    parser.add_argument("--near", type=Path, required=True)
    parser.add_argument("--train", type=int, default=0, help="train images to fit on; 0 is all")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = load_model_folder(arguments.student)
    sets = collect(model, arguments)
    found = {}
    exposed, patients = separate(sets, arguments.clinical)
    for name, score in scores(model, sets, exposed).items():
        found[name] = measure(score, sets, patients)
        atomic_write(out / "ood.json", pretty_json(found))
    columns = ["test", *(name for name in sets if name not in (*OWN, "test"))]
    print("| score | test kept |", " | ".join(columns[1:]), "| least flagged kinds |")
    for name, row in found.items():
        cells = [f"{row[column]:.3f}" for column in columns]
        low, high = row["clinical_interval"]
        cells[columns.index("clinical")] += f" ({low:.3f}-{high:.3f})"
        worst = sorted(row["kinds"].items(), key=lambda pair: pair[1])[:3]
        print(f"| {name} |", " | ".join(cells), "|", ", ".join(f"{k} {v:.2f}" for k, v in worst))


def collect(model: TrainedModel, arguments: argparse.Namespace) -> dict[str, Features]:
    """Return the features of every set of images, from the output folder if they are there."""
    splits = {image: split for image, _, split in model.split}
    table = read_table(arguments.data)
    sets: dict[str, Callable[[], Iterator[tuple[str, Pixels]]]] = {}
    size = model.spec.preprocess.size

    def of_table(folder: Path, split: str | None, limit: int = 0) -> Iterator[tuple[str, Pixels]]:
        read = table if split else read_table(folder)
        rows = [
            image
            for identifier, image in zip(read.frame["image_id"], read.frame["image"], strict=True)
            if split is None or splits.get(identifier) == split
        ]
        for image in rows[:: max(1, len(rows) // limit)][:limit] if limit else rows:
            yield split or folder.name, preprocess(read.path(image), model.spec.preprocess)

    def photographs() -> Iterator[tuple[str, Pixels]]:
        for name, image in packaged():
            for part in crops(image):
                yield name, preprocess(part, model.spec.preprocess)

    sets["train"] = lambda: of_table(arguments.data, "train", arguments.train)
    sets["val"] = lambda: of_table(arguments.data, "val")
    sets["test"] = lambda: of_table(arguments.data, "test")
    sets["drawn"] = lambda: (
        (KINDS[seed % len(KINDS)], draw_foreign(seed, size)) for seed in range(DRAWN)
    )
    sets["fitted"] = lambda: (("drawn", draw_foreign(seed, size)) for seed in FITTED)
    sets["photographs"] = photographs
    sets["clinical"] = lambda: of_table(arguments.clinical, None)
    sets["near"] = lambda: of_table(arguments.near, None)
    return {name: features(model, images, arguments.out / name) for name, images in sets.items()}


def separate(sets: dict[str, Features], folder: Path) -> tuple[Features, NDArray[np.str_]]:
    """Take the train rows out of the clinical set, by patients.

    Returns:
        These rows, and the patient of each image that is left.
    """
    whole, frame = sets["clinical"], with_split(read_table(folder)).frame
    train, patients = (frame["split"] == "train").to_numpy(), groups(frame).to_numpy(str)
    parts = [
        Features(whole.pooled[rows], whole.logits[rows], whole.kinds[rows].tolist())
        for rows in (train, ~train)
    ]
    for text, rows in (("fitted on", train), ("measured on", ~train)):
        print(f"clinical: {text} {rows.sum()} images of {len(set(patients[rows]))} patients")
    sets["clinical"] = parts[1]
    return parts[0], patients[~train]


def packaged() -> Iterator[tuple[str, Image.Image]]:
    """Yield the photographs and drawings that scikit-image and scikit-learn bring along."""
    for package in ("skimage.data", "sklearn.datasets.images"):
        for path in sorted(files(package).iterdir(), key=lambda path: path.name):
            name = Path(path.name)
            if name.suffix in (".png", ".jpg") and name.stem not in LEFT_OUT:
                with path.open("rb") as stream, Image.open(stream) as image:
                    yield name.stem, image.convert("RGB")


def crops(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the image and random squares of it, of 30 % to 100 % of its shorter side."""
    yield image
    rng, (width, height) = np.random.default_rng(0), image.size
    for _ in range(CROPS):
        side = int(min(width, height) * rng.uniform(0.3, 1))
        left, top = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
        if side >= 32:
            yield image.crop((int(left), int(top), int(left) + side, int(top) + side))


@torch.no_grad()
def features(
    model: TrainedModel, images: Callable[[], Iterable[tuple[str, Pixels]]], path: Path
) -> Features:
    """Return the features of images, computed unless `path` holds them."""
    file = path.with_suffix(".pt")
    if file.is_file():
        return Features(*torch.load(file, weights_only=True))
    kinds, parts, batch = [], [], []
    stream = iter(images())
    while True:
        item = next(stream, None)
        if item is not None:
            kinds.append(item[0])
            batch.append(torch.from_numpy(item[1]))
        if batch and (len(batch) == 64 or item is None):
            parts.append(model.module.features(torch.stack(batch)))
            batch = []
        if item is None:
            break
    pooled = torch.cat(parts)
    logits = model.module.heads["diagnosis"](pooled)
    torch.save((pooled, logits, kinds), file)
    return Features(pooled, logits, kinds)


def scores(
    model: TrainedModel, sets: Mapping[str, Features], exposed: Features
) -> dict[str, Score]:
    """Return every score, fitted on the train images. Larger is more foreign."""
    from pytorch_ood.detector import KNN, RMD, EnergyBased, Mahalanobis, MaxSoftmax, ViM

    train = sets["train"]
    labels = train.logits.argmax(1)  # predicted classes: a score needs no true ones
    classifier = model.module.heads["diagnosis"]
    rank = min(512, train.pooled.shape[1] // 2)

    def fitted(detector: "Mahalanobis | RMD | KNN | ViM") -> Score:
        detector.fit_features(train.pooled, labels)
        return lambda images: detector.predict_features(images.pooled).numpy()

    found: dict[str, Score] = {
        "max softmax": lambda images: MaxSoftmax.score(images.logits).numpy(),
        "energy": lambda images: EnergyBased.score(images.logits).numpy(),
        "kNN, 10th neighbour": fitted(KNN(None, n_neighbors=10)),
        "Mahalanobis by class": fitted(Mahalanobis(None)),
        "relative Mahalanobis": fitted(RMD(None)),
        f"ViM, {rank} axes": fitted(
            ViM(None, d=rank, w=classifier.weight.detach(), b=classifier.bias.detach())
        ),
    }
    found[f"PCA residual, {AXES} axes"] = residual(train.pooled, AXES)
    for axes in (16, 64, 128):
        found[f"PPCA distance, {axes} axes"] = distance(train.pooled, axes)
    for name, foreign in (("drawn", sets["fitted"]), ("clinical", exposed)):
        head = fit_distance(train.pooled)
        fit_foreign(head, train.pooled, sets["val"].pooled, foreign.pooled)
        found[f"PPCA distance, 64 axes, and classifier of {name} images"] = applied(head)
    return found


def residual(train: torch.Tensor, axes: int) -> Score:
    """Return the norm of what the first principal axes leave of the features."""
    centre = train.mean(0)
    _, directions = torch.linalg.eigh(torch.cov(train.T))
    kept = directions[:, -axes:]

    def score(images: Features) -> NDArray[np.floating]:
        offset = images.pooled - centre
        return (offset - offset @ kept @ kept.T).norm(dim=1).numpy()

    return score


def distance(train: torch.Tensor, axes: int = AXES) -> Score:
    """Return the score of the `ood` head, with a number of axes."""
    return applied(fit_distance(train, axes))


def applied(head: FeatureDistance) -> Score:
    """Return the score of a head."""
    return lambda images: head(images.pooled)[:, 0].numpy()


def measure(
    score: Score, sets: Mapping[str, Features], patients: NDArray[np.str_]
) -> dict[str, Any]:
    """Return the share of test images that is kept, and the flagged share of other sets."""
    threshold = fit_ood_threshold(score(sets["val"]))
    assert threshold is not None
    row: dict[str, Any] = {}
    kinds: dict[str, float] = {}
    with torch.no_grad():
        for name, images in sets.items():
            if name in OWN:
                continue
            flagged = score(images) > threshold
            row[name] = float((~flagged if name == "test" else flagged).mean())
            if name == "clinical":
                drawn = bootstrap(patients, {0: partial(weighted_mean, flagged)})
                row["clinical_interval"] = np.quantile(drawn[0], (0.025, 0.975)).tolist()
            if name in ("drawn", "photographs"):
                kinds |= {
                    kind: float(flagged[images.kinds == kind].mean())
                    for kind in sorted(set(images.kinds.tolist()))
                }
    return row | {"kinds": kinds}


if __name__ == "__main__":
    main()
