"""Test `evaluate`: its metrics, its subgroups, its warnings and its errors."""

import dataclasses
import json
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from conftest import FakeRuntime, toy_content
from dermedge.data.subgroups import age_band
from dermedge.data.table import read_table
from dermedge.evaluation.table_predictions import table_predictions
from dermedge.workflows.evaluate import evaluate
from dermedge_runtime import model
from dermedge_runtime.bundle import write_bundle
from dermedge_runtime.errors import DataError, EngineError, UsageError
from dermedge_runtime.model import load
from dermedge_runtime.report import Interval
from dermedge_runtime.spec import Conformal, Postprocessing, Spec, Task, to_json
from support.colour_data import CHANNEL, make_data


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setitem(model.RUNTIMES, "fake", "conftest:FakeRuntime")


def make_bundle(path, **changes):
    content = toy_content()
    content["files"] |= changes.pop("files", {})
    write_bundle(path, **content | changes)
    return path


@pytest.fixture
def bundle(tmp_path):
    """Write the toy bundle with a threshold that separates both melanomas and naevi."""
    return make_bundle(
        tmp_path / "fair.dermedge", postprocessing={"malignancy": Postprocessing(0.8, 0.33)}
    )


@pytest.fixture
def data(tmp_path):
    """Write sixty test images of forty lesions, and ten training images."""
    rng = np.random.default_rng(1)
    names = list(CHANNEL)
    rows = []
    for number in range(60):
        dx = names[number % 3]
        colour = dx if rng.random() < 0.7 else names[rng.integers(3)]
        who = {"sex": ["male", "female", ""][number % 3 - 1], "age": [25, 45, 72.5, ""][number % 4]}
        skin = {"fitzpatrick": [1, 6, ""][number // 20], "site": "back" if number < 30 else ""}
        rows.append(
            {
                "dx": dx,
                "colour": colour,
                "by": int(rng.integers(5, 40)),
                "lesion_id": f"L{number * 2 // 3}",
            }
            | who
            | skin
        )
    rows += [
        {"dx": "nv", "colour": "mel", "split": "train", "lesion_id": f"T{i}"} for i in range(10)
    ]
    return make_data(tmp_path / "data", rows)


def test_metrics_agree_with_single_predictions(data, bundle):
    report = evaluate(bundle, data, replicates=200)
    table = read_table(data).select_split("test").frame
    with load(bundle) as loaded:
        answers = [loaded.predict(data / image, exact=True) for image in table["image"]]
    predicted = [answer.labels[0].id for answer in answers]
    scores = np.array([answer.malignancy for answer in answers])
    decided = np.array([answer.decision == "malignant" for answer in answers])
    known, truth = table["dx"] != "akiec", table["dx"] == "mel"
    metrics = {name: found.value for name, found in report.overall.metrics.items()}
    assert metrics["accuracy"] == pytest.approx((table["dx"] == predicted).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(table["dx"], predicted)
    )
    assert metrics["malignant_auroc"] == pytest.approx(roc_auc_score(truth[known], scores[known]))
    assert metrics["sensitivity"] == pytest.approx(decided[truth].mean())
    assert metrics["specificity"] == pytest.approx(1 - decided[known & ~truth].mean())
    assert all(0 < value < 1 for value in metrics.values())
    for row, answer, image_id in zip(report.images, answers, table["image_id"], strict=True):
        assert (row.image_id, row.predicted) == (image_id, answer.labels[0].id)
        assert row.probability == pytest.approx(answer.labels[0].probability)
        assert row.malignancy == pytest.approx(answer.malignancy)


def test_sets_and_referrals_agree_with_single_predictions(data, tmp_path):
    sets = Conformal("aps", 0.9, (0.6, 0.7, None))
    path = make_bundle(
        tmp_path / "sets.dermedge",
        postprocessing={
            "diagnosis": Postprocessing(conformal=sets),
            "malignancy": Postprocessing(0.8, 0.33, rule_in=0.4),
        },
    )
    report = evaluate(path, data, replicates=50)
    table = read_table(data).select_split("test").frame.reset_index(drop=True)
    with load(path) as loaded:
        answers = [loaded.predict(data / image, exact=True) for image in table["image"]]
    covered = [dx in answer.conformal_set for dx, answer in zip(table["dx"], answers, strict=True)]
    table = table.assign(
        coverage=covered,
        set_size=[len(answer.conformal_set) for answer in answers],
        referred=[answer.decision == "refer" for answer in answers],
    )
    assert [image.referred for image in report.images] == table["referred"].tolist()
    parts = {"all": (report.overall, table)}
    parts |= {one.value: (one.scores, table[table["dx"] == one.value]) for one in report.classes}
    parts |= {
        one.value: (one.scores, table[table["sex"] == one.value])
        for one in report.subgroups
        if one.column == "sex"
    }
    assert set(parts) == {"all", "nv", "mel", "akiec", "female", "male"}
    for scores, rows in parts.values():
        assert scores.cases == len(rows)
        for name in ("coverage", "set_size", "referred"):
            found = scores.metrics[name]
            assert found.value == pytest.approx(rows[name].mean())
            assert found.low <= found.value <= found.high
    assert 0 < table["referred"].mean() < 1 and 0 < table["coverage"].mean() < 1
    assert "9 validation images of each label; akiec has fewer" in " ".join(report.warnings)


def test_a_bundle_without_sets_reports_no_coverage(data, bundle):
    metrics = evaluate(bundle, data, replicates=10).overall.metrics
    assert not {"coverage", "set_size", "referred"} & metrics.keys()


def test_the_report_holds_all_data_of_its_plots(data, toy_bundle_path):
    report = evaluate(toy_bundle_path, data, replicates=50)
    assert report.overall.cases == report.overall.labelled == 60
    assert report.overall.groups == 40
    assert report.overall.malignant == 20
    confusion = np.array(report.confusion)
    assert confusion.sum() == 60
    assert (
        [report.support[name] for name in report.labels]
        == confusion.sum(1).tolist()
        == [20, 20, 20]
    )
    assert [report.recall[name].value for name in report.labels] == pytest.approx(
        (confusion.diagonal() / 20).tolist()
    )
    assert np.mean([found.value for found in report.recall.values()]) == pytest.approx(
        report.overall.metrics["balanced_accuracy"].value
    )
    assert sum(part.count for part in report.reliability) == 60
    gaps = [
        part.count * abs(part.accuracy - part.confidence)
        for part in report.reliability
        if part.count
    ]
    assert sum(gaps) / 60 == pytest.approx(report.overall.metrics["ece"].value)
    false, true = np.array(report.roc).T
    assert np.trapezoid(true, false) == pytest.approx(
        report.overall.metrics["malignant_auroc"].value
    )


def test_intervals_resample_lesions_and_are_repeatable(data, bundle):
    first, second = (evaluate(bundle, data, replicates=300) for _ in range(2))
    assert json.dumps(to_json(first), allow_nan=False) == json.dumps(
        to_json(second), allow_nan=False
    )
    for found in first.overall.metrics.values():
        assert found.low <= found.value <= found.high
        assert found.low < found.high
    alone = pd.read_csv(data / "metadata.csv").assign(lesion_id="only one")
    alone.to_csv(data / "metadata.csv", index=False)
    single = evaluate(bundle, data, replicates=50).overall
    assert single.groups == 1
    assert single.metrics["accuracy"].low is None


def test_subgroups_are_formed_from_known_values_only(data, toy_bundle_path):
    report = evaluate(toy_bundle_path, data, replicates=50)
    cases = {(group.column, group.value): group.scores.cases for group in report.subgroups}
    assert cases == {
        ("fitzpatrick", "I"): 20,
        ("fitzpatrick", "VI"): 20,
        ("sex", "female"): 20,
        ("sex", "male"): 20,
        ("age_band", "0-29"): 15,
        ("age_band", "30-49"): 15,
        ("age_band", "70+"): 15,
        ("site", "back"): 30,
    }
    back = next(group.scores for group in report.subgroups if group.value == "back")
    right = [row.label == row.predicted for row in report.images[:30]]
    assert back.metrics["accuracy"].value == pytest.approx(np.mean(right))


def test_small_groups_are_listed_as_insufficient(data, bundle):
    skin, sex = evaluate(bundle, data, replicates=20).fairness
    assert (skin.column, skin.insufficient, skin.unknown) == (
        "fitzpatrick",
        {"I-II": 20, "V-VI": 20},
        20,
    )
    assert (sex.column, sex.insufficient, sex.unknown) == ("sex", {"female": 20, "male": 20}, 20)
    assert skin.gap == sex.gap == Interval(None)


def test_skin_tones_recorded_in_pairs_are_compared(tmp_path, bundle):
    names = list(CHANNEL)
    rows = [
        {
            "dx": names[number % 3],
            "colour": "nv" if number % 7 == 0 or number >= 66 else names[number % 3],
            "by": 60,
        }
        | {"skin_tone": 12 if number < 60 else 56, "sex": "", "lesion_id": f"L{number}"}
        for number in range(99)
    ]
    report = evaluate(bundle, make_data(tmp_path / "ddi", rows), replicates=50)
    (skin,) = report.fairness
    assert {name: group.cases for name, group in skin.groups.items()} == {"I-II": 60, "V-VI": 39}
    truth = np.array([row.malignant for row in report.images], float)
    called = np.array([row.malignancy >= report.threshold for row in report.images])
    for name, part in (("I-II", slice(0, 60)), ("V-VI", slice(60, None))):
        labels, predicted = zip(
            *((row.label, row.predicted) for row in report.images[part]), strict=True
        )
        assert skin.groups[name].score.value == pytest.approx(
            balanced_accuracy_score(labels, predicted)
        )
        assert skin.groups[name].tpr.value == pytest.approx(called[part][truth[part] == 1].mean())
        assert skin.groups[name].fpr.value == pytest.approx(called[part][truth[part] == 0].mean())
        assert skin.groups[name].malignant == (truth[part] == 1).sum()
    assert skin.worst == "V-VI"
    assert skin.gap.value > skin.chance_high > skin.chance


def test_without_a_threshold_skin_types_have_no_equalised_odds(data, tmp_path):
    table = pd.read_csv(data / "metadata.csv").assign(
        sex=lambda rows: np.resize(["male", "female"], len(rows))
    )
    table.to_csv(data / "metadata.csv", index=False)
    bundle = make_bundle(tmp_path / "b.dermedge", postprocessing={"malignancy": Postprocessing()})
    sex = evaluate(bundle, data, replicates=20).fairness[1]
    assert sex.gap.value is not None
    assert sex.equalised_odds is None


def test_age_bands_have_no_gap():
    ages = [0, 29.9, 30, 49, 50, 69.5, 70, 120, float("nan")]
    assert [age_band(a) for a in ages] == [
        *["0-29"] * 2,
        *["30-49"] * 2,
        *["50-69"] * 2,
        *["70+"] * 2,
        "",
    ]


def test_images_that_the_model_was_trained_on_are_flagged(data, tmp_path):
    table = read_table(data)
    seen = [
        sha256((data / image).read_bytes()).hexdigest()[:16]
        for image in table.frame["image"].iloc[[3, 5, 65]]
    ]
    bundle = make_bundle(
        tmp_path / "b.dermedge",
        files={"reports/training_images.txt": ("\n".join(seen) + "\n").encode()},
    )
    report = evaluate(bundle, data, replicates=20)
    assert report.trained_on == ("i3", "i5")
    assert [row.image_id for row in report.images if row.trained_on] == ["i3", "i5"]
    assert any("TRAINED ON 2 of these 60 images" in warning for warning in report.warnings)
    everything = evaluate(bundle, data, split="all", replicates=20)
    assert everything.trained_on == ("i3", "i5", "i65")


def prefixes(data, rows):
    """Return the file that lists the digest prefixes of some images of a table."""
    images = read_table(data).frame["image"].iloc[rows]
    digests = (sha256((data / image).read_bytes()).hexdigest() for image in images)
    return "".join(f"{digest[:16]}\n" for digest in digests).encode()


def as_val(data):
    """Put every row of a table into the split val."""
    table = pd.read_csv(data / "metadata.csv").assign(split="val")
    table.to_csv(data / "metadata.csv", index=False)


LISTS = ("reports/training_images.txt", "reports/validation_images.txt")


def test_the_val_split_of_another_data_set_is_not_flagged(data, tmp_path):
    as_val(data)
    foreign = dict.fromkeys(LISTS, b"0123456789abcdef\n")
    bundle = make_bundle(tmp_path / "b.dermedge", files=foreign)
    assert evaluate(bundle, data, split="val", replicates=20).warnings == ()
    assert evaluate(bundle, data, split="all", replicates=20).warnings == ()


def test_images_that_selected_the_model_are_flagged_in_any_split(data, tmp_path):
    files = {LISTS[0]: b"0123456789abcdef\n", LISTS[1]: prefixes(data, [1, 4, 9])}
    bundle = make_bundle(tmp_path / "b.dermedge", files=files)
    report = evaluate(bundle, data, replicates=20)
    assert report.split == "test"
    assert report.trained_on == ()
    assert report.warnings == (
        "3 of these 60 images selected the model or fitted its postprocessing, so its scores on "
        "them are too high. Report the test split instead.",
    )


def test_val_images_of_the_training_are_flagged_for_bundles_without_a_validation_list(
    data, tmp_path
):
    as_val(data)
    bundle = make_bundle(tmp_path / "b.dermedge", files={LISTS[0]: prefixes(data, [0, 1])})
    trained, selected = evaluate(bundle, data, split="val", replicates=20).warnings
    assert "TRAINED ON 2 of these 70 images" in trained
    assert "2 of these 70 images selected the model" in selected


def test_a_bundle_without_a_list_of_training_images_is_flagged(data, toy_bundle_path, tmp_path):
    report = evaluate(toy_bundle_path, data, replicates=20)
    assert report.trained_on is None
    assert any("it is unknown if the model was trained" in warning for warning in report.warnings)
    clean = make_bundle(
        tmp_path / "b.dermedge", files={"reports/training_images.txt": b"0123456789abcdef\n"}
    )
    assert evaluate(clean, data, replicates=20).trained_on == ()
    assert evaluate(clean, data, replicates=20).warnings == ()


def test_diagnoses_are_mapped_up_the_taxonomy_or_left_out_of_classes(tmp_path, toy_bundle_path):
    rows = [
        {"dx": "blue_nevus", "colour": "nv"},
        {"dx": "nodular_melanoma", "colour": "mel"},
        {"dx": "ak", "colour": "akiec"},
        {"dx": "bcc", "colour": "mel"},
        {"dx": "psoriasis", "colour": "nv"},
        {"dx": "bcc", "colour": "nv"},
        {"dx": "", "colour": "nv"},
    ]
    report = evaluate(toy_bundle_path, make_data(tmp_path / "d", rows), replicates=20)
    assert [row.label for row in report.images] == ["nv", "mel", "akiec", None, None, None, None]
    assert report.unmapped == {"bcc": 2, "psoriasis": 1}
    assert any("bcc 2, psoriasis 1" in warning for warning in report.warnings)
    assert (report.overall.cases, report.overall.labelled, report.overall.malignant) == (7, 3, 3)
    assert report.overall.metrics["accuracy"].value == 1


def test_the_malignancy_of_a_row_takes_precedence(tmp_path, toy_bundle_path):
    rows = [
        {"dx": "akiec", "colour": "akiec", "malignant": 1},
        {"dx": "akiec", "colour": "akiec", "malignant": ""},
        {"dx": "nv", "colour": "nv", "malignant": 1},
        {"dx": "nv", "colour": "nv", "malignant": ""},
    ]
    report = evaluate(toy_bundle_path, make_data(tmp_path / "d", rows), replicates=20)
    assert [row.malignant for row in report.images] == [True, None, True, False]
    assert report.overall.malignant == 2


def test_a_table_without_splits_is_split_and_only_its_test_rows_are_read(tmp_path, toy_bundle_path):
    rows = [
        {"dx": dx, "colour": dx, "split": "", "lesion_id": f"{dx}{i // 2}"}
        for dx in CHANNEL
        for i in range(40)
    ]
    data = make_data(tmp_path / "d", rows)
    first, other = (evaluate(toy_bundle_path, data, seed=seed, replicates=20) for seed in (0, 1))
    assert 10 <= first.overall.cases <= 30
    assert first.overall.cases == 2 * first.overall.groups
    images = [{row.image_id for row in report.images} for report in (first, other)]
    # `seed` is that of the bootstrap. Another seed of the splits would evaluate training images.
    assert images[0] == images[1]


def test_without_a_threshold_there_is_no_sensitivity(data, tmp_path):
    bundle = make_bundle(tmp_path / "b.dermedge", postprocessing={"malignancy": Postprocessing()})
    report = evaluate(bundle, data, replicates=20)
    assert (
        report.overall.metrics["sensitivity"]
        == report.overall.metrics["specificity"]
        == Interval(None)
    )
    assert report.overall.metrics["malignant_auroc"].value is not None


def test_a_model_without_a_diagnosis_is_scored_as_benign_or_malignant(data, tmp_path):
    content = toy_content()
    spec = dataclasses.replace(content["spec"], tasks=(Task("malignancy", "binary"),))
    path = tmp_path / "b.dermedge"
    write_bundle(
        path, **content | {"spec": spec, "tolerance": {"malignancy": 1e-3}, "postprocessing": {}}
    )
    report = evaluate(path, data, replicates=20)
    assert report.labels == ("benign", "malignant")
    assert report.support == {"benign": 20, "malignant": 20}
    assert report.overall.metrics["macro_auroc"].value == pytest.approx(
        report.overall.metrics["malignant_auroc"].value
    )


def test_an_unreadable_image_is_named(data, toy_bundle_path):
    (data / "images" / "i7.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"i7\.png.*dermedge data check"):
        evaluate(toy_bundle_path, data)


def test_nan_outputs_are_an_error_that_names_an_image(data, toy_bundle_path, monkeypatch):
    honest = FakeRuntime.run

    def run(self, images):
        outputs = honest(self, images)
        outputs["diagnosis"][-1] = np.nan
        return outputs

    monkeypatch.setattr(FakeRuntime, "run", run)
    with pytest.raises(EngineError, match=r"'diagnosis'.*'i31'.*verify"):
        evaluate(toy_bundle_path, data)


def test_wrong_splits_are_refused(data, toy_bundle_path):
    with pytest.raises(UsageError, match="'tset'"):
        evaluate(toy_bundle_path, data, split="tset")
    with pytest.raises(DataError, match="'val'"):
        evaluate(toy_bundle_path, data, split="val")


def test_table_predictions_keep_the_order_of_the_table_and_report_progress(data):
    table = read_table(data)
    spec: Spec = toy_content()["spec"]
    steps = []
    predictions = table_predictions(
        table, spec, FakeRuntime().run, batch=7, progress=lambda *step: steps.append(step)
    )
    assert predictions.image_ids == tuple(table.frame["image_id"])
    assert steps[-1][:2] == (70, 70)
    assert [step[0] for step in steps] == list(range(1, 71))
    colours = [
        np.asarray(Image.open(data / image)).mean((0, 1)).argmax() for image in table.frame["image"]
    ]
    np.testing.assert_array_equal(predictions.outputs["diagnosis"].argmax(1), colours)
