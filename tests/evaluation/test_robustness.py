"""Test `evaluate` on corrupted photographs."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import FakeRuntime, toy_content
from dermedge.data.table import read_table
from dermedge.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from dermedge.evaluation.robustness import measure_robustness
from dermedge.report.html import write_report
from dermedge.workflows.evaluate import evaluate
from dermedge_export.quality_limits import PIXEL_LIMITS
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime import model
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.quality import QualityLimits
from dermedge_runtime.spec import Postprocessing, Task
from support.colour_data import make_data

PHOTO = Image.fromarray(draw_lesion(5, height=90, width=120).image)
ROWS = [
    {"dx": dx, "colour": dx, "lesion_id": f"L{number}"}
    for number, dx in enumerate(["nv", "mel", "akiec"] * 4)
]


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setitem(model.RUNTIMES, "fake", "conftest:FakeRuntime")


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "toy.dermedge"
    write_bundle(path, **toy_content(), quality=PIXEL_LIMITS)
    return path


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_keeps_the_size_and_grows_with_its_severity(name):
    pixels = [np.asarray(corrupt(PHOTO, name, severity, "i1")) for severity in SEVERITIES]
    again = np.asarray(corrupt(PHOTO, name, 2, "i1"))
    assert np.array_equal(pixels[1], again)
    assert {one.shape for one in pixels} == {(90, 120, 3)}
    away = [np.abs(one.astype(int) - np.asarray(PHOTO)).mean() for one in pixels]
    assert 0 < away[0] < away[2]


def test_the_report_compares_corrupted_photographs_with_the_same_clean_ones(bundle, tmp_path):
    data, seen = make_data(tmp_path / "data", ROWS), []
    report = evaluate(
        bundle,
        data,
        replicates=20,
        corruptions=["underexposure", "white_balance"],
        progress=lambda *step: seen.append(step),
    )
    robustness = report.robustness
    assert robustness.clean.items() <= report.overall.metrics.items()
    assert robustness.clean["balanced_accuracy"].value == 1
    assert [(one.corruption, one.severity) for one in robustness.corruptions] == [
        (name, severity) for name in ("underexposure", "white_balance") for severity in SEVERITIES
    ]
    dark, tinted = robustness.corruptions[2], robustness.corruptions[5]
    assert (robustness.clean_flagged, dark.flagged) == (0, 1)
    # The engine predicts by the brightest channel: darkness keeps it, a tint does not.
    assert dark.change["balanced_accuracy"].value == 0
    assert tinted.metrics["balanced_accuracy"].value < 1
    change = tinted.change["balanced_accuracy"]
    assert change.value == pytest.approx(tinted.metrics["balanced_accuracy"].value - 1)
    assert change.low <= change.value <= change.high < 0.01
    assert seen[-1] == (7 * 12, 7 * 12, "images")
    page = write_report(tmp_path, bundle=Bundle.open(bundle), evaluation=report).read_text("utf-8")
    assert 'id="robustness"' in page
    assert "White balance" in page


class Outliner(FakeRuntime):
    """Engine that finds a lesion in bright images, and none in dark ones."""

    def run(self, images):
        logits = np.where(images.mean(axis=(1, 2, 3)) > 60, 5, -5)
        lesion = np.broadcast_to(logits[:, None, None, None], (len(images), 1, 8, 8))
        return {**super().run(images), "lesion": lesion.astype(np.float32)}


def test_a_lesion_that_is_no_longer_found_counts_as_flagged(tmp_path):
    content = toy_content()
    content["spec"] = replace(
        content["spec"], tasks=(*content["spec"].tasks, Task("lesion", "segment"))
    )
    content["postprocessing"] = {**content["postprocessing"], "lesion": Postprocessing(1, 0.5)}
    content["tolerance"] = {**content["tolerance"], "lesion": 1e-3}
    bundle = write_bundle(tmp_path / "toy.dermedge", **content, quality=QualityLimits(small=10))
    table = read_table(make_data(tmp_path / "data", ROWS))
    with model.Model(bundle, Outliner()) as outliner:
        found = measure_robustness(outliner, table, ["underexposure"], replicates=10)
    assert found.clean_flagged == 0
    assert found.corruptions[2].flagged == 1


def test_a_limit_takes_images_from_the_whole_split(bundle, tmp_path):
    report = evaluate(bundle, make_data(tmp_path / "data", ROWS), replicates=10, limit=4)
    assert [image.image_id for image in report.images] == ["i0", "i4", "i7", "i11"]
    assert report.robustness is None


def test_an_unknown_corruption_lists_the_known_ones(bundle, tmp_path):
    data = make_data(tmp_path / "data", ROWS)
    with pytest.raises(UsageError, match=r"'fog'.*jpeg.*crop_jitter"):
        evaluate(bundle, data, corruptions=["jpeg", "fog"])
    with pytest.raises(UsageError, match="jpeg"):
        evaluate(bundle, data, corruptions=[])
    with pytest.raises(UsageError, match="The limit is 0 images"):
        evaluate(bundle, data, limit=0)
    with pytest.raises(DataError):
        evaluate(bundle, tmp_path / "nothing", corruptions=["all"])
