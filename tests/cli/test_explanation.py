"""Test `dermedge predict --explain`: pictures of class activation maps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dermedge.cli.explanation import Explanation
from dermedge.models import Network, TrainedModel, save_model_folder
from dermedge.models.network import Backbone
from dermedge.models.new_spec import make_spec
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction, ScoredLabel
from dermedge_runtime.errors import UsageError
from dermedge_runtime.model import load
from dermedge_runtime.overlay import draw_overlay
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Label, Preprocess, Task
from support import small
from support.command import TOY, dermedge

CAM = np.float32([[0, 0], [0, 4]])


@pytest.fixture
def bundle() -> Bundle:
    toy = Bundle.open(TOY)
    assert toy.spec.diagnosis is not None
    cam = Task("diagnosis_cam", "cam", toy.spec.diagnosis.labels)
    return replace(toy, spec=replace(toy.spec, tasks=(*toy.spec.tasks, cam)))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Return two grey images of the same name."""
    paths = [tmp_path / folder / "a.png" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(path)
    return paths


def prediction() -> Prediction:
    return Prediction(labels=(ScoredLabel("mel", "Melanoma", 0.9),), cam=CAM)


def test_a_bundle_without_maps_names_the_command_that_adds_them(
    images: list[Path], tmp_path: Path
) -> None:
    ran = dermedge("predict", TOY, images[0], "--explain", tmp_path / "map.png")
    assert ran.code == 2
    assert "dermedge export STUDENT --target cpu --explain" in ran.err
    assert not (tmp_path / "map.png").exists()


def test_the_picture_is_yellow_where_the_map_is_largest(
    bundle: Bundle, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = Explanation(tmp_path / "map.png", exact=False)
    pictures.check(bundle, images[:1])
    pictures.add(str(images[0]), bundle, prediction())
    drawn = np.asarray(Image.open(tmp_path / "map.png")).astype(int)
    size = bundle.spec.preprocess.size
    assert drawn.shape == (size, size, 3)
    assert drawn[-1, -1].tolist() == [177, 166, 78]  # half grey, half yellow
    assert drawn[0, 0].tolist() == [50, 67, 89]  # half grey, half dark blue
    pictures.show(err=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "Melanoma" in told
    assert "does not say that the diagnosis is right" in told


def test_a_folder_has_a_picture_of_each_image(
    bundle: Bundle, images: list[Path], tmp_path: Path
) -> None:
    pictures = Explanation(tmp_path / "maps", exact=False)
    pictures.check(bundle, images)
    for image in images:
        pictures.add(str(image), bundle, prediction())
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a-2.png", "a.png"]


def test_an_exported_model_draws_its_maps_and_its_page_shows_them(tmp_path: Path) -> None:
    student = tmp_path / "student"
    save_untrained(student)
    options = ("--precision", "fp32", "--explain", "-o", tmp_path)
    ran = dermedge("export", student, "--target", "cpu", *options)
    assert ran.code == 0, ran.err
    bundle, picture = tmp_path / "small-cpu.dermedge", tmp_path / "map.png"
    assert dermedge("verify", bundle).code == 0
    photo = tmp_path / "lesion.png"
    Image.fromarray(draw_lesion(3).image).save(photo)
    ran = dermedge("predict", bundle, photo, "--explain", picture, "--json")
    assert ran.code == 0, ran.err
    (answer,) = ran.lines()
    assert "cam" not in answer
    assert f"shows where {photo}" in " ".join(ran.err.split())
    with load(bundle) as model:
        predicted = model.predict(photo)
    assert predicted.cam is not None
    frame = preprocess(photo, Preprocess(64))
    assert np.array_equal(np.asarray(Image.open(picture)), draw_overlay(frame, predicted.cam))
    assert dermedge("inspect", bundle, "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    count = len(Bundle.open(bundle).golden())
    assert page.count('alt="Class activation map of ') == count > 1


def save_untrained(folder: Path) -> None:
    """Save a student with random weights."""
    torch.manual_seed(0)
    tasks = (Task("diagnosis", "classify", (Label("nv", "Naevus"), Label("mel", "Melanoma"))),)
    backbone, spec = Backbone(small.EXPORTED), make_spec("small", tasks, Preprocess(64), {})
    save_model_folder(TrainedModel(Network(backbone, tasks).eval(), spec, backbone), folder)


def test_one_file_for_two_images_and_an_existing_path_are_refused(
    bundle: Bundle, images: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="2 images"):
        Explanation(tmp_path / "map.png", exact=False).check(bundle, images)
    with pytest.raises(UsageError, match=r"ends with \.png"):
        Explanation(tmp_path / "map.jpg", exact=False).check(bundle, images[:1])
    with pytest.raises(UsageError, match="exists already"):
        Explanation(images[0], exact=False).check(bundle, images[:1])
