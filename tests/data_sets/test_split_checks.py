"""Warn of groups and splits that go wrong, in the same words everywhere."""

from pathlib import Path

import pandas as pd
import pytest

from dermedge.data.check import check_data
from dermedge.data.split import FRACTIONS, assign_splits, split_data
from dermedge.data.split_checks import check_split
from dermedge.data.table import read_table
from dermedge.train.samples import read_samples
from dermedge.train.training_data import TrainingData
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Preprocess, Spec
from support import small
from support.command import dermedge
from support.tables import shared, write_csv


def made_up(**columns: list[str]) -> pd.DataFrame:
    count = 60
    empty = [""] * count
    rows = {
        "image_id": [f"i{n}" for n in range(count)],
        "split": empty,
        "source": empty,
        "lesion_id": empty,
        "patient_id": empty,
        "malignant": [0.0] * count,
        "dx": ["nv", "mel", "bcc"] * (count // 3),
    }
    return pd.DataFrame({**rows, **columns})


def check(frame: pd.DataFrame, **options: "pd.Series[str]") -> dict[str, tuple[str, str]]:
    splits = assign_splits(frame, **options)
    found = check_split(frame, splits, FRACTIONS, **options)
    return {finding.code: (finding.level, finding.message) for finding in found}


def test_a_sound_table_has_no_finding() -> None:
    assert check(made_up(lesion_id=[f"L{n // 2}" for n in range(60)])) == {}


@pytest.mark.parametrize("name", ["ham10000", "pad_ufes_20", "isic2017"])
def test_real_patients_and_lesions_are_not_too_large(name: str) -> None:
    assert "large_group" not in check(read_table(shared(name)).frame)


@pytest.mark.parametrize("column", ["patient_id", "lesion_id"])
def test_a_group_that_is_far_larger_than_others_is_named(column: str) -> None:
    found = check(made_up(**{column: ["0" if n % 4 else f"P{n}" for n in range(60)]}))
    level, message = found["large_group"]
    assert level == "warning"
    assert f"{column} '0' joins 45 of 60 images" in message
    level, message = found["uneven_split"]
    assert level == "warning"
    assert "train 88 % instead of 70 %" in message
    assert f"because {column} '0' joins 45 of 60 images" in message


def test_a_chain_of_ids_and_copies_of_one_image_are_named() -> None:
    chain = [f"L{n // 2}" for n in range(60)]
    linked = [f"P{(n + 1) // 2}" for n in range(60)]
    _, message = check(made_up(lesion_id=chain, patient_id=linked))["large_group"]
    assert "'P1' and ids that are connected to it joins 60 of 60 images" in message
    copies = pd.Series(["a" if n < 30 else str(n) for n in range(60)])
    _, message = check(made_up(), content=copies)["large_group"]
    assert "one image file joins 30 of 60 images" in message


def test_an_empty_split_is_an_error_that_names_the_group() -> None:
    frame = made_up(patient_id=["P0"] * 60)
    findings = check_split(frame, assign_splits(frame), FRACTIONS)
    empty = {one.examples[0]: one for one in findings if one.code == "empty_split"}
    assert {split: one.level for split, one in empty.items()} == {"val": "error", "test": "warning"}
    assert "no val rows, because patient_id 'P0' joins 60 of 60 images" in empty["val"].message


def test_a_class_that_a_split_lacks_is_named() -> None:
    patients = ["P0" if n % 3 == 1 and n > 6 else f"P{n}" for n in range(60)]
    splits = pd.Series(["val"] * 20 + ["test"] * 20 + ["train"] * 20)
    frame = made_up(patient_id=patients, split=splits.tolist())
    frame.loc[splits == "val", "dx"] = "nv"
    findings = check_split(frame, splits, FRACTIONS)
    assert [(one.code, one.examples) for one in findings if one.code == "class_not_in_split"] == [
        ("class_not_in_split", ("bcc", "mel"))
    ]


def test_splits_of_the_table_itself_are_not_compared_with_shares() -> None:
    frame = made_up(split=["test"] * 50 + ["train"] * 10)
    findings = check_split(frame, frame["split"], FRACTIONS)
    assert [(one.code, one.level) for one in findings] == [("empty_split", "warning")]
    tests_only = made_up(split=["test"] * 60)
    assert {one.level for one in check_split(tests_only, tests_only["split"], FRACTIONS)} == {
        "info"
    }


@pytest.fixture
def lesions(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = small.data_set(tmp_path_factory.getbasetemp())

    def one_patient(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(
            split="", lesion_id="", patient_id=["x" if n < 60 else "" for n in range(len(frame))]
        )

    return small.edited(data, tmp_path / "lesions", one_patient)


def test_check_split_and_training_say_the_same(
    lesions: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages = {
        finding.message
        for finding in check_data(lesions).findings
        if finding.code in ("large_group", "uneven_split")
    }
    assert len(messages) == 2
    samples, tasks = read_samples(lesions)
    spec = Spec("some", "1", tasks, Preprocess(32))
    TrainingData.prepare(samples, spec, batch_size=8, seed=0)
    assert all(message in caplog.text for message in messages)
    report = split_data(lesions, lesions / "split.csv")
    assert messages <= set(report.warnings)
    split = dermedge("data", "split", lesions, "-o", lesions / "again.csv")
    assert all(message in " ".join(split.err.split()) for message in messages)


def test_training_refuses_an_empty_split_as_data_check_does(lesions: Path) -> None:
    rows = read_table(lesions).frame.assign(patient_id="x").to_dict("records")
    write_csv(lesions / "metadata.csv", rows)
    errors = [one.message for one in check_data(lesions).findings if one.level == "error"]
    assert len(errors) == 1
    samples, tasks = read_samples(lesions)
    spec = Spec("some", "1", tasks, Preprocess(32))
    with pytest.raises(DataError) as refused:
        TrainingData.prepare(samples, spec, batch_size=8, seed=0)
    assert str(refused.value) == errors[0]
    assert "no val rows, because patient_id 'x' joins 80 of 80 images" in errors[0]
