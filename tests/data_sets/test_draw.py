"""Draw data sets of procedural lesions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import folder_bytes
from dermedge.data.check import check_data
from dermedge.data.draw import draw_data_set
from dermedge.data.split import with_split
from dermedge.data.table import groups, read_table
from dermedge_export.synthetic.lesions import CLASSES
from dermedge_runtime.errors import UsageError

COUNT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated") / "set"
    draw_data_set(path, count=COUNT, seed=5, size=(96, 72))
    return path


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    draw_data_set(tmp_path / "again", count=12, seed=5, size=(96, 72))
    draw_data_set(tmp_path / "once more", count=12, seed=5, size=(96, 72))
    draw_data_set(tmp_path / "other", count=12, seed=6, size=(96, 72))
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "once more")
    assert folder_bytes(tmp_path / "again") != folder_bytes(tmp_path / "other")


def test_a_drawn_set_has_all_columns_and_passes_the_check(folder: Path) -> None:
    report = check_data(folder)
    assert [f for f in report.findings if f.level == "error"] == []
    assert not [
        f
        for f in report.findings
        if f.code.startswith(("near_duplicate_across", "exact", "missingness"))
    ]
    assert report.images == COUNT
    assert set(report.classes) == set(CLASSES)
    assert max(report.classes, key=report.classes.__getitem__) == "nv"
    assert report.groups < COUNT


def test_lesions_have_repeat_views_and_patients_several_lesions(folder: Path) -> None:
    frame = with_split(read_table(folder)).frame
    assert frame["lesion_id"].nunique() < COUNT
    assert frame.groupby("patient_id")["lesion_id"].nunique().max() > 1
    for column in ("dx", "severity", "patient_id", "site"):
        assert frame.groupby("lesion_id")[column].nunique().max() == 1
    for column in ("age", "sex", "fitzpatrick"):
        assert frame.groupby("patient_id")[column].nunique().max() == 1
    assert groups(frame).nunique() == frame["patient_id"].nunique()
    assert frame.groupby("patient_id")["split"].nunique().max() == 1
    views = frame[frame["lesion_id"].duplicated(keep=False)]
    one, other = (np.asarray(Image.open(folder / image)) for image in views["image"][:2])
    assert one.shape == other.shape == (72, 96, 3)
    assert np.abs(one.astype(int) - other).mean() > 2


def test_masks_lie_on_the_lesion(folder: Path) -> None:
    table = read_table(folder)
    again = table.frame["lesion_id"].duplicated().tolist()
    contrasts, mirrored = [], []
    for image, mask in zip(table.frame["image"], table.frame["mask"], strict=True):
        pixels = np.asarray(Image.open(table.path(image)).convert("L"), dtype=float)
        inside = np.asarray(Image.open(table.path(mask)))
        assert inside.shape == pixels.shape
        assert 0.005 < inside.mean() < 0.8
        contrasts.append(pixels[~inside].mean() - pixels[inside].mean())
        mirrored.append(
            max(pixels[~m].mean() - pixels[m].mean() for m in (inside[:, ::-1], inside[::-1]))
        )
    own, other = np.asarray(contrasts), np.asarray(mirrored)
    assert (own > 0).mean() > 0.9
    assert sum(again) > 10
    assert (own > other)[again].mean() > 0.8


@pytest.mark.parametrize(
    "options", [{"count": 5}, {"count": 6, "seed": -1}, {"count": 6, "size": (31, 64)}]
)
def test_invalid_arguments_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        draw_data_set(tmp_path / "set", **options)
    assert not list(tmp_path.iterdir())


def test_every_class_is_in_the_smallest_set(tmp_path: Path) -> None:
    for seed in range(5):
        table = draw_data_set(tmp_path / str(seed), count=len(CLASSES), seed=seed, size=(32, 32))
        assert set(table.frame["dx"]) == set(CLASSES)
