"""Write Core ML models as reproducible packages with the spec in their metadata."""

import json
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.toolchain import silence
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.spec import Spec, to_json

if TYPE_CHECKING:
    from coremltools.models import MLModel

PATH = "model.mlpackage"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def read_files(model: "MLModel") -> dict[str, bytes]:
    """Return the files that coremltools writes for a model, by path."""
    with tempfile.TemporaryDirectory(prefix="dermedge-") as folder, silence():
        package = Path(folder) / PATH
        model.save(str(package))
        found = [path for path in sorted(package.rglob("*")) if path.is_file()]
        return {path.relative_to(package).as_posix(): path.read_bytes() for path in found}


def write_package(model: "MLModel", spec: Spec) -> dict[str, bytes]:
    """Return a model's package with the spec in its metadata.

    The date, random names and the debugging map are removed, so that the bytes are
    reproducible.
    """
    written = read_files(model)
    files = {name: content for name, content in written.items() if name.startswith("Data/")}
    files[MODEL] = _describe(files[MODEL], spec)
    manifest = json.loads(written["Manifest.json"])
    items = manifest["itemInfoEntries"]
    names = {
        name: str(uuid.UUID(sha256_hex(item["path"].encode())[:32])) for name, item in items.items()
    }
    manifest["itemInfoEntries"] = {names[name]: item for name, item in items.items()}
    manifest["rootModelIdentifier"] = names[manifest["rootModelIdentifier"]]
    return {"Manifest.json": pretty_json(manifest), **files}


def _describe(content: bytes, spec: Spec) -> bytes:
    """Return a model with the metadata that Xcode shows and runtimes read."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model.FromString(content)
    metadata, size = model.description.metadata, spec.preprocess.size
    metadata.Clear()  # it holds the day of the conversion, among others
    metadata.shortDescription = (
        spec.intended_use or f"{spec.name}: its maker stated no intended use."
    )
    metadata.versionString = spec.version
    metadata.author = str(spec.lineage.get("author") or "made with dermedge")
    metadata.license = str(spec.lineage.get("licence") or "see LICENSES in the bundle")
    metadata.userDefined[METADATA_KEY] = json.dumps(
        to_json(spec), sort_keys=True, ensure_ascii=False
    )
    if spec.diagnosis is not None:
        labels = [label.id for label in spec.diagnosis.labels]
        metadata.userDefined["dermedge.labels"] = json.dumps(labels, ensure_ascii=False)
    (image,) = model.description.input
    image.shortDescription = (
        f"RGB, {size} x {size}, fitted by {spec.preprocess.fit} as the bundle says; not scaled."
    )
    for output in model.description.output:
        task = spec.task(output.name)
        labels = [label.id for label in task.labels] if task is not None else []
        output.shortDescription = f"Logits of {', '.join(labels)}." if labels else "Logit."
    sealed: bytes = model.SerializeToString(deterministic=True)
    return sealed
