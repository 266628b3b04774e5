"""Bundles: one model for one target with all it needs to be run rightly, read and written so that nothing can slip in.

A bundle is a folder `NAME.dermedge`, or the same files in a stored, sorted, fixed-mtime zip. It is pure data and
immutable.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

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
from dermedge_runtime.files import atomic_folder, atomic_write, check_free, sha256_hex
from dermedge_runtime.spec import Artifact, Json, Postprocessing, Spec, Status, take, to_json

if TYPE_CHECKING:
    from dermedge_runtime.golden import Case

SCHEMA = "dermedge.bundle/1"
LARGEST_TOLERANCE = 0.5
LARGEST_MANIFEST = 1 << 24
PICKLES = frozenset((".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".cloudpickle"))
PICKLE_HEADS = (ZIP_MAGIC, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
DIGEST = re.compile(r"[0-9a-f]{64}")
AGAIN = "export the model again."


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: everything in its manifest, checked.

    `id` is the SHA-256 that covers the whole manifest and through it every file. `postprocessing` and `tolerance`
    (largest absolute difference that an engine may show) have one entry per task. `parity` holds a report or a bare
    status under `host` and `device`. `files` maps every path to its SHA-256.
    """

    path: Path
    id: str
    spec: Spec
    artifact: Artifact
    postprocessing: Mapping[str, Postprocessing]
    tolerance: Mapping[str, float]
    parity: Mapping[str, Any]
    files: Mapping[str, str]

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Opens a bundle's folder or zip and checks all of it, each file's SHA-256 included.

        Raises:
            UsageError: where nothing stands at `path`.
            BundleError: where it is no bundle, or a damaged, incomplete, unsafe or too new one.
        """
        path = Path(path)
        with open_container(path) as container:
            bundle = _parse(_manifest(container), path)
            _check_files(bundle, container)
        return bundle

    def read(self, name: str) -> bytes:
        """The content of a file, checked against its SHA-256 once more.

        Raises:
            BundleError: where the bundle has no such file, or it was changed since the bundle was opened.
        """
        if name not in self.files:
            raise BundleError(
                f"{self.path} has no file {name!r}; it has {', '.join(sorted(self.files))}."
            )
        with open_container(self.path) as container:
            data = container.read(name)
        if sha256_hex(data) != self.files[name]:
            raise BundleError(
                f"{name!r} in {self.path} was changed since the bundle was opened; {DAMAGED}"
            )
        return data

    def golden(self) -> "list[Case]":
        """The golden cases, one or more. Raises BundleError where they are missing or not readable."""
        from dermedge_runtime.golden import read_golden

        return read_golden(self.read)

    def save(self, out: str | Path, *, zipped: bool = False, overwrite: bool = False) -> "Bundle":
        """Copies the bundle to a folder or zip; the same files, the same id, and for a zip always the same bytes.

        Raises:
            UsageError: where `out` exists and may not be replaced.
            BundleError: where this bundle was changed since it was opened.
        """
        out = Path(out)
        with open_container(self.path) as container:
            if _parse(_manifest(container), self.path) != self:
                raise BundleError(f"{self.path} was changed since it was opened; open it again.")
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
    overwrite: bool = False,
) -> Bundle:
    """Writes a bundle's folder, whole or not at all, the same bytes for the same content.

    Args:
        out: where the folder shall stand.
        spec: what the model is.
        artifact: which of `files` is the model, and for which target.
        postprocessing: what was fitted, by task; a task without an entry has nothing fitted.
        tolerance: by task, the largest absolute difference from `expected` that an engine may show, at most 0.5.
        parity: `host` and `device`, each a report or `{"status": "not_run"}`.
        files: path to content, without the manifest.
        overwrite: whether an older bundle at `out` may be replaced.

    Raises:
        UsageError: where `out` exists and may not be replaced.
        BundleError: where readers would refuse the bundle; nothing is written then.
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
    manifest = pretty_json({**content, "id": sha256_hex(canonical_json(content))})
    return _write({**files, MANIFEST: manifest}, out, zipped=False, overwrite=overwrite)


def _write(files: Mapping[str, bytes], out: Path, zipped: bool, overwrite: bool) -> Bundle:
    """Writes the files as a bundle; a reader's refusal comes before anything stands at `out`."""
    bundle = _parse(parse_json(files[MANIFEST], MANIFEST, BundleError), out)
    try:
        if zipped:
            check_free(out, overwrite=overwrite)
            if out.is_dir():
                raise UsageError(
                    f"{out} is a folder and is not overwritten by a zip; choose another path."
                )
            atomic_write(out, zip_bytes(files))
            return Bundle.open(out)
        with atomic_folder(out, overwrite=overwrite, marker=MANIFEST) as folder:
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
            return replace(Bundle.open(folder), path=bundle.path)
    except OSError as error:
        raise DermedgeError(
            f"Cannot write {out} ({error.strerror}); free space or choose another path."
        ) from error


def _manifest(container: Container) -> Json:
    if container.sizes.get(MANIFEST, 0) > LARGEST_MANIFEST:
        raise BundleError(
            f"{MANIFEST} of {container.path} has over {LARGEST_MANIFEST} bytes; {DAMAGED}"
        )
    data: Json = parse_json(container.read(MANIFEST), f"{container.path}/{MANIFEST}", BundleError)
    return data


def _parse(manifest: Json, path: Path) -> Bundle:
    """The manifest as a Bundle; everything but the files themselves is checked."""
    schema = take(manifest, "schema", str, MANIFEST)
    if schema != SCHEMA:
        name, _, major = schema.partition("/")
        if name == SCHEMA.partition("/")[0] and major.isdecimal():
            raise BundleError(
                f"{path} has schema {schema!r}, and this dermedge reads {SCHEMA!r}: upgrade dermedge."
            )
        raise BundleError(
            f"{path} has schema {schema!r}, which is no dermedge bundle; name a .dermedge one."
        )
    content = {key: value for key, value in manifest.items() if key != "id"}
    try:
        digest = sha256_hex(canonical_json(content))
    except UsageError as error:
        raise BundleError(f"{MANIFEST} of {path} has no canonical form: {error}") from error
    if take(manifest, "id", str, MANIFEST) != digest:
        raise BundleError(
            f"The manifest of {path} was changed: its id does not fit its content; {DAMAGED}"
        )
    spec = Spec.from_json(take(manifest, "spec", dict, MANIFEST))
    bundle = Bundle(
        path=path,
        id=digest,
        spec=spec,
        artifact=Artifact.from_json(take(manifest, "artifact", dict, MANIFEST)),
        postprocessing=_postprocessing(take(manifest, "postprocessing", dict, MANIFEST), spec),
        tolerance=_tolerance(take(manifest, "tolerance", dict, MANIFEST), spec),
        parity=_parity(take(manifest, "parity", dict, MANIFEST)),
        files=_files(take(manifest, "files", dict, MANIFEST), path),
    )
    if not artifact_files(bundle):
        raise BundleError(
            f"The artifact {bundle.artifact.path!r} is not among the files of {path}; {AGAIN}"
        )
    return bundle


def _postprocessing(data: Json, spec: Spec) -> dict[str, Postprocessing]:
    _check_tasks(data, spec, "postprocessing")
    return {name: Postprocessing.from_json(entry) for name, entry in data.items()}


def _tolerance(data: Json, spec: Spec) -> dict[str, float]:
    _check_tasks(data, spec, "tolerance")
    for name, value in data.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= LARGEST_TOLERANCE:
            raise BundleError(
                f"The tolerance of {name!r} is {value!r}, not within 0..{LARGEST_TOLERANCE}; {AGAIN}"
            )
    return {name: float(value) for name, value in data.items()}


def _check_tasks(data: Json, spec: Spec, where: str) -> None:
    tasks = sorted(task.name for task in spec.tasks)
    if sorted(data) != tasks:
        raise BundleError(
            f"{where} has entries for {sorted(data)}, but the tasks are {tasks}; {AGAIN}"
        )


def _parity(data: Json) -> Json:
    for side in ("host", "device"):
        status = take(take(data, side, dict, "parity"), "status", str, f"parity.{side}")
        if status not in get_args(Status):
            raise BundleError(
                f"parity.{side}.status is {status!r}, not one of {', '.join(get_args(Status))}; {AGAIN}"
            )
    return data


def _files(data: Json, path: Path) -> dict[str, str]:
    check_names([*data, MANIFEST], str(path))
    for name, digest in data.items():
        if name == MANIFEST or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise BundleError(
                f"The digest of {name!r} is {digest!r}, not a SHA-256 of another file; {AGAIN}"
            )
        if PurePosixPath(name).suffix.lower() in PICKLES:
            raise BundleError(
                f"{name!r} in {path} is a pickle, which could run code; export to another format."
            )
    return dict(data)


def artifact_files(bundle: Bundle) -> list[str]:
    """The files of the artifact: its one file, or all in its folder, sorted."""
    entry = bundle.artifact.path.rstrip("/")
    return sorted(name for name in bundle.files if name == entry or name.startswith(f"{entry}/"))


def _check_files(bundle: Bundle, container: Container) -> None:
    listed, found = {*bundle.files, MANIFEST}, set(container.sizes)
    if missing := sorted(listed - found):
        raise BundleError(f"{bundle.path} misses {', '.join(map(repr, missing))}; {DAMAGED}")
    if extra := sorted(found - listed):
        raise BundleError(
            f"{bundle.path} holds {', '.join(map(repr, extra))}, which its manifest does not list; {DAMAGED}"
        )
    artifact = artifact_files(bundle)
    for name, expected in bundle.files.items():
        digest, head = container.digest(name)
        if digest != expected:
            raise BundleError(
                f"{name!r} in {bundle.path} is damaged: its SHA-256 does not fit the manifest; {DAMAGED}"
            )
        # Raw weights beside a graph (`.bin` in a folder) may begin with any bytes; no other may look like a pickle.
        if (
            name in artifact
            and head.startswith(PICKLE_HEADS)
            and not (len(artifact) > 1 and name.endswith(".bin"))
        ):
            raise BundleError(
                f"{name!r} in {bundle.path} is a pickle, which could run code; export to another format."
            )
