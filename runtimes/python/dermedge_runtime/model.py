"""Run a bundle on images: `load` it, and call `predict` of the returned `Model`."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Literal, Protocol, overload

import numpy as np

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Outputs, Prediction, Provenance, Timing, decode
from dermedge_runtime.errors import EngineError, ImageError, UsageError
from dermedge_runtime.fork import leave_to_parent
from dermedge_runtime.hardware import default_threads, usable_cpus
from dermedge_runtime.image import Pixels, Source
from dermedge_runtime.prefetch import prefetch_batches
from dermedge_runtime.preprocess import Prepared, prepare
from dermedge_runtime.quality import describe_quality, measure_quality
from dermedge_runtime.registry import lookup
from dermedge_runtime.requirements import check_engine

OnError = Literal["raise", "return"]
Item = tuple[Prepared, float]
"""A preprocessed image, and the milliseconds that preprocessing took."""

# By artifact format (the default), and by the engine's own name.
RUNTIMES = {
    "onnx": "dermedge_runtime.onnxruntime:OnnxRuntime",
    "onnxruntime": "dermedge_runtime.onnxruntime:OnnxRuntime",
    "openvino": "dermedge_runtime.openvino:OpenVinoRuntime",
    "litert": "dermedge_runtime.litert:LiteRtRuntime",
    "tensorrt": "dermedge_runtime.tensorrt.runtime:TensorRtRuntime",
    "coreml": "dermedge_runtime.coreml:CoreMlRuntime",
}
GROUP = "dermedge.runtimes"
WORKERS = 2  # Threads that decode; one engine is not faster than two of them.


class Runtime(Protocol):
    """Interface of a runtime: an object that runs a bundle's artifact in an engine.

    A new engine needs a class with these members and with a classmethod
    `open(bundle, *, threads)` (`RuntimeClass`). Several threads may call `run` at once;
    a runtime whose engine cannot do that takes a lock.

    Example:
        >>> class Constant:
        ...     name, version = "constant", "1.0"
        ...     def run(self, images):
        ...         return {"malignancy": np.zeros((len(images), 1), np.float32)}
        ...     def close(self):
        ...         pass
        >>> runtime: Runtime = Constant()
    """

    @property
    def name(self) -> str:
        """Name of the engine."""
        ...

    @property
    def version(self) -> str:
        """Version of the engine."""
        ...

    def run(self, images: Pixels, /) -> Outputs:
        """Return the outputs [N, ...] by task for RGB images [N, S, S, 3].

        Raises:
            EngineError: The engine fails, or the runtime is closed.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory; closing again does nothing."""
        ...


class RuntimeClass(Protocol):
    """Class of runtimes, as it is registered under `dermedge.runtimes`.

    Example:
        >>> engine: RuntimeClass = lookup("engine", "onnxruntime", RUNTIMES, GROUP)
        >>> runtime = engine.open(Bundle.open("toy.dermedge"), threads=1)
        >>> runtime.name
        'onnxruntime'
    """

    def open(self, bundle: Bundle, /, *, threads: int | None) -> Runtime:
        """Load a bundle's artifact into the engine."""
        ...


class Model:
    """An opened bundle with a runtime; `predict` is its main method.

    Threads may share a model; they get the same numbers as one thread. Close the model,
    or use it as a context manager, to free the engine's memory.

    A forked process never uses or frees the engine of its parent. It opens its own at
    the first prediction.

    Args:
        bundle: The opened bundle.
        runtime: Runtime that has loaded the bundle's artifact; the model closes it.
        reopen: Function that returns such a runtime for a forked process. Without it, a
            forked process gets an EngineError.

    Example:
        >>> with load("toy.dermedge") as model:
        ...     model.predict("lesion.png").labels[0].name
        'Basal cell carcinoma'
    """

    def __init__(
        self, bundle: Bundle, runtime: Runtime, *, reopen: Callable[[], Runtime] | None = None
    ) -> None:
        self.bundle = bundle
        self._runtime: Runtime | None = runtime
        self._reopen = reopen
        leave_to_parent(self, "_runtime")
        self.provenance = Provenance(
            bundle=bundle.id,
            name=bundle.spec.name,
            version=bundle.spec.version,
            target=bundle.artifact.target,
            precision=bundle.artifact.precision,
            engine=f"{runtime.name} {runtime.version}",
        )
        self._closed = False

    @property
    def runtime(self) -> Runtime:
        """Runtime of this process.

        Raises:
            EngineError: This process was forked, and the engine cannot start in it.
            UsageError: This process was forked, and the model is closed.
        """
        if self._runtime is None:
            self._check_open()
            if self._reopen is None:
                raise EngineError(
                    f"The model {self.bundle.spec.name!r} belongs to the process that forked this "
                    "one. Load its bundle in the worker."
                )
            self._runtime = self._reopen()
        return self._runtime

    def predict(self, image: Source, *, exact: bool = False) -> Prediction:
        """Predict one image.

        Args:
            image: Encoded bytes, a path, a PIL image, or RGB uint8 [H, W, 3].
            exact: Decode large JPEGs at full scale: slower, and bit for bit what other
                platforms compute.

        Raises:
            ImageError: The source is not a single readable image.
            EngineError: The engine fails, or gives NaN or infinity.
            UsageError: The model is closed.
        """
        self._check_open()
        return self._predict([self._prepare(image, exact)])[0]

    def predict_batch(
        self, images: Iterable[Source], *, batch_size: int = 8, exact: bool = False
    ) -> list[Prediction]:
        """Predict images in batches; return the predictions in order.

        Args:
            images: The images.
            batch_size: Number of images per engine call.
            exact: As in `predict`.

        Raises:
            ImageError: An image is not readable; no prediction is returned.
            EngineError: As in `predict`.
            UsageError: As in `predict`.

        Example:
            >>> with load("toy.dermedge") as model:
            ...     predictions = model.predict_batch(["lesion.png", "lesion.png"])
            >>> len(predictions)
            2
        """
        return list(self.stream(images, batch_size=batch_size, ahead=2 * batch_size, exact=exact))

    @overload
    def stream(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 1,
        ahead: int = 4,
        workers: int | None = None,
        on_error: Literal["raise"] = "raise",
        exact: bool = False,
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 1,
        ahead: int = 4,
        workers: int | None = None,
        on_error: Literal["return"],
        exact: bool = False,
    ) -> Iterator[Prediction | ImageError]: ...

    def stream(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 1,
        ahead: int = 4,
        workers: int | None = None,
        on_error: OnError = "raise",
        exact: bool = False,
    ) -> Iterator[Prediction | ImageError]:
        """Predict images as they come, in order and in bounded memory.

        Threads decode the next images while the engine runs.

        Args:
            images: Any iterable, also an endless generator. It is read only as far as
                needed.
            batch_size: Number of images per engine call.
            ahead: Largest number of images that are read but not yet predicted;
                `batch_size` or more.
            workers: Number of threads that decode; by default two, or one where this
                process may use one CPU.
            on_error: `raise` an ImageError at the place of a bad image, or `return` it
                instead of a prediction and continue.
            exact: As in `predict`.

        Raises:
            ImageError: An image is bad and `on_error` is `raise`.
            EngineError: The engine fails.
            UsageError: The model is closed, or an argument is not valid.

        Example:
            >>> with load("toy.dermedge") as model:
            ...     for answer in model.stream(["lesion.png", b""], on_error="return"):
            ...         print(type(answer).__name__)
            Prediction
            ImageError
        """
        if on_error not in ("raise", "return"):
            raise UsageError(f"on_error is {on_error!r}. Use 'raise' or 'return'.")
        if workers is None:
            workers = min(WORKERS, usable_cpus())
        if batch_size < 1 or workers < 1 or ahead < batch_size:
            raise UsageError(
                f"batch_size {batch_size}, ahead {ahead}, workers {workers}. "
                "Use 1 or more, and ahead >= batch_size."
            )
        self._check_open()
        return self._stream(images, batch_size, ahead, workers, on_error, exact)

    def run(self, images: Pixels) -> Outputs:
        """Return the engine's raw outputs by task for preprocessed images.

        Args:
            images: uint8 [N, S, S, 3].

        Returns:
            float32 [N, ...] by task.

        Raises:
            EngineError: The engine fails.
            UsageError: The images have another type or shape, or the model is closed.
        """
        self._check_open()
        size = self.bundle.spec.preprocess.size
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != (size, size, 3)
            or not len(images)
        ):
            raise UsageError(
                f"The engine takes uint8 [N, {size}, {size}, 3], "
                f"not {images.dtype} {list(images.shape)}. Preprocess the image first."
            )
        return self.runtime.run(images)

    def outputs(self, image: Source, *, exact: bool = False) -> Outputs:
        """Return the raw outputs by task for one image, without the batch dimension.

        Args:
            image: As in `predict`.
            exact: As in `predict`.

        Raises:
            ImageError: As in `predict`.
            EngineError: The engine fails.
            UsageError: The model is closed.
        """
        self._check_open()
        batch = self.run(prepare(image, self.bundle.spec.preprocess, exact=exact).pixels[None])
        return {name: values[0] for name, values in batch.items()}

    def close(self) -> None:
        """Free the engine's memory; closing again does nothing."""
        if not self._closed:
            self._closed = True
            if self._runtime is not None:  # None: it belongs to the parent process.
                self._runtime.close()

    def __enter__(self) -> "Model":
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(
                f"The model {self.bundle.spec.name!r} is closed. Load its bundle again."
            )

    def _prepare(self, image: Source, exact: bool) -> Item:
        start = perf_counter()
        bundle = self.bundle
        prepared = prepare(image, bundle.spec.preprocess, exact=exact)
        if bundle.quality is not None:
            found = describe_quality(measure_quality(prepared.pixels), bundle.quality)
            prepared = replace(prepared, quality=prepared.quality + found)
        return prepared, (perf_counter() - start) * 1000

    def _predict(self, items: list[Item]) -> list[Prediction]:
        self._check_open()
        # One image needs no copy: a view with a batch dimension is enough.
        tensors = [prepared.pixels for prepared, _ in items]
        batch = tensors[0][None] if len(items) == 1 else np.stack(tensors)
        start = perf_counter()
        outputs = self.runtime.run(batch)
        engine_ms = (perf_counter() - start) * 1000 / len(items)
        bundle = self.bundle
        return [
            decode(
                {name: values[index] for name, values in outputs.items()},
                bundle.spec,
                bundle.postprocessing,
                timing=Timing(preprocess_ms, engine_ms),
                provenance=self.provenance,
                quality=prepared.quality,
                limits=bundle.quality,
            )
            for index, (prepared, preprocess_ms) in enumerate(items)
        ]

    def _stream(
        self,
        images: Iterable[Source],
        batch_size: int,
        ahead: int,
        workers: int,
        on_error: OnError,
        exact: bool,
    ) -> Iterator[Prediction | ImageError]:
        def prepare(image: Source) -> Item | ImageError:
            try:
                return self._prepare(image, exact)
            except ImageError as error:
                return error

        batches = prefetch_batches(
            prepare, images, batch_size=batch_size, workers=workers, ahead=ahead
        )
        with closing(batches):
            for batch in batches:
                # Good images before a bad one are predicted first, so that an error
                # that is raised loses none of them.
                good = [item for item in batch if not isinstance(item, ImageError)]
                predictions = iter(self._predict(good) if good else ())
                for item in batch:
                    if not isinstance(item, ImageError):
                        yield next(predictions)
                    elif on_error == "return":
                        yield item
                    else:
                        raise item


def load(
    bundle: str | Path | Bundle, *, engine: str | None = None, threads: int | None = None
) -> Model:
    """Open a bundle, check all of it, and start the engine that runs it.

    Args:
        bundle: Path of a bundle, or an opened one.
        engine: Name of the engine; by default the one for the artifact's format.
        threads: Number of threads the engine computes with. By default the engine
            chooses; in a process that may use only a part of the machine's CPUs, one
            thread per CPU that it may use.

    Raises:
        BundleError: The bundle is damaged, unsafe or too new.
        UsageError: The path or the engine does not exist, or `threads` is not positive.
        MissingExtraError: The engine is not installed.
        ElsewhereError: This kind of machine cannot have the engine.
        EngineError: The engine refuses the artifact, or its version is not one that the
            bundle requires.

    Example:
        >>> with load("toy.dermedge", threads=1) as model:
        ...     model.provenance.engine.split()[0]
        'onnxruntime'
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}. Use 1 or more, or leave it out.")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    runtime: RuntimeClass = lookup("engine", engine or opened.artifact.format, RUNTIMES, GROUP)

    if threads is None:
        threads = default_threads()

    def open_runtime() -> Runtime:
        started = runtime.open(opened, threads=threads)
        try:
            check_engine(started.name, started.version, opened.artifact.requires)
        except EngineError:
            started.close()
            raise
        return started

    return Model(opened, open_runtime(), reopen=open_runtime)
