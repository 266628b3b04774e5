"""Test the protocol `paper` against the formulas of the released DermINO code."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from torchvision import transforms

from dermedge.data.draw import draw_data_set
from dermedge.models import load_model_folder
from dermedge.probing import knn
from dermedge.probing.linear import LinearRecipe
from dermedge.probing.options import ProbeOptions
from dermedge.probing.paper import (
    PAPER_SEGMENT_RECIPE,
    PAPER_UPERNET,
    centre_crop,
    count_iterations,
    draw_batches,
)
from dermedge.probing.probe import probe
from dermedge.probing.scores import Bootstrap, score_masks_as_released
from dermedge.probing.segment import make_decoders
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Preprocess, to_json
from support.untrained import CNN, VIT, coloured, data_set, teacher


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    teacher(folder / "teacher")
    data_set(folder / "data", coloured(120))
    return folder


def run(place, **options):
    options = {"protocol": "paper", "replicates": 20, **options}
    return probe(place / "teacher", place / "data", ProbeOptions(**options))


@pytest.mark.parametrize(
    ("task", "classes"), [("diagnosis", 3), ("malignancy", 2), ("severity", 3)]
)
def test_every_task_is_classified_by_a_softmax(place, task, classes):
    report = run(place, task=task, epochs=1, batch_size=32)
    assert [result.name for result in report.results] == [
        *("linear", "knn-5", "knn-10", "knn-15", "knn-5-uniform")
    ]
    assert len(report.labels) == classes
    for result in report.results:
        assert list(result.metrics) == ["balanced_accuracy", "accuracy", "macro_auroc", "macro_f1"]
        assert result.threshold is None
    assert json.loads(json.dumps(to_json(report), allow_nan=False))["protocol"] == "paper"


def test_the_colours_of_an_untrained_network_are_classified(place):
    report = run(place, epochs=10, batch_size=16, lr=2.0)
    scores = {result.name: result.metrics["balanced_accuracy"].value for result in report.results}
    assert min(scores.values()) > 0.8
    passes = report.settings["iterations"] * 16 / (10 * report.images["train"])
    assert 2.5 <= passes < 2.8


def test_two_runs_are_identical(place):
    first, again = (json.dumps(to_json(run(place, epochs=1, batch_size=32))) for _ in range(2))
    assert first == again


def test_the_released_number_of_iterations_holds_for_its_sets(place):
    from dataclasses import replace

    from dermedge.probing.context import load_context

    task = load_context(place / "teacher", place / "data", ProbeOptions(protocol="paper")).task
    recipe = LinearRecipe(epochs=50, batch_size=256, lr=5e-3)

    def count(source, classes):
        table = task.table.replace(task.table.frame.assign(source=source))
        return count_iterations(replace(task, table=table, classes=("c",) * classes), recipe)

    assert count("acne04", 4) == 600
    assert count("med_node", 2) == 5
    assert [count("fitzpatrick17k", k) for k in (2, 3, 9)] == [1750, 6500, 6500]
    assert count("own", 3) == 50  # one batch holds more than 2.5 passes


def test_batches_follow_an_endless_shuffled_sequence():
    batches = draw_batches(10, 4, 5, seed=3)
    assert sorted(np.concatenate(batches).tolist()) == sorted([*range(10), *range(10)])
    assert sorted(np.concatenate(batches)[:10].tolist()) == list(range(10))


def test_test_images_are_cut_as_the_released_transform_cuts_them():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 410, 3), np.uint8)
    released = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
        ]
    )
    expected = np.asarray(released(Image.fromarray(pixels)))
    assert np.array_equal(centre_crop(pixels, Preprocess(224)), expected)


def test_equal_votes_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    gallery, queries = (rng.normal(size=(count, 8)).astype(np.float32) for count in (60, 25))
    labels = rng.integers(0, 4, 60)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (gallery, queries)]
    expected = KNeighborsClassifier(5).fit(unit[0], labels).predict_proba(unit[1])
    found = knn.vote(gallery, labels, queries, 4, neighbours=5, temperature=None)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_masks_are_scored_per_batch_and_over_both_classes():
    rng = np.random.default_rng(2)
    truth, guess = rng.random((70, 8, 8)) < 0.3, rng.random((70, 8, 8)) < 0.4
    counts = np.array(
        [
            [[(a & b).sum(), (a | b).sum()] for a, b in ((~mask, ~found), (mask, found))]
            for mask, found in zip(truth, guess, strict=True)
        ]
    )
    found = score_masks_as_released(counts, np.arange(70).astype(str), Bootstrap(10, 0))
    pairs = [(truth[:64].ravel(), guess[:64].ravel()), (truth[64:].ravel(), guess[64:].ravel())]

    def mean(metric):
        return pytest.approx(np.mean([metric(*pair) for pair in pairs]))

    assert found["released_accuracy"].value == mean(lambda a, b: (a == b).mean())
    assert found["released_miou"].value == mean(lambda a, b: jaccard_score(a, b, average="macro"))
    assert found["released_jaccard"].value == mean(
        lambda a, b: jaccard_score(a, b, average="micro")
    )
    assert found["released_dice"].value == mean(lambda a, b: f1_score(a, b, average="macro"))


def test_the_learning_rate_of_a_decoder_is_that_of_the_released_loop():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    released = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(50):
        assert PAPER_SEGMENT_RECIPE.rate(step) == pytest.approx(released.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        released.step()


@pytest.mark.parametrize("backbone", ["cnn", "vit"])
def test_segmentation_has_the_released_metrics_beside_ours(tmp_path, backbone):
    draw_data_set(tmp_path / "lesions", count=24, seed=5, size=(96, 72))
    if backbone == "cnn":
        teacher(tmp_path / "teacher", CNN, size=64, stages=4)
    else:
        teacher(tmp_path / "teacher", VIT, size=64, args={"img_size": 64, "depth": 4})
    options = ProbeOptions(
        task="segment", protocol="paper", epochs=1, batch_size=8, replicates=10, heads=("linear",)
    )
    (linear,) = probe(tmp_path / "teacher", tmp_path / "lesions", options).results
    assert list(linear.metrics)[:4] == [
        *("released_accuracy", "released_miou", "released_jaccard", "released_dice")
    ]
    assert list(linear.metrics)[4:] == ["mean_iou", "dice", "jaccard", "pixel_accuracy"]


def test_the_released_upernet_has_768_channels_on_one_grid(tmp_path):
    teacher(tmp_path / "teacher", VIT, size=64, args={"img_size": 64, "depth": 4})
    decoders, levels = make_decoders(
        load_model_folder(tmp_path / "teacher"), ("upernet",), 0, upernet=PAPER_UPERNET
    )
    upernet = decoders["upernet"]
    assert upernet.scales == (1.0, 1.0, 1.0, 1.0)
    assert upernet.fuse[0].out_channels == 768
    assert upernet.classify[0].p == 0
    assert levels == (0, 1, 2, 3)


def test_options_that_the_protocol_does_not_use_are_refused():
    with pytest.raises(UsageError, match="no linear layer to normalise"):
        ProbeOptions(protocol="paper", normalise=True)
    with pytest.raises(UsageError, match="Leave out the fraction"):
        ProbeOptions(protocol="paper", fractions=(0.1,))
