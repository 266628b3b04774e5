"""The numbered examples run as they are written."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion

ROOT = Path(__file__).parents[2]


def run(name, *arguments):
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_predict_answers_every_image_and_survives_a_bad_one(tmp_path):
    good, bad = tmp_path / "lesion.png", tmp_path / "broken.jpg"
    Image.fromarray(draw_lesion(3).image).save(good)
    bad.write_bytes(b"\xff\xd8\xff not a photograph")
    done = run("01_predict.py", ROOT / "tests" / "data" / "toy.dermedge", good, bad)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert done.stdout.count(str(good)) == 2
    assert "broken.jpg" in done.stdout


@pytest.mark.slow
def test_distil_then_export(tmp_path):
    first = run("02_distill.py", tmp_path, 72, 1)
    assert first.returncode == 0, first.stderr
    second = run("03_export.py", tmp_path)
    assert second.returncode == 0, second.stderr
    assert "parity" in second.stdout
    assert "balanced_accuracy" in second.stdout
    assert (tmp_path / "mobilenetv2_035-student-cpu.dermedge" / "manifest.json").is_file()
