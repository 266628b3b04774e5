"""Assign splits by lesion and patient."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermedge.cli.data import split_command
from dermedge.data.split import FRACTIONS, assign_splits, split_data, with_split
from dermedge.data.table import digests, groups, read_table
from dermedge_runtime.errors import DataError, UsageError
from support.tables import save, shared, write_csv


def made_up(seed: int = 0, rows: int = 600) -> pd.DataFrame:
    """Return rows with repeat photographs, several lesions a patient, rare classes."""
    rng = np.random.default_rng(seed)
    lesion = rng.integers(0, rows * 2 // 3, rows)
    patient = lesion // 2
    dx = np.where(lesion % 50 == 0, "df", np.where(lesion % 7 == 0, "mel", "nv"))
    return pd.DataFrame(
        {
            "image_id": [f"i{n:04d}" for n in range(rows)],
            "lesion_id": [f"L{n}" for n in lesion],
            "patient_id": np.where(patient % 3 == 0, [f"P{n}" for n in patient], ""),
            "source": "",
            "dx": dx,
            "malignant": (dx == "mel").astype(float),
            "split": "",
        }
    )


def test_no_group_is_in_two_splits_and_classes_keep_their_shares() -> None:
    frame = made_up()
    splits = assign_splits(frame)
    assert splits.groupby(groups(frame)).nunique().max() == 1
    for dx, rows in splits.groupby(frame["dx"]):
        shares = rows.value_counts(normalize=True)
        assert set(shares.index) == {"train", "val", "test"}, dx
        if len(rows) > 50:
            assert shares["train"] == pytest.approx(0.7, abs=0.04)
            assert shares["test"] == pytest.approx(0.15, abs=0.04)


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    frame = made_up()
    splits = assign_splits(frame, seed=3)
    shuffled = assign_splits(frame.sample(frac=1, random_state=1), seed=3)
    assert shuffled.sort_index().equals(splits)
    assert not assign_splits(frame, seed=4).equals(splits)


@pytest.mark.parametrize(
    ("lesions", "expected"), [(1, {"train"}), (2, {"train", "val"}), (3, {"train", "val", "test"})]
)
def test_a_class_reaches_as_many_splits_as_it_has_lesions(lesions: int, expected: set[str]) -> None:
    frame = made_up()
    frame["dx"] = "nv"
    names = sorted(frame["lesion_id"].unique())[-lesions:]
    rare = frame["lesion_id"].isin(names)
    frame.loc[rare, ["dx", "patient_id"]] = ["df", ""]
    frame.loc[frame["lesion_id"] == names[0], "malignant"] = 1.0
    assert set(assign_splits(frame)[rare]) == expected


def test_existing_splits_are_kept_and_official_ones_get_no_rows() -> None:
    frame = made_up()
    member = groups(frame)
    official = member.isin(sorted(member.unique())[:3])
    frame.loc[official, "split"] = "test"
    splits = assign_splits(frame)
    assert (splits[official] == "test").all()
    assert set(splits[~official]) == {"train", "val"}


def test_a_row_without_split_joins_the_split_of_its_lesion() -> None:
    frame = made_up()
    twice = frame["lesion_id"].duplicated(keep=False) & (frame["patient_id"] == "")
    lesion = frame.loc[twice, "lesion_id"].iloc[0]
    rows = frame.index[frame["lesion_id"] == lesion]
    frame.loc[rows[0], "split"] = "test"
    assert (assign_splits(frame).loc[rows] == "test").all()


def test_shares_can_be_chosen_and_must_sum_to_one() -> None:
    splits = assign_splits(made_up(), fractions=(0.5, 0.0, 0.5))
    assert set(splits) == {"train", "test"}
    assert (splits == "test").mean() == pytest.approx(0.5, abs=0.05)
    for wrong in [(0.7, 0.2, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5)]:
        with pytest.raises(UsageError, match="sum"):
            assign_splits(made_up(), fractions=wrong)


def folder(path: Path, splits: list[str] | None = None) -> Path:
    rows = [
        {
            "image_id": f"i{n}",
            "image": f"images/i{n}.png",
            "dx": "nv",
            "note": f"keep, {n}",
            "age": "41.0",
        }
        for n in range(12)
    ]
    for n, row in enumerate(rows):
        save(path / row["image"], n // 2)
        if splits:
            row["split"] = splits[n]
    write_csv(path / "metadata.csv", rows)
    return path


def test_split_data_keeps_all_other_cells(tmp_path: Path) -> None:
    folder(tmp_path)
    before = (tmp_path / "metadata.csv").read_text(encoding="utf-8")
    report = split_data(tmp_path, tmp_path / "split.csv")
    assert (tmp_path / "metadata.csv").read_text(encoding="utf-8") == before
    text = pd.read_csv(tmp_path / "split.csv", dtype="str")
    assert text["note"].tolist() == [f"keep, {n}" for n in range(12)]
    assert text["age"].unique().tolist() == ["41.0"]
    assert report.images == 12
    assert report.groups == 6
    assert {name: counts["nv"] for name, counts in report.counts.items()} == text[
        "split"
    ].value_counts().to_dict()


def test_the_command_has_the_default_fractions_of_the_function() -> None:
    option = next(one for one in split_command.params if one.name == "fractions")
    assert option.default == FRACTIONS


def test_byte_identical_images_stay_together(tmp_path: Path) -> None:
    split_data(folder(tmp_path), overwrite=True)
    table = read_table(tmp_path)
    content = digests(table)
    assert table.frame["split"].groupby(content.to_numpy()).nunique().max() == 1
    unsplit = table.replace(table.frame.assign(split=""))
    assert with_split(unsplit).frame["split"].tolist() == table.frame["split"].tolist()


def test_split_data_refuses_to_overwrite_or_to_write_elsewhere(tmp_path: Path) -> None:
    folder(tmp_path / "set")
    with pytest.raises(UsageError, match="exists"):
        split_data(tmp_path / "set")
    with pytest.raises(UsageError, match="relative to"):
        split_data(tmp_path / "set", tmp_path / "split.csv")
    with pytest.raises(UsageError, match="neither"):
        split_data(tmp_path / "set", tmp_path / "set" / "split.txt")
    assert not list(tmp_path.rglob("split*"))


def test_official_splits_stay_unless_they_are_redone(tmp_path: Path) -> None:
    folder(tmp_path, ["train"] * 10 + ["val"] * 2)
    table = with_split(read_table(tmp_path))
    assert table.frame["split"].tolist() == ["train"] * 10 + ["val"] * 2
    assert table.select_split("val").frame.index.tolist() == [0, 1]
    with pytest.raises(
        DataError, match=r"no rows in the split 'test' \(it has: train 10, val 2\).*--redo"
    ):
        table.select_split("test")
    assert split_data(tmp_path, tmp_path / "s.csv").kept == 12
    report = split_data(tmp_path, tmp_path / "s.parquet", redo=True)
    assert (report.kept, set(report.counts)) == (0, {"train", "val", "test"})
    assert len(read_table(tmp_path / "s.parquet").select_split("test")) > 0


def test_real_lesions_are_in_one_split() -> None:
    table = with_split(read_table(shared("ham10000")), seed=1)
    frame = table.frame
    assert frame.groupby("lesion_id")["split"].nunique().max() == 1
    shares = pd.crosstab(frame["dx"], frame["split"], normalize="index")
    assert shares["train"].between(0.67, 0.73).all()
    assert shares["test"].between(0.13, 0.17).all()
