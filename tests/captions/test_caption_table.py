"""Captions are written from what a table and its masks hold, and the test split's differ."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermedge.captions.describe import COLOURS, measure_lesion, write_caption
from dermedge.captions.naming import check_names
from dermedge.captions.table import caption_data
from dermedge.data.draw import draw_data_set
from dermedge.data.table import read_table
from dermedge_runtime.errors import UsageError
from support.command import dermedge

ROW = {"image_id": "a", "dx": "mel", "site": "back", "sex": "male", "age": 45.0}


def disc(size: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2
    return rows**2 + columns**2 < radius**2


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "lesions"
    draw_data_set(folder, count=60, seed=3, size=(48, 36))
    caption_data(folder, overwrite=True)
    return folder


class TestAppearance:
    def test_a_disc_is_regular_and_a_star_is_not(self) -> None:
        image = np.full((96, 96, 3), COLOURS["dark brown"], np.uint8)
        round_ = measure_lesion(image, disc(96, 20))
        assert round_ is not None
        assert (round_.border, round_.colours) == ("regular", ("dark brown",))
        angle = np.arctan2(*(np.mgrid[:96, :96] - 48))
        star = disc(96, 40) & (np.hypot(*(np.mgrid[:96, :96] - 48)) < 22 + 16 * np.sin(9 * angle))
        jagged = measure_lesion(image, star)
        assert jagged is not None
        assert jagged.border == "irregular"

    @pytest.mark.parametrize(
        ("radius", "size"), [(8, "small"), (18, "medium-sized"), (40, "large")]
    )
    def test_the_size_is_the_diameter_by_the_side(self, radius: int, size: str) -> None:
        found = measure_lesion(np.zeros((96, 96, 3), np.uint8), disc(96, radius))
        assert found is not None
        assert found.size == size

    def test_colours_are_named_by_their_share_inside_the_lesion_only(self) -> None:
        image = np.full((64, 64, 3), COLOURS["pink"], np.uint8)
        inside = np.zeros((64, 64), bool)
        inside[16:48, 16:48] = True
        image[16:48, 16:36], image[16:48, 36:48] = COLOURS["black"], COLOURS["red"]
        image[16:18, 16:48] = COLOURS["white"]
        found = measure_lesion(image, inside)
        assert found is not None
        assert found.colours == ("black", "red")

    def test_an_empty_mask_has_no_appearance(self) -> None:
        assert measure_lesion(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), bool)) is None


class TestPhrasing:
    def test_what_is_unknown_is_left_out(self) -> None:
        nothing = ROW | {"dx": "", "site": "", "sex": "", "age": float("nan")}
        for image_id in "abcdefghij":
            for held_out in (False, True):
                row = ROW | {"image_id": image_id, "site": ""}
                assert "back" not in write_caption(row, None, held_out=held_out)
                assert (
                    write_caption(nothing | {"image_id": image_id}, None, held_out=held_out) == ""
                )

    def test_every_caption_is_of_whole_sentences(self, drawn: Path) -> None:
        for caption in read_table(drawn).frame["caption"]:
            assert re.fullmatch(r"([A-Z][^.{}]*\.)( [A-Z][^.{}]*\.)*", caption), caption
            assert "  " not in caption

    def test_the_references_name_their_own_diagnosis_and_site(self, drawn: Path) -> None:
        frame = read_table(drawn).frame
        diagnosis, site = check_names(*(frame[name].tolist() for name in ("caption", "dx", "site")))
        assert diagnosis.mean() == 1
        assert site.mean() == 1

    def test_the_test_split_has_phrasings_that_training_never_sees(self, drawn: Path) -> None:
        frame = read_table(drawn).frame
        starts = frame["caption"].str.extract(r"^(\w+ \w+)")[0]
        test = frame["split"] == "test"
        assert {"train", "val", "test"} == set(frame["split"])
        held_out = r"^(A \w+(-\w+)? lesion|Seen in)"
        assert frame["caption"].str.match(held_out)[test].all(), starts[test]
        assert not frame["caption"].str.match(held_out)[~test].any()


class TestTable:
    def test_other_cells_and_existing_captions_are_kept(self, drawn: Path) -> None:
        before = pd.read_csv(drawn / "metadata.csv", dtype=str, keep_default_na=False)
        rows = before.copy()
        rows.loc[0, "caption"], rows.loc[1, "caption"] = "My own words.", ""
        rows.to_csv(drawn / "own.csv", index=False)
        report = caption_data(drawn / "own.csv", drawn / "again.csv")
        after = pd.read_csv(drawn / "again.csv", dtype=str, keep_default_na=False)
        assert (report.written, report.kept) == (1, len(before) - 1)
        assert after.loc[0, "caption"] == "My own words."
        pd.testing.assert_frame_equal(after.iloc[1:], before.iloc[1:])

    def test_the_table_is_not_replaced_unasked(self, drawn: Path) -> None:
        with pytest.raises(UsageError, match="exists"):
            caption_data(drawn)

    def test_the_command_says_what_the_captions_are_for(self, drawn: Path) -> None:
        ran = dermedge("data", "caption", drawn, "-o", drawn / "new.csv")
        assert ran.code == 0, ran.err
        assert "they are no clinical language" in ran.out
        assert "60 kept" in ran.out
