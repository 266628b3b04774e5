"""Core ML, on macOS. An app on iOS runs the same .mlpackage by Core ML itself."""

import contextlib
import io
import logging
import platform
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import ElsewhereError, EngineError, MissingExtraError, first_line
from dermedge_runtime.signature import AGAIN, INPUT, Port, check_signature
from dermedge_runtime.spec import Spec

OLDEST = "13"  # macOS, of those that run what dermedge exports


class CoreMlRuntime:
    """An ML program whose one input is `image`, RGB of S x S pixels, and whose outputs are float32, named after their
    tasks. It is called once per image; Core ML chooses among CPU, GPU and Neural Engine.
    """

    name = "coreml"

    def __init__(
        self,
        model: Any,
        spec: Spec,
        version: str,
        folder: "tempfile.TemporaryDirectory[str] | None" = None,
    ) -> None:
        """Takes a `coremltools.models.MLModel`, and the folder that is deleted when the runtime is closed."""
        self.version = version
        self._names = [task.name for task in spec.tasks]
        self._folder = folder
        self._lock = threading.Lock()
        _check(model.get_spec().description, spec)
        self._model: Any = model

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int | None = None) -> "CoreMlRuntime":
        """Compiles and loads a bundle's .mlpackage, from a copy that is gone when the runtime is closed.

        Args:
            bundle: The bundle.
            threads: Nothing to Core ML, which decides itself.

        Raises:
            ElsewhereError: This is no Mac.
            MissingExtraError: coremltools is not installed.
            EngineError: Core ML refuses the model, or inputs and outputs do not fit the spec.
            BundleError: A file was changed since the bundle was opened.
        """
        if platform.system() != "Darwin":
            raise ElsewhereError(
                "Core ML runs on macOS and iOS only: copy the bundle to a Mac with macOS >= "
                f"{bundle.artifact.details.get('macos', OLDEST)} and type: pip install 'dermedge[coreml]' && "
                f"dermedge verify {bundle.path.name}"
            )
        try:
            with _silence():
                import coremltools
        except ImportError as error:
            raise MissingExtraError("coremltools", "coreml", "A Core ML bundle") from error
        version = f"macOS {platform.mac_ver()[0]}"
        folder = tempfile.TemporaryDirectory(prefix="dermedge-", ignore_cleanup_errors=True)
        try:
            package = _extract(bundle, Path(folder.name))
            return cls(_loaded(coremltools, package, bundle, version), bundle.spec, version, folder)
        except BaseException:
            folder.cleanup()
            raise

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs [N, ...] by task. Raises EngineError where the engine fails or is closed."""
        with (
            self._lock
        ):  # coremltools does not promise that one model may be asked by two threads at once
            if self._model is None:
                raise EngineError("The Core ML model is closed: load the bundle again.")
            try:
                rows = [self._model.predict({INPUT: Image.fromarray(image)}) for image in images]
                return {
                    name: np.concatenate([np.asarray(row[name], np.float32) for row in rows])
                    for name in self._names
                }
            except Exception as error:
                raise EngineError(
                    f"Core ML failed on {images.dtype} {list(images.shape)} ({first_line(error)}): "
                    "run `dermedge verify` on the bundle."
                ) from error

    def close(self) -> None:
        """Frees the model and deletes its copy; a call that still runs in another thread ends first."""
        with self._lock:
            self._model = None
            if self._folder is not None:
                self._folder.cleanup()


def _extract(bundle: Bundle, folder: Path) -> Path:
    """A copy of the bundle's artifact below `folder`, checked while it is written; Core ML reads no zip."""
    for name in artifact_files(bundle):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bundle.read(name))
    return folder / bundle.artifact.path


def _loaded(coremltools: Any, package: Path, bundle: Bundle, version: str) -> Any:
    try:
        with _silence():
            return coremltools.models.MLModel(str(package))
    except Exception as error:
        raise EngineError(
            f"Core ML of {version} refuses {bundle.artifact.path} ({first_line(error)}): "
            f"it needs {', '.join(bundle.artifact.requires) or 'another version'}; upgrade it, or {AGAIN}"
        ) from error


def _check(description: Any, spec: Spec) -> None:
    """Raises EngineError where inputs or outputs do not fit the spec. An RGB image is what others call uint8 NHWC."""
    inputs = {}
    for feature in description.input:
        image = feature.type.imageType
        rgb = feature.type.WhichOneof("Type") == "imageType" and image.colorSpace == image.RGB
        inputs[feature.name] = (
            "uint8" if rgb else "no RGB image",
            (1, image.height, image.width, 3),
        )
    check_signature(inputs, {feature.name: _port(feature) for feature in description.output}, spec)


def _port(feature: Any) -> Port:
    array = feature.type.multiArrayType
    return array.ArrayDataType.Name(array.dataType).lower(), tuple(array.shape)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps coremltools from warning about versions of packages that are not used here."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
