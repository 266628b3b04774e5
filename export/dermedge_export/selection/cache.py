"""Artifacts kept by the digest of what they depend on, so that a killed search goes on where it was."""

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Exporter
from dermedge_export.target import Target
from dermedge_runtime.canonical_json import canonical_json, pretty_json
from dermedge_runtime.files import atomic_folder, sha256_hex
from dermedge_runtime.spec import Artifact, to_json

ARTIFACT = "artifact.json"


def build_cached(
    context: ExportContext,
    target: Target,
    candidate: Candidate,
    exporter: Exporter,
    cache: Path | None,
) -> BuiltArtifact:
    """What the exporter makes, or what it made of the same student, images and versions before."""
    if cache is None:
        return exporter(context, target, candidate)
    folder = cache / _key(context, target, candidate)
    if (folder / ARTIFACT).is_file():
        return _read(folder)
    built = exporter(context, target, candidate)
    if built.simulation is None:
        with atomic_folder(folder, overwrite=True) as draft:
            for name, data in built.files.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_bytes(data)
            (draft / ARTIFACT).write_bytes(pretty_json(to_json(built.artifact)))
    return built


def _read(folder: Path) -> BuiltArtifact:
    artifact = Artifact.from_json(json.loads((folder / ARTIFACT).read_bytes()))
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ARTIFACT
    }
    return BuiltArtifact(artifact, files)


def _key(context: ExportContext, target: Target, candidate: Candidate) -> str:
    """What an artifact depends on: the student's graph, the target, the method, the images, the versions."""
    calibrated = candidate.precision not in ("fp32", "bf16")  # those of fp16 look for overflows
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


def _versions() -> Iterator[tuple[str, Any]]:
    for name in ("dermedge", "torch", "onnx", "onnxruntime", "openvino", "nncf", "coremltools"):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, None
