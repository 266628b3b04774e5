"""Read and write bundles: one model for one target, with all that a device needs.

A bundle is a folder `NAME.dermedge`, or the same files in a stored, sorted, fixed-mtime
zip. It is pure data and immutable. Readers refuse every byte that the manifest does not
cover, and never open the files that operating systems leave in folders.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

from dermedge_runtime.bundle_damage import (
    absent_content,
    changed_file,
    missing_files,
    unlisted_files,
)
from dermedge_runtime.canonical_json import canonical_json, parse_json, pretty_json
from dermedge_runtime.container import (
    DAMAGED,
    MANIFEST,
    ZIP_MAGIC,
    Container,
    check_names,
    open_container,
    zip_bytes,
)
from dermedge_runtime.errors import BundleError, DermedgeError, UsageError
from dermedge_runtime.files import atomic_folder, atomic_write, check_free, sha256_hex, write_files
from dermedge_runtime.quality import QualityLimits
from dermedge_runtime.spec import (
    AGAIN,
    Artifact,
    Json,
    Postprocessing,
    Spec,
    Status,
    optional,
    take,
    to_json,
)

if TYPE_CHECKING:
    from dermedge_runtime.golden import Case

SCHEMA = "dermedge.bundle/1"
LARGEST_TOLERANCE = 0.5
LARGEST_MANIFEST = 1 << 24
# A pickle runs code when it is loaded. PyTorch's pickles are zips; the others start
# with the protocol's opcode.
PICKLES = frozenset((".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".cloudpickle"))
PICKLE_HEADS = (ZIP_MAGIC, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the content of its manifest, checked.

    `id` is the SHA-256 of the manifest's canonical JSON; it covers the whole manifest
    and, by their digests, all files. `postprocessing` and `tolerance` (largest absolute
    difference that an engine may show) have one entry per task. `parity` holds a report
    or a bare status under `host` and `device`. `files` maps every path to its SHA-256.
    `quality` has the limits that a good photograph keeps; None judges no photograph.

    Example:
        >>> bundle = Bundle.open("toy.dermedge")
        >>> bundle.spec.name, bundle.artifact.target, len(bundle.spec.tasks)
        ('toy', 'cpu', 2)
    """

    path: Path
    id: str
    spec: Spec
    artifact: Artifact
    postprocessing: Mapping[str, Postprocessing]
    tolerance: Mapping[str, float]
    parity: Mapping[str, Any]
    files: Mapping[str, str]
    quality: QualityLimits | None = None

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Open a bundle's folder or zip and check all of it, with each file's SHA-256.

        Raises:
            UsageError: The path does not exist.
            BundleError: The path is not a bundle, or the bundle is damaged, incomplete,
                unsafe or too new.
        """
        path = Path(path)
        with open_container(path) as container:
            bundle = _parse(_read_manifest(container), path)
            _check_files(bundle, container)
        return bundle

    def read(self, name: str) -> bytes:
        """Return the content of a file, and check its SHA-256 once more.

        Raises:
            BundleError: The bundle has no such file, or the file changed after the
                bundle was opened.
        """
        if name not in self.files:
            raise BundleError(
                f"{self.path} has no file {name!r}; it has {', '.join(sorted(self.files))}."
            )
        with open_container(self.path) as container:
            data = container.read(name)
        if sha256_hex(data) != self.files[name]:
            raise BundleError(
                f"{name!r} in {self.path} was changed since the bundle was opened. {DAMAGED}"
            )
        return data

    def golden(self) -> "list[Case]":
        """Read the golden cases; raise BundleError if they are not readable."""
        from dermedge_runtime.golden import read_golden

        return read_golden(self.read)

    def save(self, out: str | Path, *, zipped: bool = False, overwrite: bool = False) -> "Bundle":
        """Copy the bundle to a folder or zip with the same files and the same id.

        Args:
            out: Path of the copy.
            zipped: Write a zip; equal bundles give equal bytes.
            overwrite: Replace what exists at `out`.

        Raises:
            UsageError: `out` exists and may not be replaced.
            BundleError: This bundle changed after it was opened.

        Example:
            >>> copy = Bundle.open("toy.dermedge").save("copy.dermedge", zipped=True)
            >>> copy.id == Bundle.open("toy.dermedge").id
            True
        """
        out = Path(out)
        with open_container(self.path) as container:
            if _parse(_read_manifest(container), self.path) != self:
                raise BundleError(f"{self.path} was changed since it was opened. Open it again.")
            manifest = container.read(MANIFEST)
        return _write(
            {MANIFEST: manifest, **{name: self.read(name) for name in self.files}},
            out,
            zipped,
            overwrite,
        )


def write_bundle(
    out: Path,
    *,
    spec: Spec,
    artifact: Artifact,
    postprocessing: Mapping[str, Postprocessing],
    tolerance: Mapping[str, float],
    parity: Mapping[str, Any],
    files: Mapping[str, bytes],
    quality: QualityLimits | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle's folder, whole or not at all; equal content gives equal bytes.

    Args:
        out: Path of the folder.
        spec: Spec of the model.
        artifact: Names the model among `files`, and its target.
        postprocessing: Fitted values by task. A task without an entry has none.
        tolerance: Largest absolute difference from `expected` that an engine may show,
            by task, at most 0.5.
        parity: `host` and `device`, each a report or `{"status": "not_run"}`.
        files: Content by path, without the manifest.
        quality: Limits that a good photograph keeps; None judges no photograph.
        overwrite: Replace an older bundle at `out`.

    Raises:
        UsageError: `out` exists and may not be replaced.
        BundleError: Readers would refuse the bundle; nothing is written.

    Example:
        >>> toy = Bundle.open("toy.dermedge")
        >>> bundle = write_bundle(
        ...     Path("renamed.dermedge"),
        ...     spec=replace(toy.spec, name="renamed"),
        ...     artifact=toy.artifact,
        ...     postprocessing=toy.postprocessing,
        ...     tolerance=toy.tolerance,
        ...     parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        ...     files={name: toy.read(name) for name in toy.files},
        ... )
        >>> bundle.spec.name
        'renamed'
    """
    fitted = {task.name: Postprocessing() for task in spec.tasks} | dict(postprocessing)
    content = {
        "schema": SCHEMA,
        "spec": to_json(spec),
        "artifact": to_json(artifact),
        "postprocessing": to_json(fitted),
        "tolerance": to_json(tolerance),
        "parity": to_json(parity),
        "files": {name: sha256_hex(data) for name, data in files.items()},
    }
    if quality is not None:
        content["quality"] = to_json(quality)
    manifest = pretty_json({**content, "id": sha256_hex(canonical_json(content))})
    return _write({**files, MANIFEST: manifest}, out, zipped=False, overwrite=overwrite)


def _write(files: Mapping[str, bytes], out: Path, zipped: bool, overwrite: bool) -> Bundle:
    """Write files as a bundle; check the manifest before anything is written."""
    bundle = _parse(parse_json(files[MANIFEST], MANIFEST, BundleError), out)
    try:
        if zipped:
            check_free(out, overwrite=overwrite)
            if out.is_dir():
                raise UsageError(
                    f"{out} is a folder and is not overwritten by a zip. Choose another path."
                )
            atomic_write(out, zip_bytes(files))
            return Bundle.open(out)
        with atomic_folder(out, overwrite=overwrite, marker=MANIFEST) as folder:
            write_files(folder, files)
            return replace(Bundle.open(folder), path=bundle.path)
    except OSError as error:
        raise DermedgeError(
            f"Cannot write {out} ({error.strerror}). Free space or choose another path."
        ) from error


def _read_manifest(container: Container) -> Json:
    if MANIFEST not in container.sizes:
        raise missing_files(container, [MANIFEST])
    if error := absent_content(container, MANIFEST):
        raise error
    if container.sizes[MANIFEST] > LARGEST_MANIFEST:
        raise BundleError(
            f"{MANIFEST} of {container.path} has over {LARGEST_MANIFEST} bytes. {DAMAGED}"
        )
    data: Json = parse_json(container.read(MANIFEST), f"{container.path}/{MANIFEST}", BundleError)
    return data


def _parse(manifest: Json, path: Path) -> Bundle:
    """Convert a manifest to a Bundle; check everything but the files themselves."""
    _check_schema(take(manifest, "schema", str, MANIFEST), path)
    # The id cannot cover itself; by the digests in `files` it covers all else.
    content = {key: value for key, value in manifest.items() if key != "id"}
    try:
        digest = sha256_hex(canonical_json(content))
    except UsageError as error:
        raise BundleError(f"{MANIFEST} of {path} has no canonical form: {error}") from error
    if take(manifest, "id", str, MANIFEST) != digest:
        raise BundleError(
            f"The manifest of {path} was changed: its id does not fit its content. {DAMAGED}"
        )
    spec = Spec.from_json(take(manifest, "spec", dict, MANIFEST))
    limits = optional(manifest, "quality", dict, MANIFEST)
    bundle = Bundle(
        path=path,
        id=digest,
        spec=spec,
        artifact=Artifact.from_json(take(manifest, "artifact", dict, MANIFEST)),
        postprocessing=_read_postprocessing(take(manifest, "postprocessing", dict, MANIFEST), spec),
        tolerance=_read_tolerance(take(manifest, "tolerance", dict, MANIFEST), spec),
        parity=_read_parity(take(manifest, "parity", dict, MANIFEST)),
        files=_read_files(take(manifest, "files", dict, MANIFEST), path),
        quality=None if limits is None else QualityLimits.from_json(limits),
    )
    if not artifact_files(bundle):
        raise BundleError(
            f"The artifact {bundle.artifact.path!r} is not among the files of {path}. {AGAIN}"
        )
    return bundle


def _check_schema(schema: str, path: Path) -> None:
    if schema == SCHEMA:
        return
    name, _, major = schema.partition("/")
    if name == SCHEMA.partition("/")[0] and major.isdecimal():
        raise BundleError(
            f"{path} has schema {schema!r}, and this dermedge reads {SCHEMA!r}. Upgrade dermedge."
        )
    raise BundleError(
        f"{path} has schema {schema!r}, which is no dermedge bundle. Name a .dermedge one."
    )


def _read_postprocessing(data: Json, spec: Spec) -> dict[str, Postprocessing]:
    _check_tasks(data, spec, "postprocessing")
    fitted = {name: Postprocessing.from_json(entry) for name, entry in data.items()}
    for task in spec.tasks:
        fitted[task.name].check_task(task, spec.malignancy)
    return fitted


def _read_tolerance(data: Json, spec: Spec) -> dict[str, float]:
    _check_tasks(data, spec, "tolerance")
    for name, value in data.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= LARGEST_TOLERANCE:
            raise BundleError(
                f"The tolerance of {name!r} is {value!r}, "
                f"not within 0..{LARGEST_TOLERANCE}. {AGAIN}"
            )
    return {name: float(value) for name, value in data.items()}


def _check_tasks(data: Json, spec: Spec, where: str) -> None:
    tasks = sorted(task.name for task in spec.tasks)
    if sorted(data) != tasks:
        raise BundleError(
            f"{where} has entries for {sorted(data)}, but the tasks are {tasks}. {AGAIN}"
        )


def _read_parity(data: Json) -> Json:
    for side in ("host", "device"):
        status = take(take(data, side, dict, "parity"), "status", str, f"parity.{side}")
        if status not in get_args(Status):
            raise BundleError(
                f"parity.{side}.status is {status!r}, "
                f"not one of {', '.join(get_args(Status))}. {AGAIN}"
            )
    return data


def _read_files(data: Json, path: Path) -> dict[str, str]:
    check_names([*data, MANIFEST], str(path))
    for name, digest in data.items():
        if name == MANIFEST or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise BundleError(
                f"The digest of {name!r} is {digest!r}, not a SHA-256 of another file. {AGAIN}"
            )
        if PurePosixPath(name).suffix.lower() in PICKLES:
            raise _is_pickle(name, path)
    return dict(data)


def artifact_files(bundle: Bundle) -> list[str]:
    """Return the artifact's one file, or all files in its folder, sorted.

    Example:
        >>> artifact_files(Bundle.open("toy.dermedge"))
        ['model.onnx']
    """
    entry = bundle.artifact.path.rstrip("/")
    return sorted(name for name in bundle.files if name == entry or name.startswith(f"{entry}/"))


def _check_files(bundle: Bundle, container: Container) -> None:
    listed, existing = {*bundle.files, MANIFEST}, set(container.sizes)
    if missing := sorted(listed - existing):
        raise missing_files(container, missing)
    if extra := sorted(existing - listed):
        raise unlisted_files(container, extra)
    artifact = artifact_files(bundle)
    for name, expected in bundle.files.items():
        digest, head = container.digest(name)
        if digest != expected:
            raise changed_file(container, name, expected)
        # Raw weights beside a graph (`.bin` in a folder) may start with any bytes. No
        # other file of an artifact may start like a pickle.
        is_weights = len(artifact) > 1 and name.endswith(".bin")
        if name in artifact and head.startswith(PICKLE_HEADS) and not is_weights:
            raise _is_pickle(name, bundle.path)


def _is_pickle(name: str, path: Path) -> BundleError:
    return BundleError(
        f"{name!r} in {path} is a pickle, which could run code. Export to another format."
    )
