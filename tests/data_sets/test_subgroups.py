"""Check, evaluation and gate form the same subgroups."""

from pathlib import Path

import numpy as np
import pytest

from dermedge.data.check import check_data
from dermedge.data.subgroups import SUBGROUP_COLUMNS, age_band
from dermedge.data.table import read_table
from dermedge.evaluation.table_predictions import table_predictions
from dermedge_export.evaluation.predictions import decode_table
from dermedge_export.parity.comparisons import subgroup_comparisons
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support.tables import save, write_csv

SPEC = Spec(
    "small",
    "1",
    (Task("diagnosis", "classify", (Label("mel", "melanoma", True), Label("nv", "nevus", False))),),
    Preprocess(32, "crop", "triangle", (255, 255, 255)),
    "tests",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set whose rows lie in many subgroups, some of them unknown."""
    rows: list[dict[str, object]] = []
    for n in range(24):
        save(tmp_path / f"images/{n}.png", n)
        rows.append(
            {
                "image_id": f"i{n}",
                "image": f"images/{n}.png",
                "dx": "mel" if n % 3 == 0 else "nv",
                "age": "" if n % 7 == 0 else 5 * n,
                "sex": ("female", "male", "")[n % 3],
                "site": ("back", "face")[n % 2],
                "modality": ("dermoscopic", "clinical", "")[n // 8],
                "fitzpatrick": n % 6 + 1 if n % 4 else "",
                "skin_tone": "56" if n % 8 == 0 else "",
            }
        )
    write_csv(tmp_path / "metadata.csv", rows)
    return tmp_path


def test_check_evaluation_and_gate_form_the_same_subgroups(folder: Path) -> None:
    """The subgroups of `data check` are those that `evaluate` and the gate compare."""
    table = read_table(folder)
    predictions = table_predictions(
        table, SPEC, lambda images: {"diagnosis": np.zeros((len(images), 2), np.float32)}
    )
    evaluated = {
        (column, value): int((values == value).sum())
        for column, values in predictions.subgroups.items()
        for value in set(values.tolist()) - {""}
    }
    checked = {
        (column, value): counts["images"]
        for column, values in check_data(table).subgroups.items()
        for value, counts in values.items()
        if value
    }
    decoded = decode_table(predictions, SPEC, {})
    gated = {
        subgroup: int(comparison.rows.sum())
        for subgroup, comparison in subgroup_comparisons(decoded, predictions).items()
    }
    assert checked == evaluated == gated
    assert {column for column, _ in checked} == set(SUBGROUP_COLUMNS)
    # A row that has only a range of skin types is a subgroup of its own.
    assert checked["fitzpatrick", "V-VI"] == 3


def test_small_subgroups_are_reported_by_the_names_of_the_evaluation(folder: Path) -> None:
    """Every subgroup below 30 images is an example of one finding for its column."""
    findings = [f for f in check_data(folder).findings if f.code == "small_subgroup"]
    by_column = {finding.message.split()[0]: finding for finding in findings}
    assert set(by_column) == set(SUBGROUP_COLUMNS)
    assert by_column["sex"].examples == ("female (8)", "male (8)")
    assert by_column["age_band"].count == 4
    assert {finding.level for finding in findings} == {"info"}


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0, "0-29"),
        (29.9, "0-29"),
        (30, "30-49"),
        (49.9, "30-49"),
        (50, "50-69"),
        (69.9, "50-69"),
        (70, "70+"),
        (120, "70+"),
        (float("nan"), ""),
    ],
)
def test_every_age_has_one_band(age: float, band: str) -> None:
    assert age_band(age) == band
