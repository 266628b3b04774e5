"""Test `probe`: its scores, its feature cache, its warnings and its errors."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from dermedge.data.table import digests, read_table
from dermedge.models import Network
from dermedge.probing.options import PROTOCOLS, ProbeOptions
from dermedge.probing.probe import probe
from dermedge.probing.protocols import RUN_PROTOCOL
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import to_json
from support.tables import shared
from support.untrained import COLOURS, coloured, data_set, teacher

FEW = {"replicates": 50}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    teacher(folder / "teacher")
    data_set(folder / "data", coloured(180))
    return folder


def run(place, *, data=None, cache=None, **options):
    linear = options.get("protocol", "linear") in ("linear", "fewshot")
    return probe(
        place / "teacher",
        data or place / "data",
        ProbeOptions(**{"normalise": linear, **FEW, **options}),
        cache=cache or place / "kept",
    )


def changed(place, out, **columns):
    """Copy the data set, with some columns replaced by functions of a row."""
    shutil.copytree(place / "data", out)
    frame = pd.read_csv(out / "metadata.csv")
    for name, value in columns.items():
        frame[name] = [value(row) for _, row in frame.iterrows()]
    frame.to_csv(out / "metadata.csv", index=False)
    return out


# -- scores


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_features_of_an_untrained_network_classify_by_colour(place, tmp_path, protocol):
    report = run(place, protocol=protocol)
    assert report.results[0].metrics["balanced_accuracy"].value > 0.9
    assert report.images == {"train": 90, "val": 30, "test": 60}
    assert report.support == {"nv": 20, "mel": 20, "bkl": 20}

    rng, lesions = np.random.default_rng(0), read_table(place / "data").frame["lesion_id"]
    by_lesion = {lesion: str(rng.choice(list(COLOURS))) for lesion in lesions}
    shuffled = changed(place, tmp_path / "shuffled", dx=lambda row: by_lesion[row["lesion_id"]])
    assert (
        0.1
        < run(place, data=shuffled, protocol=protocol).results[0].metrics["balanced_accuracy"].value
        < 0.6
    )


def test_two_runs_are_identical_and_a_report_is_json(place):
    first, again = (
        json.dumps(to_json(run(place, protocol="fewshot", seed=3)), allow_nan=False)
        for _ in range(2)
    )
    assert first == again
    assert json.loads(first)["schema"] == "dermedge.probe/1"


def test_every_protocol_has_a_function():
    assert tuple(RUN_PROTOCOL) == PROTOCOLS


def test_fewshot_draws_whole_lesions_of_train(place, tmp_path):
    report = run(place, protocol="fewshot", fractions=(0.02, 0.5))
    assert [(r.name, r.fraction, r.train_images, r.train_groups) for r in report.results] == [
        ("2 %", 0.02, 6, 3),
        ("50 %", 0.5, 48, 24),
    ]
    # The draw uses train alone: other labels on test change the score, not the draw.
    wrong = changed(
        place,
        tmp_path / "wrong",
        dx=lambda row: "nv" if row["split"] == "test" and row["dx"] == "mel" else row["dx"],
    )
    other = run(place, data=wrong, protocol="fewshot", fractions=(0.02, 0.5))
    assert [r.train_images for r in other.results] == [6, 48]
    assert (
        other.results[1].metrics["balanced_accuracy"].value
        < report.results[1].metrics["balanced_accuracy"].value
    )


def test_a_severity_is_probed_by_distance(place):
    report = run(place, task="severity", epochs=200)
    assert report.labels == ("0", "1", "2")
    metrics = report.results[0].metrics
    assert list(metrics)[:2] == ["mean_absolute_error", "quadratic_weighted_kappa"]
    assert metrics["mean_absolute_error"].value < 0.4
    assert metrics["quadratic_weighted_kappa"].value > 0.6


def test_the_malignancy_threshold_depends_on_val_and_not_on_test(place, tmp_path):
    report = run(place, task="malignancy")
    (result,) = report.results
    assert result.metrics["auroc"].value > 0.9
    assert result.metrics["sensitivity"].value > 0.7
    assert list(result.recall) == ["benign", "malignant"]

    def malignant(split):
        return lambda row: (row["dx"] == "mel") != (row["split"] == split)

    test = changed(place, tmp_path / "test", malignant=malignant("test"))
    val = changed(place, tmp_path / "val", malignant=malignant("val"))
    assert run(place, data=test, task="malignancy").results[0].threshold == result.threshold
    assert run(place, data=val, task="malignancy").results[0].threshold < result.threshold


def test_the_report_lists_all_settings(place):
    settings = run(place, protocol="fewshot", lr=0.01, seed=5).settings
    assert settings == {
        "seed": 5,
        "replicates": 50,
        "preprocess": {
            "size": 32,
            "fit": "crop",
            "kernel": "triangle",
            "background": [255, 255, 255],
        },
        "optimizer": "Adam",
        "epochs": 50,
        "batch_size": 256,
        "lr": 0.01,
        "normalise": True,
        "fractions": [0.01, 0.05, 0.1],
    }
    assert run(place, protocol="knn").settings["neighbours"] == 20


def test_groups_of_people_are_compared(place):
    by_sex = {fair.column: fair for fair in run(place).results[0].fairness}["sex"]
    assert (
        sum(group.cases for group in by_sex.groups.values()) + sum(by_sex.insufficient.values())
        == 60
    )


# -- warnings


def test_test_images_that_trained_the_teacher_are_flagged(place, tmp_path):
    table = read_table(place / "data")
    seen = digests(table.select_split("test")).tolist()[:7]
    teacher(
        tmp_path / "teacher",
        split=tuple((f"x{i}", digest, "train") for i, digest in enumerate(seen)),
    )
    report = probe(tmp_path / "teacher", place / "data", ProbeOptions(protocol="knn", **FEW))
    assert "TRAINED ON 7 of the 60 test images" in report.warnings[0]
    assert run(place, protocol="knn").warnings == ()


def test_fewshot_flags_train_images_that_trained_the_teacher(place, tmp_path):
    seen = digests(read_table(place / "data").select_split("train")).tolist()[:8]
    teacher(
        tmp_path / "teacher",
        split=tuple((f"x{i}", digest, "train") for i, digest in enumerate(seen)),
    )
    few, all_of_them = (
        probe(tmp_path / "teacher", place / "data", ProbeOptions(protocol=protocol, **FEW)).warnings
        for protocol in ("fewshot", "linear")
    )
    assert "trained on 8 of the train images already" in few[0]
    assert all_of_them == ()


def test_shared_lesions_and_unlabelled_images_are_flagged(place, tmp_path):
    data = changed(
        place,
        tmp_path / "leaky",
        lesion_id=lambda row: "L0" if row["lesion_id"] == "L15" else row["lesion_id"],
        dx=lambda row: "" if row["lesion_id"] in ("L12", "L13") else row["dx"],
    )
    warnings = run(place, data=data, protocol="knn").warnings
    assert any(
        text.startswith("1 lesions or patients are in train and in test") for text in warnings
    )
    assert any(text.startswith("Left out: 4 test images") for text in warnings)


# -- the cache


def refuse(*_):
    raise AssertionError("the network ran")


def test_cached_features_are_not_computed_again(place, tmp_path, monkeypatch):
    cache = tmp_path / "kept"
    first = run(place, task="malignancy", cache=cache)
    monkeypatch.setattr(Network, "features", refuse)
    assert run(place, task="malignancy", cache=cache) == first
    for options in (
        {"protocol": "knn"},
        {"protocol": "fewshot"},
        {"task": "severity"},
        {"seed": 9},
    ):
        run(place, cache=cache, **options)
    with pytest.raises(AssertionError, match="the network ran"):
        run(place, cache=tmp_path / "elsewhere")


def test_only_images_that_are_new_go_through_the_network(place, tmp_path, monkeypatch):
    cache, passed = tmp_path / "kept", []
    own = Network.features

    def counted(self, image):
        passed.append(len(image))
        return own(self, image)

    monkeypatch.setattr(Network, "features", counted)
    less = changed(
        place,
        tmp_path / "less",
        split=lambda row: "val" if row["lesion_id"] == "L0" else row["split"],
    )
    run(place, data=less, protocol="knn", cache=cache)
    assert sum(passed) == 148
    expected = run(place, protocol="knn", cache=tmp_path / "fresh")
    passed.clear()
    merged = run(place, protocol="knn", cache=cache)
    assert sum(passed) == 2
    # Not to the last bit: how many images share a batch decides how a processor sums.
    for name, value in expected.results[0].metrics.items():
        assert merged.results[0].metrics[name].value == pytest.approx(value.value, abs=0.02)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_a_damaged_cache_is_recomputed_and_repaired(place, tmp_path, monkeypatch, damage):
    cache = tmp_path / "kept"
    expected = run(place, protocol="knn", cache=cache)
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) * 3 // 4] ^= 0xFF
    file.write_bytes(
        {"cut": sound[:-500], "flipped": bytes(flipped), "text": b"no features", "empty": b""}[
            damage
        ]
    )
    assert run(place, protocol="knn", cache=cache) == expected
    monkeypatch.setattr(Network, "features", refuse)
    assert run(place, protocol="knn", cache=cache) == expected


def test_each_weights_and_preprocessing_have_their_own_cache_file(place, tmp_path):
    cache = tmp_path / "kept"
    run(place, protocol="knn", cache=cache)
    for number, options in enumerate(({"seed": 1}, {"fit": "stretch"}, {"size": 48}), start=2):
        probe(
            teacher(tmp_path / f"other{number}", **options),
            place / "data",
            ProbeOptions(protocol="knn", **FEW),
            cache=cache,
        )
        assert len(list(cache.iterdir())) == number


def test_features_are_cached_beside_the_teacher_folder(place, tmp_path):
    own = teacher(tmp_path / "own")
    before = sorted(own.iterdir())
    probe(own, place / "data", ProbeOptions(protocol="knn", **FEW))
    assert sorted(own.iterdir()) == before
    assert [path.suffix for path in (tmp_path / "own.features").iterdir()] == [".npz"]


# -- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "colour"}, "Unknown task 'colour'"),
        ({"protocol": "svm"}, "Unknown protocol 'svm'"),
        ({"task": "segment"}, "protocol linear does not measure the task segment"),
        (
            {"task": "diagnosis", "protocol": "segment"},
            "segment does not measure the task diagnosis",
        ),
        ({"fractions": (0.1,)}, "protocol linear uses all train labels"),
        ({"fractions": (0.1, 1.5), "protocol": "fewshot"}, "fraction 1.5 is not above 0"),
        ({"heads": ("unet",), "protocol": "segment"}, "Unknown head 'unet'"),
        ({"epochs": 3, "protocol": "knn"}, "knn trains nothing. Leave out epochs"),
        ({"normalise": True, "protocol": "knn"}, "Leave out normalise"),
        ({"epochs": 0}, "train nothing"),
        ({"replicates": 9}, "9 bootstrap replicates are too few"),
    ],
)
def test_conflicting_options_are_refused_at_construction(options, message):
    with pytest.raises(UsageError, match=message):
        ProbeOptions(**options)


def test_an_existing_report_is_refused_before_any_work(tmp_path):
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(UsageError, match=r"report\.json"):
        probe(tmp_path / "nowhere", tmp_path / "nothing", out=tmp_path / "report.json")


def test_missing_inputs_are_named(place, tmp_path):
    with pytest.raises(DataError, match=r"holds neither student\.json nor teacher\.json"):
        probe(tmp_path, place / "data")
    with pytest.raises(DataError, match=r"There is no folder or file"):
        run(place, data=tmp_path / "nothing")
    without = changed(place, tmp_path / "without", split=lambda row: "train")
    with pytest.raises(DataError, match="no rows in the split 'test'"):
        run(place, data=without)
    unknown = changed(
        place, tmp_path / "unknown", dx=lambda row: "" if row["split"] == "test" else row["dx"]
    )
    with pytest.raises(DataError, match=r"No test row of .* has a dx"):
        run(place, data=unknown)
    with pytest.raises(DataError, match="column 'mask'"):
        run(place, protocol="segment")
    benign = changed(
        place, tmp_path / "benign", dx=lambda row: "nv" if row["split"] == "val" else row["dx"]
    )
    with pytest.raises(DataError, match=r"No val row of .* is malignant"):
        run(place, data=benign, task="malignancy")
    assert run(place, data=benign).results  # a diagnosis needs nothing of val


def test_nan_features_are_refused_and_not_cached(place, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Network, "features", lambda self, image: image.float().mean((1, 2)) * float("nan")
    )
    with pytest.raises(DataError, match="NaN or infinite"):
        run(place, cache=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


# -- the whole network, and real images


def test_finetuning_leaves_no_files(place, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    report = run(place, protocol="finetune", epochs=3, batch_size=16, lr=2e-3)
    assert report.results[0].name == "finetune"
    assert report.results[0].metrics["macro_auroc"].value > 0.6
    assert report.settings["optimizer"] == "AdamW"
    assert report.settings["patience"] > 0
    assert list(tmp_path.iterdir()) == []


def test_finetuning_grades_severity_with_levels_missing_in_train(place, tmp_path):
    levels = {"nv": 0, "bkl": 2, "mel": 3}
    graded = changed(place, tmp_path / "graded", severity=lambda row: levels[row["dx"]])
    report = run(
        place, data=graded, protocol="finetune", task="severity", epochs=6, batch_size=16, lr=5e-3
    )
    assert report.labels == ("0", "1", "2", "3")
    assert report.support["1"] == 0
    assert report.results[0].metrics["quadratic_weighted_kappa"].value > 0.5


def test_real_images(tmp_path):
    table = pd.read_csv(shared("pad_ufes_20") / "metadata.csv", dtype=str, keep_default_na=False)
    chosen = table[table["dx"].isin(["nv", "bcc"])].head(90)
    (tmp_path / "data").mkdir()
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).symlink_to(shared("pad_ufes_20") / folder)
    chosen.to_csv(tmp_path / "data" / "metadata.csv", index=False)
    own = teacher(tmp_path / "teacher")
    report = probe(own, tmp_path / "data", ProbeOptions(protocol="knn", **FEW))
    assert report.labels == ("nv", "bcc")
    assert sum(report.images.values()) == 90
    assert report.results[0].metrics["balanced_accuracy"].value is not None
    segment = ProbeOptions(protocol="segment", heads=("linear",), epochs=1, **FEW)
    masks = probe(own, tmp_path / "data", segment)
    assert 0 < masks.results[0].metrics["pixel_accuracy"].value < 1
