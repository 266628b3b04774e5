"""Run Core ML bundles on macOS; iOS apps give the same .mlpackage to Core ML itself."""

import contextlib
import io
import logging
import os
import platform
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.decode import Outputs
from dermedge_runtime.errors import ElsewhereError, EngineError, MissingExtraError, first_line
from dermedge_runtime.files import write_files
from dermedge_runtime.fork import claim_engine, leave_to_parent
from dermedge_runtime.image import Pixels
from dermedge_runtime.signature import INPUT, Port, check_signature
from dermedge_runtime.spec import Spec

OLDEST = "13"  # the oldest macOS that runs dermedge's exports


class _MlModel(Protocol):
    """The part of `coremltools.models.MLModel` that a runtime calls."""

    def get_spec(self) -> Any:
        """Return the model's protobuf."""
        ...

    def predict(self, data: dict[str, Image.Image]) -> dict[str, Any]:
        """Return the outputs for one input."""
        ...


class CoreMlRuntime:
    """Core ML model loaded from a bundle's ML program.

    The one input is `image`, RGB of S x S pixels. The outputs are float32, named after
    their tasks. Core ML is called once per image, and chooses among CPU, GPU and Neural
    Engine.

    Args:
        model: Loaded `coremltools.models.MLModel`.
        spec: Spec of the model.
        version: Version of the system.
        folder: Folder of the extracted package. It is deleted when the runtime is
            closed or freed, but not by a forked process.

    Example:
        >>> CoreMlRuntime.open(Bundle.open("toy.dermedge"))  # on Linux or Windows
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.ElsewhereError: Core ML runs on macOS and iOS only. ...
    """

    name = "coreml"

    def __init__(
        self,
        model: _MlModel,
        spec: Spec,
        version: str,
        folder: Path | None = None,
    ) -> None:
        self.version = version
        self._names = [task.name for task in spec.tasks]
        self._remove = weakref.finalize(self, _remove_folder, folder, os.getpid())
        self._lock = threading.Lock()
        _check_description(model.get_spec().description, spec)
        self._model: _MlModel | None = model
        leave_to_parent(self, "_model")

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> "CoreMlRuntime":
        """Compile and load a bundle's .mlpackage from a copy, which `close` deletes.

        Args:
            bundle: The opened bundle.
            threads: Ignored; Core ML chooses.

        Raises:
            ElsewhereError: This is not a Mac.
            MissingExtraError: coremltools is not installed.
            EngineError: Core ML refuses the model, or inputs and outputs do not fit the
                spec.
            BundleError: A file changed after the bundle was opened.
        """
        if platform.system() != "Darwin":
            raise ElsewhereError(
                "Core ML runs on macOS and iOS only. Copy the bundle to a Mac with macOS >= "
                f"{bundle.artifact.details.get('macos', OLDEST)} and type: "
                f"pip install 'dermedge[coreml]' && dermedge verify {bundle.path.name}"
            )
        try:
            with _silence():
                import coremltools
        except ImportError as error:
            raise MissingExtraError("coremltools", "coreml", "A Core ML bundle") from error
        claim_engine("coreml")
        version = f"macOS {platform.mac_ver()[0]}"
        folder = Path(tempfile.mkdtemp(prefix="dermedge-"))
        try:
            package = _extract(bundle, folder)
            model = _load(coremltools, package, bundle, version)
            return cls(model, bundle.spec, version, folder)
        except BaseException:
            _remove_folder(folder, os.getpid())
            raise

    def run(self, images: Pixels) -> Outputs:
        """Return the outputs [N, ...] by task for images [N, S, S, 3].

        Raises:
            EngineError: Core ML fails, or the model is closed.
        """
        # coremltools does not promise that two threads may call one model at once.
        with self._lock:
            if self._model is None:
                raise EngineError("The Core ML model is closed. Load the bundle again.")
            try:
                rows = [self._model.predict({INPUT: Image.fromarray(image)}) for image in images]
                return {
                    name: np.concatenate([np.asarray(row[name], np.float32) for row in rows])
                    for name in self._names
                }
            except Exception as error:
                raise EngineError(
                    f"Core ML failed on {images.dtype} {list(images.shape)} "
                    f"({first_line(error)}). Run `dermedge verify` on the bundle."
                ) from error

    def close(self) -> None:
        """Free the model and delete its copy; a call that still runs ends first."""
        with self._lock:
            self._model = None
            self._remove()


def _remove_folder(folder: Path | None, owner: int) -> None:
    """Delete a folder, if this process is `owner` and not a fork of it."""
    if folder is not None and os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(bundle: Bundle, folder: Path) -> Path:
    """Copy the bundle's artifact below `folder`, checked file by file; return its path.

    Core ML reads no zip.
    """
    write_files(folder, {name: bundle.read(name) for name in artifact_files(bundle)})
    return folder / bundle.artifact.path


def _load(coremltools: ModuleType, package: Path, bundle: Bundle, version: str) -> _MlModel:
    try:
        with _silence():
            model: _MlModel = coremltools.models.MLModel(str(package))
            return model
    except Exception as error:
        raise EngineError(
            f"Core ML of {version} refuses {bundle.artifact.path} ({first_line(error)}): "
            f"it needs {', '.join(bundle.artifact.requires) or 'another version'}. "
            "Upgrade it, or export the model again."
        ) from error


def _check_description(description: Any, spec: Spec) -> None:
    """Check inputs and outputs against the spec; an RGB image counts as uint8 NHWC."""
    inputs: dict[str, Port] = {}
    for feature in description.input:
        image = feature.type.imageType
        rgb = feature.type.WhichOneof("Type") == "imageType" and image.colorSpace == image.RGB
        inputs[feature.name] = (
            "uint8" if rgb else "no RGB image",
            (1, image.height, image.width, 3),
        )
    outputs = {feature.name: _describe_output(feature) for feature in description.output}
    check_signature(inputs, outputs, spec)


def _describe_output(feature: Any) -> Port:
    array = feature.type.multiArrayType
    return array.ArrayDataType.Name(array.dataType).lower(), tuple(array.shape)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence coremltools' warnings about packages that are not used here."""
    # Versions of coremltools warn at import in three ways: by logging, by `warnings`
    # and on sys.stderr. The block silences all three, for the whole process.
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
