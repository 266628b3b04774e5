"""Check data sets for faults."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermedge.data import images
from dermedge.data.check import CheckReport, check_data
from dermedge.data.finding import Finding
from dermedge.data.images import ImageInspection, find_near_duplicates
from dermedge.data.leaks import find_missing_value_leaks, find_value_leaks
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge_runtime.spec import to_json
from support.tables import picture, save, shared, write_csv

Rows = list[dict[str, object]]


def sound(path: Path) -> Rows:
    rows: Rows = [
        {
            "image_id": f"i{n}",
            "image": f"images/i{n}.png",
            "mask": "",
            "lesion_id": f"L{n}",
            "patient_id": "",
            "dx": "mel" if n % 4 == 0 else "nv",
            "split": "train" if n < 8 else "test" if n % 4 else "val",
        }
        for n in range(16)
    ]
    for n in range(16):
        save(path / f"images/i{n}.png", n)
    return rows


def found(path: Path, rows: Rows) -> dict[str, Finding]:
    write_csv(path / "metadata.csv", rows)
    return {finding.code: finding for finding in check_data(path).findings}


def test_a_sound_set_has_no_warnings(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    for row in rows:
        row["split"] = ""
    write_csv(tmp_path / "metadata.csv", rows)
    report = check_data(tmp_path)
    assert (report.status, report.images, report.groups) == ("ok", 16, 16)
    assert report.classes == {"nv": 12, "mel": 4}
    assert [finding.code for finding in report.findings] == ["no_split"]


def damage(kind: str) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        buffer = io.BytesIO()
        picture(99, (400, 300)).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 3])

    def animate(path: Path) -> None:
        picture(1).save(path, "GIF", save_all=True, append_images=[picture(2)])

    def bomb(path: Path) -> None:
        data = bytearray((path.parent / "i3.png").read_bytes())
        data[16:24] = (60_000).to_bytes(4, "big") * 2
        path.write_bytes(bytes(data))

    return {
        "empty": lambda path: path.write_bytes(b"") and None,
        "text": lambda path: path.write_bytes(b"not an image") and None,
        "truncated": cut,
        "animated": animate,
        "bomb": bomb,
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "animated", "bomb"])
def test_an_unreadable_image_is_an_error(kind: str, tmp_path: Path) -> None:
    rows = sound(tmp_path)
    damage(kind)(tmp_path / "images/i5.png")
    findings = found(tmp_path, rows)
    assert findings["unreadable_image"].level == "error"
    assert findings["unreadable_image"].examples[0].startswith("images/i5.png ")
    assert findings["unreadable_image"].count == 1


def test_missing_and_unlisted_files_are_named(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    (tmp_path / "images/i5.png").rename(tmp_path / "images/lost.png")
    write_csv(tmp_path / "metadata.csv", rows)
    report = check_data(tmp_path)
    findings = {finding.code: finding for finding in report.findings}
    assert report.status == "error"
    assert findings["missing_image"].examples == ("images/i5.png",)
    assert (findings["unlisted_image"].level, findings["unlisted_image"].examples) == (
        "info",
        ("images/lost.png",),
    )
    assert "skipped_file" not in findings


def test_files_that_are_not_looked_at_are_counted_by_reason(tmp_path: Path) -> None:
    """Any suffix, no suffix and a link are images; litter is none."""
    write_csv(tmp_path / "metadata.csv", sound(tmp_path))
    images = tmp_path / "images"
    content = (images / "i5.png").read_bytes()
    for name in ("own.jfif", "IMG_1", "._own.jfif", ".DS_Store", "Thumbs.db", "own.jpg.part"):
        (images / name).write_bytes(content)
    (images / "notes.txt").write_text("none")
    (images / "gone").symlink_to(images / "nothing")
    findings = {finding.code: finding for finding in check_data(tmp_path).findings}
    assert findings["unlisted_image"].examples == ("images/IMG_1", "images/own.jfif")
    assert (findings["skipped_file"].level, findings["skipped_file"].count) == ("info", 6)
    for part in ("3 hidden or system (", "1 unfinished", "1 not an image", "1 broken link"):
        assert part in findings["skipped_file"].message


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    for n, size in enumerate([(48, 40), (40, 48)]):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("1", size).save(tmp_path / f"masks/{n}.png")
    for n in range(3):
        rows[n]["mask"] = f"masks/{n}.png"
    bad = found(tmp_path, rows)["bad_mask"]
    assert bad.count == 2
    assert bad.examples == (
        "masks/1.png: it is 40x48, but its image is 48x40",
        "masks/2.png: does not exist",
    )


def test_tiny_and_even_images_are_named(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    picture(1, (20, 17)).save(tmp_path / "images/i5.png")
    Image.new("RGB", (64, 64), (200, 150, 140)).save(tmp_path / "images/i6.png")
    findings = found(tmp_path, rows)
    assert findings["tiny_image"].examples == ("images/i5.png: 20x17",)
    assert "images/i6.png" in findings["flat_image"].examples


def test_the_level_of_a_copy_depends_on_split_and_group(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    shutil.copy(tmp_path / "images/i1.png", tmp_path / "images/i2.png")
    shutil.copy(tmp_path / "images/i3.png", tmp_path / "images/i9.png")
    shutil.copy(tmp_path / "images/i4.png", tmp_path / "images/i5.png")
    rows[2]["lesion_id"] = "L1"
    findings = found(tmp_path, rows)
    assert (findings["exact_duplicate"].level, findings["exact_duplicate"].examples) == (
        "info",
        ("i1 = i2",),
    )
    assert findings["exact_duplicate_across_splits"].level == "error"
    assert findings["exact_duplicate_across_splits"].examples == ("i3 = i9",)
    assert findings["exact_duplicate_across_groups"].level == "warning"
    assert findings["exact_duplicate_across_groups"].examples == ("i4 = i5",)
    assert findings["contradicting_labels"].examples == ("i4 = i5",)


@pytest.mark.parametrize("change", ["jpeg", "resized", "brighter", "retouched"])
def test_an_altered_copy_is_still_found(change: str, tmp_path: Path) -> None:
    rows = sound(tmp_path)
    picture(3, (240, 200)).save(tmp_path / "images/i3.png")
    image = picture(3, (240, 200))
    if change == "resized":
        image = image.resize((150, 125))
    if change == "brighter":
        image = image.point(lambda value: min(255, int(value * 1.1) + 5))
    if change == "retouched":
        image.paste((10, 10, 10), (4, 4, 14, 10))
    image.save(tmp_path / "images/i9.png", format="JPEG", quality=40 if change == "jpeg" else 90)
    findings = found(tmp_path, rows)
    assert findings["near_duplicate_across_splits"].examples == ("i3 = i9",)
    assert findings["near_duplicate_across_splits"].count == 1


def test_near_duplicates_are_found_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search in blocks finds the pairs that a comparison of all pairs finds."""
    rng = np.random.default_rng(0)
    originals = rng.choice([-1.0, 1.0], (9, 64)).astype(np.float32)
    inspections = []
    for n in range(27):
        thumbnail = np.roll(np.eye(1, 1024, dtype=np.float16)[0], n % 9)
        inspections.append(ImageInspection(8, 8, f"{n}", originals[n % 9], thumbnail))
    # The last pair has the same hash and other thumbnails, so it is no duplicate.
    other = np.roll(np.eye(1, 1024, dtype=np.float16)[0], 100)
    inspections[26] = ImageInspection(8, 8, "26", originals[8], other)
    inspections[25] = ImageInspection(8, 8, "25")
    expected = [(a, b) for a in range(25) for b in range(a + 1, 25) if a % 9 == b % 9]
    for block, pairs in ((4, 1), (9, 2), (1024, 8192), (1024, 5)):
        monkeypatch.setattr(images, "BLOCK", block)
        monkeypatch.setattr(images, "PAIRS", pairs)
        assert sorted(find_near_duplicates(inspections)) == expected


def test_lesions_and_patients_in_two_splits_are_errors(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    rows[3]["lesion_id"] = rows[9]["lesion_id"] = "twice"
    rows[4]["patient_id"] = rows[12]["patient_id"] = "someone"
    findings = found(tmp_path, rows)
    assert findings["lesion_in_two_splits"].level == "error"
    assert findings["lesion_in_two_splits"].examples == ("twice",)
    assert findings["patient_in_two_splits"].examples == ("someone",)


def test_a_group_joined_by_a_row_without_split_is_found(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    rows[5].update(split="", lesion_id=rows[3]["lesion_id"], patient_id="p")
    rows[9]["patient_id"] = "p"
    findings = found(tmp_path, rows)
    assert findings["group_in_two_splits"].level == "error"
    assert "lesion_in_two_splits" not in findings


def test_classes_that_cannot_be_measured_are_named(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    rows[1]["dx"] = "df"
    findings = found(tmp_path, rows)
    assert findings["few_groups"].examples == ("df: 1 groups",)
    assert "class_not_in_split" in findings


def labelled(malignant: list[int], **columns: list[object]) -> pd.DataFrame:
    frame = pd.DataFrame({"malignant": np.asarray(malignant, float), **columns})
    return frame.assign(
        dx=np.where(frame["malignant"] == 1, "mel", "nv"), group=[str(n) for n in frame.index]
    )


def test_empty_cells_that_predict_the_label_are_found_but_random_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    malignant = rng.integers(0, 2, 300)
    pure = ["" if label == 0 and rng.random() < 0.6 else "2" for label in malignant]
    weakly = ["" if rng.random() < 0.2 + 0.5 * label else "2" for label in malignant]
    chance = ["" if rng.random() < 0.3 else "2" for _ in malignant]
    leaks = find_missing_value_leaks(
        labelled(malignant.tolist(), pure=pure, weakly=weakly, chance=chance)
    )
    assert [leak.column for leak in leaks] == ["pure", "weakly"]
    assert leaks[0].message.startswith(f"All {pure.count('')} rows without pure are benign")
    assert leaks[0].count == pure.count("")


def test_repeat_photographs_of_one_lesion_count_once() -> None:
    frame = labelled([1] * 3 + [0] * 100, column=[""] * 3 + ["x"] * 100)
    frame["group"] = ["a"] * 3 + [f"b{n // 50}" for n in range(100)]
    assert find_missing_value_leaks(frame) == []


def test_columns_that_give_the_label_away_are_found() -> None:
    rng = np.random.default_rng(0)
    malignant = rng.integers(0, 2, 300).tolist()
    proof = ["histo" if label or rng.random() < 0.3 else "follow_up" for label in malignant]
    score = [label + rng.normal(0, 0.2) for label in malignant]
    site = [rng.choice(["back", "face", "hand"]) for _ in malignant]
    age = [rng.normal(50 + 10 * label, 15) for label in malignant]
    leaks = find_value_leaks(labelled(malignant, proof=proof, score=score, site=site, age=age))
    assert [leak.column for leak in leaks] == ["proof", "score"]
    assert "every malignant row has histo" in leaks[0].message


def test_file_properties_that_give_the_label_away_are_found(tmp_path: Path) -> None:
    rows: Rows = []
    for n in range(60):
        name, size = (f"images/i{n}.png", (40, 40)) if n % 2 else (f"images/i{n}.jpg", (44, 40))
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(n, size).save(tmp_path / name)
        rows.append({"image_id": f"i{n}", "image": name, "dx": "nv" if n % 2 else "mel"})
    write_csv(tmp_path / "metadata.csv", rows)
    columns = [
        f.examples[0] for f in check_data(tmp_path).findings if f.code == "column_gives_label_away"
    ]
    assert columns == ["image suffix", "image size"]


def test_the_report_is_json(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    for n, row in enumerate(rows):
        row.update(sex=("female", "male", "")[n % 3], age=6 * n, fitzpatrick=n % 6 + 1)
    write_csv(tmp_path / "metadata.csv", rows)
    report = check_data(tmp_path)
    assert json.loads(json.dumps(to_json(report)))["subgroups"]["sex"]["female"] == {
        "images": 6,
        "malignant": 2,
        "benign": 4,
    }
    assert list(report.subgroups["age_band"]) == ["0-29", "30-49", "50-69", "70+"]
    assert report.splits["train"] == {"nv": 6, "mel": 2}


@pytest.fixture(scope="module")
def pad() -> CheckReport:
    return check_data(shared("pad_ufes_20"))


def test_empty_cells_of_pad_ufes_20_predict_the_label(pad: CheckReport) -> None:
    telling = {
        f.examples[0]: f.message for f in pad.findings if f.code == "missingness_predicts_label"
    }
    assert telling["fitzpatrick"].startswith("All 201 rows without fitzpatrick are benign")
    assert set(telling) == {"fitzpatrick", "sex", "diameter_1", "diameter_2"}
    giving = {f.examples[0] for f in pad.findings if f.code == "column_gives_label_away"}
    assert giving == {"dx_type", "dx_raw", "biopsed"}
    assert pad.status == "warning"


def test_pad_ufes_20_has_small_subgroups_of_dark_skin(pad: CheckReport) -> None:
    small = next(
        f
        for f in pad.findings
        if f.code == "small_subgroup" and f.message.startswith("fitzpatrick")
    )
    assert {"V (2)", "VI (1)"} <= set(small.examples)


def test_ham10000_gives_the_label_away_by_dx_type_and_repeats_an_image() -> None:
    table = read_table(shared("ham10000"))
    # One picture under two names, and two pairs of different lesions with similar
    # hashes.
    pairs = [
        "ISIC_0024777",
        "ISIC_0029938",
        "ISIC_0024437",
        "ISIC_0032612",
        "ISIC_0026224",
        "ISIC_0031302",
    ]
    some = table.frame[table.frame["image_id"].isin(pairs) | (table.frame.index % 16 == 0)]
    report = check_data(with_split(table.replace(some)))
    findings = {finding.code: finding for finding in report.findings}
    assert findings["column_gives_label_away"].examples == ("dx_type",)
    assert findings["exact_duplicate"].examples == ("ISIC_0024777 = ISIC_0029938",)
    assert "near_duplicate_across_groups" not in findings
    assert "near_duplicate_across_splits" not in findings


def test_rows_with_several_diagnoses_are_counted(tmp_path: Path) -> None:
    rows = sound(tmp_path)
    rows[1]["dx"] = "nv;sk"
    findings = found(tmp_path, rows)
    assert findings["several_diagnoses"].count == 1
    assert findings["several_diagnoses"].level == "info"
    # The row counts for both of its classes, and makes none of its own.
    assert findings["few_groups"].examples == ("sk: 1 groups",)
