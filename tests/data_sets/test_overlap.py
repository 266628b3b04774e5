"""What a teacher has seen is found in a table, by digest and by the names of sets."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dermedge.data import CONTAINS, LAYOUTS, check_data
from dermedge.data.overlap import read_teacher_images, share_images
from dermedge.models.formats import DERMNIO_PRETRAINED_ON
from dermedge.models.model_folder import TrainedModel, save_model_folder
from dermedge.models.network import Backbone, Network
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
    backbone = Backbone("test_efficientnet", {}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None)
    spec = Spec(SPEC.name, SPEC.version, SPEC.tasks, SPEC.preprocess, SPEC.intended_use, lineage)
    save_model_folder(
        TrainedModel(Network(backbone, spec.tasks), spec, backbone, "teacher", split=split), folder
    )
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
        "images are of ham10000, and the teacher was pretrained on isic2019 (2 of them in the split 'test')"
        in (found[0][1])
    )
    assert "pretrained on PAD-UFES-20" in found[1][1]
    assert "pretrained_on" not in {finding.code for finding in check_data(data).findings}


def test_images_that_the_teacher_has_seen_are_found_whatever_their_source(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", ["clinic", "clinic", "ham10000", "clinic"])
    digest = [sha256((data / f"images/{n}.png").read_bytes()).hexdigest() for n in range(4)]
    rows = (("a", digest[1], "train"), ("b", digest[2], "val"), ("c", digest[3], "test"))
    folder = teacher(tmp_path / "teacher", {"teacher": {"pretrained_on": ["ham10000"]}}, rows)
    report = check_data(data, teacher=folder)
    findings = [finding for finding in report.findings if finding.code == "pretrained_on"]
    # A test image was only measured on; one that was surely seen is not told again by its set.
    assert [(finding.count, finding.examples) for finding in findings] == [(2, ("i1", "i2"))]
    assert report.status == "warning"


def test_a_clean_teacher_has_nothing_to_warn_of(tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", ["ddi", "ph2"])
    assert (
        overlaps(data, teacher(tmp_path / "one", {"teacher": {"pretrained_on": ["ham10000"]}}))
        == []
    )
    assert overlaps(data, teacher(tmp_path / "two", {})) == []


def test_what_a_folder_says_of_its_training(tmp_path: Path) -> None:
    seen = read_teacher_images(
        teacher(
            tmp_path / "teacher", {"teacher": {"pretrained_on": ["scin"]}}, (("a", "ff", "train"),)
        )
    )
    assert (seen.sets, seen.digests) == (("scin",), frozenset({"ff"}))
    with pytest.raises(DataError, match="neither student"):
        read_teacher_images(tmp_path)


@pytest.mark.parametrize(
    ("source", "seen", "expected"),
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
def test_which_sets_share_images(source: str, seen: str, expected: bool) -> None:
    assert share_images(source, seen) is expected


def test_the_names_are_those_of_the_layouts() -> None:
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
