"""Test the report of `bench`."""

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from dermedge_runtime.bench import bench, percentiles, photograph
from dermedge_runtime.errors import BundleError, ImageError, UsageError
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.spec import to_json
from support import toy_onnx


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return toy_onnx.write(tmp_path_factory.mktemp("bundle") / "toy.dermedge", toy_onnx.graph())


def test_percentiles():
    found = percentiles([float(value) for value in range(101)])
    assert (found.p50, found.p90, found.p99, found.mean, found.count) == (
        50.0,
        90.0,
        99.0,
        50.0,
        101,
    )


def test_a_report_measures_every_stage_and_is_json(bundle, tmp_path):
    path = tmp_path / "lesion.png"
    path.write_bytes(toy_onnx.draw_image(1)[0])
    calls = []
    report = bench(
        bundle.path,
        image=path,
        threads=1,
        runs=5,
        warmup=1,
        sustained=0.05,
        progress=lambda *call: calls.append(call),
    )
    assert report.bundle == bundle.id
    assert (report.engine, report.threads, report.image) == (
        "onnxruntime",
        1,
        "lesion.png, 96 x 96 PNG",
    )
    for stage in (report.end_to_end, report.preprocess, report.engine_only):
        assert 0 < stage.p50 <= stage.p90 <= stage.p99
        assert stage.count == 5
    assert report.cold_start_ms > report.end_to_end.p50
    assert len(report.sustained) == 10
    assert all(value > 0 for value in report.sustained)
    assert [call for call in calls if call[2] == "runs"][-1] == (6, 6, "runs")
    assert calls[-1] == (1000, 1000, "sustained")
    assert json.loads(json.dumps(to_json(report)))["end_to_end"]["count"] == 5


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system tells no resident memory"
)
def test_by_default_a_twelve_megapixel_photograph_is_predicted(bundle):
    report = bench(bundle, runs=1, warmup=0)
    assert report.image == "golden lesion-3, 4032 x 3024 JPEG"
    assert report.sustained == ()
    # A fresh process holds at least Python with numpy and an engine, and no decoded
    # photograph of 36 MB on top.
    assert 20e6 < report.resident_bytes < 300e6


def test_a_photograph_is_a_jpeg_of_the_asked_size_and_always_the_same():
    png, _ = toy_onnx.draw_image(2)
    data = photograph(png, (640, 480))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (640, 480), "RGB")
        # Still the lesion: darker in the middle than at the edges' mean.
        assert image.getpixel((320, 240)) != image.getpixel((5, 240))
    assert photograph(png, (640, 480)) == data


def test_the_device_is_named():
    found = describe_device()
    assert found["cpu"]
    assert found["cores"] == str(os.cpu_count())
    if found["machine"] == "x86_64" and found["system"].startswith("Linux"):
        words = Path("/proc/cpuinfo").read_text().split()
        assert set(found["flags"].split()) <= set(words)
        assert ("avx2" in words) == ("avx2" in found["flags"].split())


@pytest.mark.parametrize("options", [{"runs": 0}, {"warmup": -1}, {"sustained": -0.1}])
def test_invalid_numbers_are_refused(bundle, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        bench(bundle, **options)


def test_bad_files_are_named(bundle, tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        bench(bundle, image=path)
    with pytest.raises((UsageError, BundleError)):
        bench(tmp_path / "missing.dermedge")
