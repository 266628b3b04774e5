"""Keep artifacts on disk, so that an interrupted search continues where it stopped."""

import json
from collections.abc import Iterator
from pathlib import Path

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Exporter
from dermedge_export.target import Target
from dermedge_runtime.canonical_json import canonical_json, pretty_json
from dermedge_runtime.files import atomic_folder, sha256_hex, write_files
from dermedge_runtime.packages import find_version
from dermedge_runtime.spec import Artifact, to_json

ARTIFACT = "artifact.json"
TOOLS = (
    "dermedge",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "litert-torch",
    "litert-quantizer",
    "coremltools",
)


def build_cached(
    context: ExportContext,
    target: Target,
    candidate: Candidate,
    exporter: Exporter,
    cache: Path | None,
) -> BuiltArtifact:
    """Run the exporter, or return its cached artifact.

    The cache key is a digest of the student's graph, the target, the candidate, the
    calibration images and the versions of the tools.

    Args:
        context: The student.
        target: The target.
        candidate: The candidate.
        exporter: Builds the artifact if the cache does not hold it.
        cache: Folder of the cache; None always runs the exporter.
    """
    if cache is None:
        return exporter(context, target, candidate)
    folder = cache / _key(context, target, candidate)
    if (folder / ARTIFACT).is_file():
        return _read(folder)
    built = exporter(context, target, candidate)
    # A simulation is a function of this process; it cannot be stored.
    if built.simulation is None:
        _write(folder, built)
    return built


def _write(folder: Path, built: BuiltArtifact) -> None:
    with atomic_folder(folder, overwrite=True) as draft:
        write_files(draft, built.files)
        (draft / ARTIFACT).write_bytes(pretty_json(to_json(built.artifact)))


def _read(folder: Path) -> BuiltArtifact:
    artifact = Artifact.from_json(json.loads((folder / ARTIFACT).read_bytes()))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ARTIFACT
    }
    return BuiltArtifact(artifact, files)


def _key(context: ExportContext, target: Target, candidate: Candidate) -> str:
    """Return the digest of everything that determines the artifact."""
    # fp16 artifacts depend on the calibration images too: layers whose activations
    # overflow fp16 on them stay in fp32. LiteRT files for GPUs split means by them.
    calibrated = candidate.precision not in ("fp32", "bf16") or candidate.format == "litert"
    return sha256_hex(
        canonical_json(
            {
                "graph": sha256_hex(context.graph(target.opset)),
                "target": to_json(target),
                "candidate": to_json(candidate),
                "calibration": context.calibration.digest if calibrated else None,
                "versions": dict(_versions()),
            }
        )
    )


def _versions() -> Iterator[tuple[str, str | None]]:
    for name in TOOLS:
        yield name, find_version(name)
