"""Test the checks and the choice of calibration images."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dermedge.data.table import digests
from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.models import load_model_folder
from dermedge_export.calibration import (
    Calibration,
    balanced_choice,
    check_calibration,
    synthetic_calibration,
)
from dermedge_export.parity.evaluator import ParityEvaluator, predict_synthetic
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Preprocess, Spec
from support import small


def made(count: int = 40, classes: dict[str, int] | None = None) -> Calibration:
    known = {"nv": count // 2, "mel": count - count // 2} if classes is None else classes
    return Calibration(
        np.zeros((count, 16, 16, 3), np.uint8), tuple(map(str, range(count))), "train", known
    )


class TestRefusal:
    def test_images_that_evaluate_the_artifact(self) -> None:
        with pytest.raises(
            DataError, match="2 calibration images of lesions are in its val split too"
        ):
            check_calibration(made(), {"val": ["3", "7", "x"], "test": []}, "lesions")

    def test_too_few(self) -> None:
        with pytest.raises(
            DataError, match=r"lesions has only 31 calibration images; 32 are needed"
        ):
            check_calibration(made(31), {}, "lesions")

    def test_one_class_only(self) -> None:
        with pytest.raises(DataError, match=r"All 40 calibration images of lesions are 'nv'"):
            check_calibration(made(classes={"nv": 40}), {}, "lesions")

    def test_unlabelled_images_are_not_taken_for_one_class(self) -> None:
        check_calibration(made(classes={}), {"val": ["a"], "test": ["b"]}, "lesions")
        check_calibration(made(classes={"nv": 8}), {}, "lesions")


def test_classes_take_turns_so_that_rare_ones_are_included() -> None:
    labels = ["nv"] * 900 + ["mel"] * 90 + ["df"] * 10
    chosen = balanced_choice(labels, 60)
    assert Counter(labels[index] for index in chosen) == {"nv": 25, "mel": 25, "df": 10}
    assert chosen == balanced_choice(labels, 60)
    assert len(set(chosen)) == 60
    assert len(balanced_choice(labels, 5000)) == 1000


def test_lesions_for_calibration_do_not_measure_agreement() -> None:
    spec = Preprocess(32)
    seen: list[bytes] = []

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.extend(image.tobytes() for image in images)
        return {"diagnosis": np.zeros((len(images), 2), np.float32)}

    predict_synthetic(run, ParityEvaluator(Spec("toy", "1", (), spec), run, None).lesions)
    calibration = synthetic_calibration(spec, 16)
    assert calibration.split == "procedural"
    assert not {image.tobytes() for image in calibration.images} & set(seen)


class TestOfATable:
    @pytest.fixture
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return small.data_set(tmp_path_factory.getbasetemp())

    def test_it_comes_from_train_with_a_digest_that_can_be_checked(
        self, data: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        student = load_model_folder(small.student_folder(tmp_path_factory.getbasetemp()))
        evaluation_data = TableEvaluationData(data, student.spec)
        calibration = evaluation_data.calibration(24)
        train = digests(evaluation_data.table.select_split("train"))
        assert set(calibration.digests) <= set(train)
        assert calibration.images.shape == (24, 32, 32, 3)
        record = calibration.to_json()
        assert (record["split"], record["count"]) == ("train", 24)
        assert sum(record["classes"].values()) == 24
        assert (
            evaluation_data.calibration(24).digest
            == record["digest"]
            != evaluation_data.calibration(23).digest
        )

    def test_a_table_whose_val_repeats_train_images_is_refused_before_anything_is_quantized(
        self, data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        student = load_model_folder(small.student_folder(tmp_path_factory.getbasetemp()))

        def leak(frame: object) -> object:
            import pandas as pd

            assert isinstance(frame, pd.DataFrame)
            twins = frame[frame["split"] == "train"].assign(split="val")
            for path in twins["image"]:
                twin = tmp_path / "leaky" / path.replace("images/", "images/twin-")
                twin.write_bytes((tmp_path / "leaky" / path).read_bytes())
            twins = twins.assign(
                image=twins["image"].str.replace("images/", "images/twin-"),
                image_id="twin-" + twins["image_id"],
            )
            return pd.concat([frame, twins])

        leaky = small.edited(data, tmp_path / "leaky", leak)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="calibration images of leaky are in its val split too"):
            small.export_model(
                student,
                "cpu",
                tmp_path / "out",
                data=TableEvaluationData(leaky, student.spec),
                precision="int8",
                engine="onnxruntime",
            )
        assert [
            path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")
        ] == []
