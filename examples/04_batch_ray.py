"""Predict a folder of images, or the images of a Parquet data set, on many machines.

python examples/04_batch_ray.py BUNDLE DATA OUT [WORKERS]

DATA is a folder of images, or a Parquet file or folder. Its column `image` holds paths
(relative to the Parquet file or folder) or encoded images. OUT is a new folder for
Parquet files, or a new .csv file. An image that cannot be read becomes a row with its
error.

It needs `pip install 'dermedge[data,onnxruntime,ray]'`. Without RAY_ADDRESS, Ray starts on this
machine. With it, the machines of that cluster need the same paths.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

import dermedge
from dermedge_runtime.find_images import Skipped
from dermedge_runtime.predict import list_sources

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it when it is imported.
import ray

BATCH = 64
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("error", pa.string()),
        ("diagnosis", pa.string()),
        ("probability", pa.float64()),
        ("malignancy", pa.float64()),
        ("decision", pa.string()),
        ("prediction", pa.string()),  # The JSON object of `dermedge predict --json`.
    ]
)


class Predictor:
    """A worker of the pool, which opens the bundle once.

    Args:
        bundle: Path of the bundle.
        root: Folder that paths are relative to.
    """

    def __init__(self, bundle: str, root: str) -> None:
        self.root = Path(root)
        # The workers share the CPUs, so each engine uses one.
        self.model = dermedge.load(bundle, threads=1)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> pa.Table:
        """Return a row per image of the column `image`."""
        names = batch.get("image_id", batch["image"])
        sources = [x if isinstance(x, bytes) else self.root / x for x in batch["image"]]
        answers = self.model.stream(sources, on_error="return")
        rows = [describe(name, answer) for name, answer in zip(names, answers, strict=True)]
        return pa.Table.from_pylist(rows, SCHEMA)


def describe(name: str | bytes, answer: dermedge.Prediction | dermedge.ImageError) -> dict:
    """Return the cells of one row; None where there is no value."""
    image = "-" if isinstance(name, bytes) else str(name)
    if isinstance(answer, dermedge.ImageError):
        return {"image": image, "error": str(answer)}
    top = answer.labels[0] if answer.labels else None
    return {
        "image": image,
        "diagnosis": top and top.id,
        "probability": top and top.probability,
        "malignancy": answer.malignancy,
        "decision": answer.decision,
        "prediction": json.dumps(answer.to_json()),
    }


def read(data: Path) -> tuple[ray.data.Dataset, Path]:
    """Return the images as a data set with the column `image`, and the root of its paths."""
    is_parquet = data.suffix == ".parquet" or any(data.glob("*.parquet"))
    if is_parquet:
        return ray.data.read_parquet(str(data)), data if data.is_dir() else data.parent
    skipped = Skipped()
    paths = [{"image": name} for name, _ in list_sources(data, skipped)]
    if skipped:
        print(skipped, file=sys.stderr)
    return ray.data.from_items(paths), Path()


def main(bundle: str, data: Path, out: Path, workers: int = 2) -> None:
    if out.exists():
        sys.exit(f"{out} exists. Choose another name.")
    if "RAY_ADDRESS" not in os.environ:
        # Ray reads the data on one more CPU.
        ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    images, root = read(data)
    predictions = images.map_batches(
        Predictor,
        fn_constructor_args=(str(Path(bundle).resolve()), str(root.resolve())),
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=workers),
    ).materialize()
    if out.suffix == ".csv":
        predictions.to_pandas().to_csv(out, index=False)
    else:
        predictions.write_parquet(str(out))
    failed = sum(1 for row in predictions.iter_rows() if row["error"] is not None)
    print(f"{predictions.count()} images, {failed} unreadable: {out}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
