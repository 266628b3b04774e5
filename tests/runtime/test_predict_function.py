"""Test the function `predict`: the selection of images, their names, and errors in place."""

import threading
from dataclasses import replace

import pytest
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import BundleError, ImageError, UsageError
from dermedge_runtime.find_images import Skipped
from dermedge_runtime.model import RUNTIMES, load
from dermedge_runtime.predict import list_sources, predict
from support.command import TOY


@pytest.fixture
def photos(tmp_path):
    """Return a folder with two good images, a broken one, a text, and one image below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.jpg", "c.PNG", "more/d.png")):
        Image.fromarray(draw_lesion(seed).image).save(folder / name)
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff not an image")
    (folder / "notes.txt").write_text("not an image")
    return folder


def timeless(prediction):
    return replace(prediction, timing=None)


def test_files_and_folders_are_predicted_in_order_and_bad_images_are_errors(photos):
    answers = list(predict(TOY, [photos / "c.PNG", photos]))
    names = ["c.PNG", "a.jpg", "b.jpg", "c.PNG", "more/d.png"]
    assert [name for name, _ in answers] == [str(photos / name) for name in names]
    assert [type(answer) for _, answer in answers] == [
        Prediction,
        Prediction,
        ImageError,
        Prediction,
        Prediction,
    ]
    with load(TOY) as model:
        for name, answer in (answers[0], *answers[3:]):
            assert timeless(answer) == timeless(model.predict(name))


def test_files_that_are_no_images_are_logged_or_given_to_the_caller(photos, caplog):
    skipped = Skipped()
    list(predict(TOY, photos, skipped=skipped))
    assert skipped.examples == {"not an image": [str(photos / "notes.txt")]}
    assert caplog.messages == []
    list(predict(TOY, photos))
    assert caplog.messages == [f"Not looked at: 1 not an image ({photos / 'notes.txt'})."]


def test_one_source_needs_no_list_and_bytes_have_no_name(photos):
    data = (photos / "a.jpg").read_bytes()
    given = [str(photos / "a.jpg"), photos / "a.jpg", data, Image.open(photos / "a.jpg")]
    answers = [list(predict(TOY, source, exact=True)) for source in given]
    assert [len(answer) for answer in answers] == [1, 1, 1, 1]
    assert [name for ((name, _),) in answers] == [str(photos / "a.jpg")] * 2 + ["-"] * 2
    assert len({timeless(prediction) for ((_, prediction),) in answers}) == 1


def test_the_options_reach_the_engine_and_the_decoder(tmp_path):
    photo = tmp_path / "large.jpg"
    Image.fromarray(draw_lesion(3, height=768, width=1024).image).save(photo, quality=85)
    ((_, exact),) = predict(TOY, photo, exact=True, threads=1)
    with load(TOY, threads=1) as model:
        assert timeless(exact) == timeless(model.predict(photo, exact=True))
        assert timeless(exact) != timeless(model.predict(photo))
    with pytest.raises(UsageError, match="Unknown engine 'onnxruntme'"):
        list(predict(TOY, photo, engine="onnxruntme"))
    with pytest.raises(UsageError, match="threads is 0"):
        list(predict(TOY, photo, threads=0))


def test_a_folder_without_images_is_an_error_before_the_engine_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(RUNTIMES, "onnx", "no_such_module:Runtime")
    with pytest.raises(UsageError, match="holds no image"):
        list(predict(TOY, tmp_path))
    with pytest.raises(UsageError, match="holds no image"):
        list(list_sources([b"", tmp_path], Skipped()))


def test_a_damaged_bundle_is_an_error(tmp_path):
    (tmp_path / "x.dermedge").write_bytes(TOY.read_bytes()[:-30])
    with pytest.raises(BundleError, match="damaged zip"):
        list(predict(tmp_path / "x.dermedge", b""))


def test_every_image_is_reported(photos):
    calls = []
    list(predict(TOY, photos, progress=lambda *call: calls.append(call)))
    assert calls == [(done, 4, "images") for done in (1, 2, 3, 4)]


def test_a_reader_that_stops_ends_the_threads(photos):
    answers = predict(TOY, photos)
    next(answers)
    answers.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("dermedge-prefetch") for name in names)
