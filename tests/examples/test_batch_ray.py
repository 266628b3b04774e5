"""The Ray example gives the results of `dermedge predict`, with two local workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.errors import ImageError
from dermedge_runtime.predict import predict

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dermedge[ray]'.")

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests" / "data" / "toy.dermedge"
COUNT = 5


def run(*arguments: object) -> str:
    """Run the example in a new process; return its standard output."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "04_batch_ray.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of lesions, one of which cannot be decoded."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        Image.fromarray(draw_lesion(number).image).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photograph")
    return folder


def test_a_folder_and_parquet_give_what_predict_gives(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.mkdir()
    paths = sorted(str(path) for path in images.iterdir())
    pd.DataFrame({"image": paths}).to_parquet(table / "part.parquet")
    assert f"{COUNT + 1} images, 1 unreadable" in run(BUNDLE, images, tmp_path / "out.csv", 2)
    run(BUNDLE, table, tmp_path / "out", 2)
    from_folder = pd.read_csv(tmp_path / "out.csv")
    from_table = pd.read_parquet(tmp_path / "out")
    for found in (from_folder, from_table):
        rows = {row["image"]: row for row in found.to_dict("records")}
        assert list(rows) == paths
        for name, expected in predict(BUNDLE, images):
            row = rows[name]
            if isinstance(expected, ImageError):
                assert row["error"] == str(expected)
                assert pd.isna(row["prediction"])
                continue
            assert pd.isna(row["error"])
            own, other = json.loads(row["prediction"]), expected.to_json()
            assert {**own, "timing": None} == {**other, "timing": None}
            assert row["diagnosis"] == expected.labels[0].id
            assert row["malignancy"] == pytest.approx(expected.malignancy, rel=1e-12)
