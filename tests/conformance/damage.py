"""Damage a bundle in one way, and seal it again."""

import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformance.toy import MALIGNANCY, digests, onnx_artifact, onnx_model, sealed, toy_content
from conformance.writing import Files
from dermedge_runtime.container import EPOCH, MANIFEST, zip_bytes
from dermedge_runtime.spec import Json, Preprocess, Spec

SPEC = Spec("small", "1.0.0", (MALIGNANCY,), Preprocess(16))
NETWORK = onnx_model(SPEC)
# A reader finds the damage before it starts an engine, so these bundles need no network.
STAND_IN = b"stands for a network\n"
LICENCE = "LICENSES/CC0-1.0.txt"
Change = Callable[[Any], object]


@dataclass(frozen=True)
class Damage:
    """A bundle that breaks a rule; each function changes its argument in place.

    `files` changes the content by path before the digests are taken. `content` changes
    the manifest before its id is computed. `manifest` returns other bytes of the sealed
    manifest. `after` changes the files once the manifest exists. `pack` writes the zip.
    """

    name: str
    mentions: tuple[str, ...] = ()
    files: Change | None = None
    content: Change | None = None
    manifest: Callable[[bytes], bytes] | None = None
    after: Change | None = None
    pack: Callable[[Files], bytes] = zip_bytes
    valid: bool = False


def write_bundle_zip(damage: Damage) -> bytes:
    files: Files = {"model.onnx": NETWORK if damage.valid else STAND_IN, LICENCE: b"CC0-1.0\n"}
    content = toy_content(SPEC, onnx_artifact())
    content["parity"] = {"host": {"status": "not_run"}, "device": {"status": "not_run"}}
    _apply(damage.files, files)
    content["files"] = digests(files)
    _apply(damage.content, content)
    manifest = sealed(content)
    files[MANIFEST] = damage.manifest(manifest) if damage.manifest else manifest
    _apply(damage.after, files)
    return damage.pack(files)


def _apply(change: Change | None, target: object) -> None:
    if change:
        change(target)


def put_files(*paths: str, content: bytes = b"text\n") -> Change:
    """Return a change that writes files."""
    return lambda files: files.update(dict.fromkeys(paths, content))


def put_value(keys: tuple[str | int, ...], value: object) -> Change:
    def change(content: Json) -> None:
        *parents, last = keys
        target: Any = content
        for key in parents:
            target = target[key]
        target[last] = value

    return change


def drop_value(keys: tuple[str | int, ...]) -> Change:
    def change(content: Json) -> None:
        *parents, last = keys
        target: Any = content
        for key in parents:
            target = target[key]
        del target[last]

    return change


def require(*names: str) -> Change:
    return put_value(("artifact", "requires"), list(names))


def fit(**values: float | None) -> Change:
    return put_value(("postprocessing", "malignancy"), values)


def set_to_the_ends(content: Json) -> None:
    """Set every number to the end of its range."""
    content["postprocessing"]["malignancy"] = {"temperature": 1e-300, "threshold": 1}
    content["tolerance"]["malignancy"] = 0.5
    content["spec"]["preprocess"]["background"] = [0, 255, 0]


def add_unknown_keys(content: Json) -> None:
    content["added"] = {"\ufb33": 1e20, "\U0001f600": [1e-7, -0.0, 5e-324, 1e21], "": "é\x7f"}
    content["spec"]["added"] = content["artifact"]["added"] = None
    content["postprocessing"]["malignancy"]["added"] = 1.0
    content["spec"]["intended_use"] = content["artifact"]["details"] = None


def into_folder(weights: bytes, graph: bytes = b"<net/>") -> Change:
    def change(files: Files) -> None:
        del files["model.onnx"]
        files.update({"model/model.xml": graph, "model/model.bin": weights + b"\0" * 8})

    return change


def name_folder(content: Json) -> None:
    content["artifact"] |= {"path": "model", "format": "openvino"}


def with_id(manifest: bytes, new: str | None) -> bytes:
    """Replace the id, or write it in capitals if `new` is None."""
    at = manifest.index(b'"id": "') + 7
    old = manifest[at : at + 64]
    return manifest[:at] + (new.encode() if new else old.upper()) + manifest[at + 64 :]


def without_id(manifest: bytes) -> bytes:
    at = manifest.index(b'"id": "')
    return manifest[:at] + manifest[manifest.index(b"\n", at) :].lstrip()


def packed(
    modes: dict[str, int] | None = None,
    *,
    compress: tuple[str, ...] = (),
    again: tuple[str, ...] = (),
    folders: tuple[str, ...] = (),
) -> Callable[[Files], bytes]:
    """Return a function that writes a zip with file modes, compression or more entries."""

    def pack(files: Files) -> bytes:
        buffer = io.BytesIO()
        # zipfile warns of a name that is given twice.
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as archive:
            for name in (*sorted(files), *again, *folders):
                info = zipfile.ZipInfo(name, EPOCH)
                info.create_system = 3
                info.external_attr = (modes or {}).get(name, 0o100644) << 16
                # Level 0 writes the same bytes with every version of zlib.
                method = zipfile.ZIP_DEFLATED if name in compress else zipfile.ZIP_STORED
                archive.writestr(info, files.get(name, b""), method, compresslevel=0)
        return buffer.getvalue()

    return pack


def encrypted(files: Files) -> bytes:
    """Set the flag of encryption in every entry."""
    data = bytearray(zip_bytes(files))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 4)
    return bytes(data)


def one_down(files: Files) -> bytes:
    return zip_bytes({f"small/{name}": content for name, content in files.items()})
