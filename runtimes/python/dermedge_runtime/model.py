"""The one class that users hold: a bundle and an engine that together answer images with predictions."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction, Provenance, Timing, decode
from dermedge_runtime.errors import ImageError, UsageError
from dermedge_runtime.prefetch import prefetch_batches
from dermedge_runtime.preprocess import Pixels, Source, preprocess
from dermedge_runtime.registry import lookup

Outputs = dict[str, npt.NDArray[np.float32]]
OnError = Literal["raise", "return"]
Item = tuple[Pixels, float]

# By artifact format (the default), and by the engine's own name.
RUNTIMES = {
    "onnx": "dermedge_runtime.onnxruntime:OnnxRuntime",
    "onnxruntime": "dermedge_runtime.onnxruntime:OnnxRuntime",
    "openvino": "dermedge_runtime.openvino:OpenVinoRuntime",
    "tensorrt": "dermedge_runtime.tensorrt.runtime:TensorRtRuntime",
    "coreml": "dermedge_runtime.coreml:CoreMlRuntime",
}
GROUP = "dermedge.runtimes"


class Runtime(Protocol):
    """All that a new engine writes, beside a classmethod `open(bundle, *, threads)` that returns one.

    `run` may be called by many threads at once; an engine that cannot do that takes its own lock.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def run(self, images: Pixels, /) -> Outputs:
        """Outputs [N, ...] by task of RGB images [N, S, S, 3]. Raises EngineError where the engine fails."""
        ...

    def close(self) -> None: ...


class Model:
    """Answers images with predictions. May be shared by threads; they get the same numbers as one.

    Close it, or use it as a context manager, to give the engine's memory back.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.provenance = Provenance(
            bundle=bundle.id,
            name=bundle.spec.name,
            version=bundle.spec.version,
            target=bundle.artifact.target,
            precision=bundle.artifact.precision,
            engine=f"{runtime.name} {runtime.version}",
        )
        self._closed = False

    def predict(self, image: Source, *, exact: bool = False) -> Prediction:
        """Predicts one image: encoded bytes, a path, a PIL image, or RGB uint8 [H, W, 3].

        Args:
            image: The image.
            exact: Never decode a JPEG at a reduced scale; slower, and bit for bit what other platforms compute.

        Raises:
            ImageError: The source is not a single readable image.
            EngineError: The engine failed, or gave NaN or infinity.
            UsageError: The model is closed.
        """
        self._check_open()
        tensor, preprocess_ms = self._prepare(image, exact)
        return self._predict([(tensor, preprocess_ms)])[0]

    def predict_batch(
        self, images: Iterable[Source], *, batch_size: int = 8, exact: bool = False
    ) -> list[Prediction]:
        """Predicts images, `batch_size` at a time; in order. Raises as `predict` does, at the first bad image."""
        return list(self.stream(images, batch_size=batch_size, ahead=2 * batch_size, exact=exact))

    @overload
    def stream(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 1,
        ahead: int = 4,
        workers: int = 2,
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
        workers: int = 2,
        on_error: Literal["return"],
        exact: bool = False,
    ) -> Iterator[Prediction | ImageError]: ...

    def stream(
        self,
        images: Iterable[Source],
        *,
        batch_size: int = 1,
        ahead: int = 4,
        workers: int = 2,
        on_error: OnError = "raise",
        exact: bool = False,
    ) -> Iterator[Prediction | ImageError]:
        """Predicts images as they come, in order, in bounded memory; the next ones are decoded while the engine runs.

        Args:
            images: Any iterable, also an endless generator; it is read only as far as needed.
            batch_size: How many images go through the engine at once.
            ahead: How many images are read or decoded but not yet predicted, at most; `batch_size` or more.
            workers: Threads that decode.
            on_error: `raise` an ImageError at the bad image's place, or `return` it in place of a prediction and go on.
            exact: As in `predict`.

        Raises:
            ImageError: At the place of a bad image, unless `on_error` is `return`.
            EngineError: The engine failed.
            UsageError: The model is closed, or an argument makes no sense.
        """
        if on_error not in ("raise", "return"):
            raise UsageError(f"on_error is {on_error!r}: use 'raise' or 'return'.")
        if batch_size < 1 or workers < 1 or ahead < batch_size:
            raise UsageError(
                f"batch_size {batch_size}, ahead {ahead}, workers {workers}: use 1 or more, and ahead >= batch_size."
            )
        self._check_open()
        return self._stream(iter(images), batch_size, ahead, workers, on_error, exact)

    def run(self, images: Pixels) -> Outputs:
        """The engine's raw outputs [N, ...] by task for preprocessed images, uint8 [N, S, S, 3]."""
        self._check_open()
        size = self.bundle.spec.preprocess.size
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != (size, size, 3)
            or not len(images)
        ):
            found = f"{images.dtype} {list(images.shape)}"
            raise UsageError(
                f"The engine takes uint8 [N, {size}, {size}, 3], not {found}: preprocess the image first."
            )
        return self.runtime.run(images)

    def outputs(self, image: Source, *, exact: bool = False) -> Outputs:
        """The engine's raw outputs for one image, by task, without the batch dimension."""
        self._check_open()
        batch = self.run(preprocess(image, self.bundle.spec.preprocess, exact=exact)[None])
        return {name: values[0] for name, values in batch.items()}

    def close(self) -> None:
        """Gives the engine's memory back. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            self.runtime.close()

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
                f"The model {self.bundle.spec.name!r} is closed: load its bundle again."
            )

    def _prepare(self, image: Source, exact: bool) -> Item:
        start = perf_counter()
        tensor = preprocess(image, self.bundle.spec.preprocess, exact=exact)
        return tensor, (perf_counter() - start) * 1000

    def _predict(self, items: list[Item]) -> list[Prediction]:
        self._check_open()
        batch = items[0][0][None] if len(items) == 1 else np.stack([tensor for tensor, _ in items])
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
            )
            for index, (_, preprocess_ms) in enumerate(items)
        ]

    def _stream(
        self,
        images: Iterator[Source],
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
    """Opens a bundle, checks all of it, and starts the engine that runs it.

    Args:
        bundle: The path of a bundle, or an opened one.
        engine: The name of a runtime; by default the one for the artifact's format.
        threads: How many threads the engine computes with; by default it decides.

    Raises:
        BundleError: The bundle is damaged, unsafe or too new.
        UsageError: There is no such path or engine, or `threads` is not positive.
        MissingExtraError: The engine is not installed.
        EngineError: The engine refuses the artifact.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: use 1 or more, or leave it out.")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    kind: Any = lookup("engine", engine or opened.artifact.format, RUNTIMES, GROUP)
    return Model(opened, kind.open(opened, threads=threads))
