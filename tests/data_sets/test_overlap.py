"""Find the training images of a teacher in a table, by digest and by set."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dermedge.data.check import check_data
from dermedge.data.layouts import CONTAINS, LAYOUTS
from dermedge.data.overlap import read_teacher_images, share_images
from dermedge.models.backbone import Backbone
from dermedge.models.folder_metadata import ModelMetadata, write_metadata
from dermedge.models.formats import DERMNIO_PRETRAINED_ON
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Preprocess, Spec, Task
from support.command import dermedge
from support.tables import save, write_csv

SPEC = Spec(
    "small",
    "1",
    (Task("features", "embed"),),
    Preprocess(32, "crop", "triangle", (255, 255, 255)),
    "tests",
)


def teacher(
    folder: Path, lineage: dict[str, Any], split: tuple[tuple[str, str, str], ...] = ()
) -> Path:
    """Write a model folder without weights: nothing here may open them."""
    backbone = Backbone("test_efficientnet", {}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None)
    spec = Spec(SPEC.name, SPEC.version, SPEC.tasks, SPEC.preprocess, SPEC.intended_use, lineage)
    folder.mkdir(parents=True)
    write_metadata(ModelMetadata(spec, backbone, "teacher", {}, split), folder)
    return folder


def data_set(folder: Path, sources: list[str], split: str = "test") -> Path:
    rows: list[dict[str, object]] = []
    for n, source in enumerate(sources):
        save(folder / f"images/{n}.png", n)
        rows.append(
            {"image_id": f"i{n}", "image": f"images/{n}.png", "source": source, "split": split}
        )
    write_csv(folder / "metadata.csv", rows)
    return folder


def overlaps(data: Path, folder: Path) -> list[tuple[int, str]]:
    report = check_data(data, teacher=folder)
    return [
        (f.count, f.message)
        for f in report.findings
        if f.code == "pretrained_on" and f.level == "warning"
    ]


def test_sets_that_the_teacher_was_pretrained_on_are_named(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", ["ham10000", "ham10000", "ddi", "", "pad_ufes_20"])
    folder = teacher(
        tmp_path / "teacher", {"teacher": {"pretrained_on": ["isic2019", "PAD-UFES-20"]}}
    )
    found = overlaps(data, folder)
    assert [count for count, _ in found] == [2, 1]
    assert (
        "are of ham10000, and the teacher was pretrained on isic2019 "
        "(2 of them in the split 'test')" in (found[0][1])
    )
    assert "pretrained on PAD-UFES-20" in found[1][1]
    assert "pretrained_on" not in {finding.code for finding in check_data(data).findings}


def test_training_images_of_the_teacher_are_found_in_any_source(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", ["clinic", "clinic", "ham10000", "clinic"])
    digest = [sha256((data / f"images/{n}.png").read_bytes()).hexdigest() for n in range(4)]
    rows = (("a", digest[1], "train"), ("b", digest[2], "val"), ("c", digest[3], "test"))
    folder = teacher(tmp_path / "teacher", {"teacher": {"pretrained_on": ["ham10000"]}}, rows)
    report = check_data(data, teacher=folder)
    findings = [finding for finding in report.findings if finding.code == "pretrained_on"]
    # A test image did not train the teacher. An image that is reported by its digest is
    # not reported again by its set.
    assert [(finding.count, finding.examples) for finding in findings] == [(2, ("i1", "i2"))]
    assert report.status == "warning"


def test_a_teacher_of_other_sets_gives_no_warning(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", ["ddi", "ph2"])
    assert (
        overlaps(data, teacher(tmp_path / "one", {"teacher": {"pretrained_on": ["ham10000"]}}))
        == []
    )
    assert overlaps(data, teacher(tmp_path / "two", {})) == []


def test_sets_and_digests_are_read_from_a_model_folder(tmp_path: Path) -> None:
    images = read_teacher_images(
        teacher(
            tmp_path / "teacher", {"teacher": {"pretrained_on": ["scin"]}}, (("a", "ff", "train"),)
        )
    )
    assert (images.sets, images.digests) == (("scin",), frozenset({"ff"}))
    with pytest.raises(DataError, match="neither student"):
        read_teacher_images(tmp_path)


def test_checking_against_a_teacher_imports_no_torch(tmp_path: Path) -> None:
    """The check reads the teacher's JSON and split table only."""
    data = data_set(tmp_path / "data", ["isic2017"])
    folder = teacher(tmp_path / "teacher", {"teacher": {"pretrained_on": ["isic*"]}})
    code = (
        "import sys; from dermedge.data.check import check_data; "
        "report = check_data(sys.argv[1], teacher=sys.argv[2]); "
        "print([f.code for f in report.findings if f.code == 'pretrained_on'], "
        "sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), str(folder)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "['pretrained_on'] []", done.stderr


@pytest.mark.parametrize(
    ("source", "pattern", "expected"),
    [
        ("ham10000", "ham10000", True),
        ("ham10000", "isic2018", True),
        ("ham10000", "isic2019", True),
        ("isic2019", "ham10000", True),
        ("HAM10000", "isic*", True),
        ("isic2016_segmentation", "isic*", True),
        ("pad-ufes 20", "PAD_UFES_20", True),
        ("skincap", "ddi", True),
        ("ddi", "skincap", True),
        ("ddi", "fitzpatrick17k", False),
        ("ph2", "isic*", False),
        ("isic2018", "pad_ufes_20", False),
    ],
)
def test_sets_share_images_if_one_contains_the_other(
    source: str, pattern: str, expected: bool
) -> None:
    assert share_images(source, pattern) is expected


def test_sets_that_share_images_are_layouts() -> None:
    assert {name for set_, inside in CONTAINS.items() for name in (set_, *inside)} <= set(LAYOUTS)
    assert {name for name in DERMNIO_PRETRAINED_ON if "*" not in name} <= set(LAYOUTS)


def test_the_command_warns_and_does_not_fail(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", ["isic2017"] * 2)
    folder = teacher(
        tmp_path / "teacher", {"teacher": {"pretrained_on": list(DERMNIO_PRETRAINED_ON)}}
    )
    ran = dermedge("data", "check", data, "--teacher", folder)
    assert ran.code == 0
    assert "warning: 2 images are of isic2017, and the teacher was pretrained on isic*" in ran.out
    assert "Error" in dermedge("data", "check", data, "--teacher", tmp_path / "data").err
