"""Test the Core ML runtime with a stand-in for coremltools; Core ML needs a Mac."""

import multiprocessing
import platform
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import TOY_SPEC, FakeRuntime, toy_content
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.coreml import CoreMlRuntime
from dermedge_runtime.errors import BundleError, ElsewhereError, EngineError, MissingExtraError
from dermedge_runtime.model import load
from dermedge_runtime.spec import Artifact
from dermedge_runtime.verify import verify

SIZE = TOY_SPEC.preprocess.size
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
PACKAGE = {
    "model.mlpackage/Manifest.json": b"{}",
    "model.mlpackage/Data/com.apple.CoreML/model.mlmodel": b"a model",
    # Weights may begin with any bytes, those of a pickle too.
    "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin": b"\x80\x04weights",
}


def description(
    size: int = SIZE,
    *,
    colour: str = "RGB",
    kind: str = "FLOAT32",
    outputs: Mapping[str, list[int]] | None = None,
) -> Any:
    """Return a model's description of inputs and outputs in Core ML's own format."""
    from dermedge_export.toolchain import silence

    with silence():
        from coremltools.proto import FeatureTypes_pb2, Model_pb2

    found = Model_pb2.ModelDescription()
    image = found.input.add(name="image").type.imageType
    image.width = image.height = size
    image.colorSpace = FeatureTypes_pb2.ImageFeatureType.ColorSpace.Value(colour)
    for name, shape in (outputs or {"diagnosis": [1, 3], "malignancy": [1, 1]}).items():
        array = found.output.add(name=name).type.multiArrayType
        array.shape.extend(shape)
        array.dataType = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Value(kind)
    return found


class FakeModel:
    """Model that computes as the toy engine, in float64 and in another order."""

    def __init__(self, described: Any = None) -> None:
        self.described = described if described is not None else description()
        self.calls: list[Image.Image] = []

    def get_spec(self) -> Any:
        return SimpleNamespace(description=self.described)

    def predict(self, data: Mapping[str, Any]) -> dict[str, Any]:
        assert set(data) == {"image"}
        image = data["image"]
        assert isinstance(image, Image.Image)
        assert image.mode == "RGB"
        self.calls.append(image)
        outputs = FakeRuntime().run(np.asarray(image)[None])
        return {name: outputs[name].astype(np.float64) for name in ("malignancy", "diagnosis")}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    content = toy_content()
    del content["files"]["model.fake"]
    content["files"].update(PACKAGE)
    details = {"macos": "14"}
    content["artifact"] = Artifact(
        "ios", "coreml", "model.mlpackage", "fp16", requires=("iOS>=17",), details=details
    )
    return write_bundle(tmp_path / "toy.dermedge", **content)


class Mac:
    """Mac with coremltools; `packages` lists what it has loaded."""

    def __init__(self) -> None:
        self.packages: list[Path] = []
        self.error: Exception | None = None
        self.described = description()

    def load(self, path: str) -> FakeModel:
        folder = Path(path)
        self.packages.append(folder)
        found = {
            p.relative_to(folder.parent).as_posix(): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file()
        }
        assert found == PACKAGE
        if self.error is not None:
            raise self.error
        return FakeModel(self.described)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Mac:
    machine = Mac()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setitem(
        sys.modules, "coremltools", SimpleNamespace(models=SimpleNamespace(MLModel=machine.load))
    )
    return machine


def test_core_ml_is_called_once_per_image_in_order() -> None:
    model = FakeModel()
    runtime = CoreMlRuntime(model, TOY_SPEC, "macOS 15.1")
    outputs = runtime.run(PIXELS)
    assert list(outputs) == ["diagnosis", "malignancy"]
    for name, expected in FakeRuntime().run(PIXELS).items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_array_equal(outputs[name], expected)
    assert [np.asarray(image).tobytes() for image in model.calls] == [
        image.tobytes() for image in PIXELS
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="here Core ML runs")
def test_off_a_mac_the_error_gives_the_command_and_the_machine(bundle: Bundle) -> None:
    with pytest.raises(ElsewhereError) as caught:
        load(bundle)
    assert str(caught.value) == (
        "Core ML runs on macOS and iOS only. Copy the bundle to a Mac with macOS >= 14 and type: "
        "pip install 'dermedge[coreml]' && dermedge verify toy.dermedge"
    )
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("zipped", [False, True])
def test_on_a_mac_a_bundle_verifies_and_leaves_nothing_behind(
    bundle: Bundle, mac: Mac, tmp_path: Path, zipped: bool
) -> None:
    report = verify(bundle.save(tmp_path / "copy.dermedge", zipped=zipped))
    assert (report.status, report.engine) == ("passed", "coreml macOS 15.1")
    assert len(mac.packages) == 1
    assert not mac.packages[0].parent.exists()


def test_a_model_that_core_ml_refuses_is_one_error_and_leaves_nothing_behind(
    bundle: Bundle, mac: Mac
) -> None:
    mac.error = RuntimeError("Error compiling model\nwith a long trace")
    with pytest.raises(
        EngineError,
        match=r"macOS 15\.1 refuses model\.mlpackage \(Error compiling model\).*iOS>=17",
    ):
        load(bundle)
    assert not mac.packages[0].parent.exists()


def test_a_file_that_changed_after_opening_is_refused(bundle: Bundle, mac: Mac) -> None:
    (bundle.path / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").write_bytes(
        b"others"
    )
    with pytest.raises(BundleError, match=r"weight\.bin.* was changed"):
        load(bundle)
    assert mac.packages == []


def test_a_mac_without_coremltools_raises_the_name_of_the_extra(
    bundle: Bundle, mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"dermedge\[coreml\]"):
        load(bundle)


MISFITS = {
    "size": ({"size": 64}, r"uint8 \[1?N?, ?64, 64, 3\]|64, 64, 3"),
    "colour": ({"colour": "BGR"}, "no RGB image"),
    "output": (
        {"outputs": {"diagnosis": [1, 3], "var_12": [1, 1]}},
        r"outputs are \['diagnosis', 'var_12'\]",
    ),
    "labels": (
        {"outputs": {"diagnosis": [1, 2], "malignancy": [1, 1]}},
        r"'diagnosis' is float32 \[1, 2\]",
    ),
    "type": ({"kind": "FLOAT16"}, "float16"),
}


@pytest.mark.parametrize(("options", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_model_that_does_not_fit_its_spec_is_refused(
    bundle: Bundle, mac: Mac, options: dict[str, Any], message: str
) -> None:
    mac.described = description(**options)
    with pytest.raises(EngineError, match=message):
        load(bundle)
    assert not mac.packages[0].parent.exists()


def test_a_failure_of_core_ml_is_one_error() -> None:
    runtime = CoreMlRuntime(FakeModel(), TOY_SPEC, "macOS 15.1")
    with pytest.raises(EngineError, match=r"failed on uint8 \[1, 32, 32\].*dermedge verify"):
        runtime.run(PIXELS[:1, ..., 0])


def test_a_closed_model_raises_an_engine_error(bundle: Bundle, mac: Mac) -> None:
    runtime = CoreMlRuntime.open(bundle)
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime.run(PIXELS)


def test_a_forked_process_leaves_the_copy_to_its_parent(bundle: Bundle, mac: Mac) -> None:
    runtime = CoreMlRuntime.open(bundle)
    child = multiprocessing.get_context("fork").Process(target=runtime.close)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert mac.packages[0].parent.exists()
    runtime.close()
    assert not mac.packages[0].parent.exists()


def test_two_threads_never_call_one_model_at_once() -> None:
    model, inside, most = FakeModel(), 0, 0
    answer, barrier = model.predict, threading.Barrier(4)

    def predict(data: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        found = answer(data)
        inside -= 1
        return found

    model.predict = predict  # type: ignore[method-assign]
    runtime = CoreMlRuntime(model, TOY_SPEC, "macOS 15.1")

    def ask() -> None:
        barrier.wait()
        runtime.run(PIXELS)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(model.calls) == 20
