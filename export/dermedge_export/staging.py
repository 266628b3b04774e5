"""Build artifacts, and stage bundles in a hidden folder until they pass every check."""

import contextlib
import glob
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext
from dermedge_export.exporters.registry import find_exporter
from dermedge_export.quality_limits import limits_for
from dermedge_export.selection.cache import build_cached
from dermedge_export.target import Target
from dermedge_runtime.bundle import LARGEST_TOLERANCE, Bundle, write_bundle
from dermedge_runtime.errors import UsageError
from dermedge_runtime.model import Runtime, load
from dermedge_runtime.spec import Json, Postprocessing, Task

# Largest absolute difference of a logit that `verify` accepts on another machine.
# Engines and CPUs differ in the order of their sums, and in how they round to few bits.
TOLERANCE = {
    "fp32": 1e-3,
    "fp16": 0.05,
    "bf16": 0.25,
    "w8": 0.05,
    "palettized": 0.05,
    "int8": 0.25,
    "int8+fp16": 0.5,
    "w8a8": 0.5,
}
MAP_TOLERANCE = 4
"""Factor for class activation maps: the mean over places cancels errors of the logits."""
LEFTOVER_SECONDS = 24 * 3600
NOT_RUN: Mapping[str, Json] = {"host": {"status": "not_run"}, "device": {"status": "not_run"}}


@dataclass(frozen=True)
class StagedBundles:
    """A staging folder that builds artifacts; satisfies `CandidateBuilder`.

    Example:
        >>> from types import SimpleNamespace
        >>> from dermedge_export.target import CPU
        >>> toy = Bundle.open("toy.dermedge")
        >>> built = BuiltArtifact(toy.artifact, {"model.onnx": toy.read("model.onnx")})
        >>> context = ExportContext(SimpleNamespace(spec=toy.spec))
        >>> staged = StagedBundles(context, CPU, Path("."), cache=None)
        >>> with staged.start(built) as runtime:
        ...     runtime.name
        'onnxruntime'
    """

    context: ExportContext
    target: Target
    folder: Path
    cache: Path | None

    def build(self, candidate: Candidate) -> BuiltArtifact:
        """Return the artifact of a candidate, from the cache if there is one."""
        exporter = find_exporter(candidate.format)
        return build_cached(self.context, self.target, candidate, exporter, self.cache)

    @contextlib.contextmanager
    def start(self, built: BuiltArtifact) -> Iterator[Runtime]:
        """Yield a runtime of this machine for an artifact, or its simulation."""
        if built.simulation is not None:
            yield built.simulation
            return
        # This machine may not have the device's engine; the target names a replacement.
        engine = self.target.host if built.artifact.format == self.target.format else None
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            load(
                self.write(Path(folder) / "draft", built, {}, NOT_RUN, {}), engine=engine
            ) as model,
        ):
            yield model.runtime

    def write(
        self,
        path: Path,
        built: BuiltArtifact,
        postprocessing: Mapping[str, Postprocessing],
        parity: Mapping[str, Json],
        files: Mapping[str, bytes],
    ) -> Bundle:
        """Write a bundle at `path`, which lies inside the staging folder."""
        precision, spec = built.artifact.precision, self.context.spec
        if precision not in TOLERANCE:
            raise UsageError(
                f"No tolerance is known for precision {precision!r}. Add it to TOLERANCE."
            )
        return write_bundle(
            path,
            spec=spec,
            artifact=built.artifact,
            postprocessing=postprocessing,
            tolerance={task.name: tolerance(precision, task) for task in spec.tasks},
            parity=parity,
            files={**built.files, **files},
            quality=limits_for(spec),
        )


def tolerance(precision: str, task: Task) -> float:
    """Return the largest difference of an output that an engine may show.

    Args:
        precision: A key of `TOLERANCE`.
        task: The output's task.
    """
    factor = MAP_TOLERANCE if task.kind == "cam" else 1
    return min(factor * TOLERANCE[precision], LARGEST_TOLERANCE)


def delete_leftovers(path: Path) -> None:
    """Delete staging folders that killed exports to `path` left behind.

    A folder younger than a day may belong to an export that is still running. A bundle
    that `atomic_folder` renamed aside is kept: after a kill it may be the only copy.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if leftover.name.startswith(f".{path.name}.old-"):
            continue
        with contextlib.suppress(OSError):
            if leftover.is_dir() and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover)
