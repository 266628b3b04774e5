"""Damaged bundles: each breaks one rule, and is correctly sealed otherwise."""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from conformance.toy import (
    MALIGNANCY,
    digests,
    onnx_artifact,
    onnx_model,
    sealed,
    toy_content,
)
from conformance.writing import Files, cases_json
from dermedge_runtime.container import EPOCH, MANIFEST, zip_bytes
from dermedge_runtime.errors import BundleError
from dermedge_runtime.spec import Json, Preprocess, Spec

SPEC = Spec("small", "1.0.0", (MALIGNANCY,), Preprocess(16))
NETWORK = onnx_model(SPEC)
# A reader finds the damage before it starts an engine, so these bundles need no network.
STAND_IN = b"stands for a network\n"
LICENCE = "LICENSES/CC0-1.0.txt"
OTHER = "0" * 64
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


def bundle_files() -> Files:
    """Return `bundles.json` and the zips."""
    files: Files = {}
    entries = []
    for damage in (*_valid(), *_json(), *_manifest(), *_paths(), *_files(), *_zips()):
        path = f"bundles/{damage.name}.zip"
        assert path not in files, path
        files[path] = _write(damage)
        error = None if damage.valid else BundleError.__name__
        mentions = list(damage.mentions)
        entries.append({"name": damage.name, "bundle": path, "error": error, "mentions": mentions})
    return {"bundles.json": cases_json(entries), **files}


def _write(damage: Damage) -> bytes:
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


def _valid() -> Iterator[Damage]:
    """Yield bundles that a reader must open."""
    yield Damage("plain", valid=True)
    yield Damage("unknown-keys", content=_add_unknown_keys, valid=True)
    yield Damage("compact", manifest=lambda data: b"".join(data.split(b"\n  ")), valid=True)
    yield Damage("names", files=_put("notes/ä b 中.txt"), valid=True)
    yield Damage("names-of-files-alike", files=_put("model.onnx.txt"), valid=True)
    yield Damage("requires-other-names", content=_require("iOS>=17", "JetPack"), valid=True)
    yield Damage("nothing-fitted", content=_fit(temperature=None, threshold=None), valid=True)
    yield Damage("edges", content=_edges, valid=True)
    yield Damage("empty-file", files=_put("empty.txt", content=b""), valid=True)
    # Only a `.bin` in an artifact's folder may start like a pickle.
    yield Damage("weights", files=_into_folder(b"\x80\x02."), content=_folder, valid=True)


def _json() -> Iterator[Damage]:
    """Yield manifests that are no strict JSON, or have no canonical form."""

    def swap(name: str, old: bytes, new: bytes) -> Damage:
        def change(manifest: bytes) -> bytes:
            assert old in manifest
            return manifest.replace(old, new, 1)

        return Damage(name, (MANIFEST,), manifest=change)

    yield swap("json-not-utf8", b'"small"', b'"sm\xe4ll"')
    yield swap("json-key-twice", b'"schema":', b'"schema": "dermedge.bundle/1",\n  "schema":')
    yield swap("json-nan", b'"malignancy": 0.0001', b'"malignancy": NaN')
    yield swap("json-infinity", b'"malignancy": 0.0001', b'"malignancy": 1e999')
    yield swap("json-large-integer", b'"batch": 1', b'"batch": 9007199254740993')
    yield swap("json-half-a-pair", b'"intended_use": ""', b'"intended_use": "\\ud800"')
    yield swap("json-comma", b"]", b",]")
    yield Damage("json-byte-order-mark", (MANIFEST,), manifest=lambda data: b"\xef\xbb\xbf" + data)
    yield Damage("json-utf16", (MANIFEST,), manifest=lambda data: data.decode().encode("utf-16"))
    yield Damage("json-cut", (MANIFEST,), manifest=lambda data: data[:-9])
    yield Damage("json-list", (), manifest=lambda data: b"[]")
    yield Damage("json-empty", (MANIFEST,), manifest=lambda data: b"")


def _manifest() -> Iterator[Damage]:
    """Yield manifests whose values are not those of the contract."""

    def put(name: str, *keys: str | int, to: object, mentions: tuple[str, ...] = ()) -> Damage:
        return Damage(name, mentions, content=_put_value(keys, to))

    def drop(name: str, *keys: str | int) -> Damage:
        return Damage(name, (str(keys[-1]),), content=_drop_value(keys))

    yield put(
        "schema-2", "schema", to="dermedge.bundle/2", mentions=("dermedge.bundle/2", "pgrade")
    )
    yield put("schema-of-others", "schema", to="other/1", mentions=("other/1",))
    yield put("schema-number", "schema", to=1, mentions=("schema",))
    for key in ("schema", "spec", "artifact", "postprocessing", "tolerance", "parity", "files"):
        yield drop(f"no-{key}", key)
    yield Damage("id-wrong", ("id",), manifest=lambda data: _with_id(data, OTHER))
    yield Damage("id-capital", ("id",), manifest=lambda data: _with_id(data, None))
    yield Damage("id-missing", ("id",), manifest=_without_id)
    yield Damage(
        "changed-without-a-new-id", ("id",), manifest=lambda d: d.replace(b"0.45", b"0.95")
    )
    yield drop("no-preprocess", "spec", "preprocess")
    for key in ("size", "fit", "kernel", "background"):
        yield drop(f"no-{key}", "spec", "preprocess", key)
    frame = ("spec", "preprocess")
    yield put("fit-unknown", *frame, "fit", to="cover", mentions=("cover",))
    yield put("kernel-unknown", *frame, "kernel", to="cubic", mentions=("cubic",))
    yield put("size-small", *frame, "size", to=15, mentions=("15",))
    yield put("size-large", *frame, "size", to=4097, mentions=("4097",))
    yield put("size-text", *frame, "size", to="16", mentions=("size",))
    yield put("size-fraction", *frame, "size", to=16.5, mentions=("16.5",))
    yield put("background-short", *frame, "background", to=[255, 255], mentions=("255",))
    yield put("background-large", *frame, "background", to=[0, 0, 256], mentions=("256",))
    yield put("background-true", *frame, "background", to=[0, 0, True], mentions=("ackground",))
    task = ("spec", "tasks", 0)
    yield put("kind-unknown", *task, "kind", to="caption", mentions=("caption",))
    yield put("task-name", *task, "name", to="a/b", mentions=("a/b",))
    yield put("tasks-none", "spec", "tasks", to=[], mentions=("task",))
    twice = [{"name": "malignancy", "kind": "binary", "labels": []}] * 2
    yield put("tasks-twice", "spec", "tasks", to=twice, mentions=("malignancy",))
    label = {"id": "nv", "name": "Naevus", "malignant": False, "codes": {}}
    one = {"name": "malignancy", "kind": "classify", "labels": [label]}
    yield put("labels-few", "spec", "tasks", to=[one], mentions=("malignancy", "nv"))
    same = {**one, "labels": [label, label]}
    yield put("labels-twice", "spec", "tasks", to=[same], mentions=("malignancy", "nv"))
    wrong = {**one, "labels": [label, {**label, "id": "mel", "malignant": "yes"}]}
    yield put("label-malignant", "spec", "tasks", to=[wrong], mentions=("malignant", "yes"))
    yield put("model-name", "spec", "name", to="../toy", mentions=("../toy",))
    yield put("artifact-path", "artifact", "path", to="other.onnx", mentions=("other.onnx",))
    for key in ("target", "format", "path", "precision", "requires", "toolchain"):
        yield drop(f"no-artifact-{key}", "artifact", key)
    for name, value in {"operator": "onnxruntime~=1", "version": "onnxruntime>=1.x"}.items():
        words = ("requirement", value)
        yield put(f"requires-{name}", "artifact", "requires", to=["iOS>=17", value], mentions=words)
    yield put("requires-number", "artifact", "requires", to=[17], mentions=("17",))
    yield put("requires-text", "artifact", "requires", to="iOS>=17", mentions=("requires",))
    yield from _fitted(put, drop)


def _fitted(put: Callable[..., Damage], drop: Callable[..., Damage]) -> Iterator[Damage]:
    """Yield manifests with fitted values or tolerances that cannot be applied."""
    entry = ("postprocessing", "malignancy")
    yield put("fitted-nothing", "postprocessing", to={}, mentions=("malignancy",))
    yield put("fitted-other-task", "postprocessing", "other", to={}, mentions=("other",))
    yield put("fitted-list", *entry, to=[], mentions=("postprocessing",))
    for value in (0, -1.5, "1", True):
        name = f"temperature-{str(value).lower()}"
        yield put(name, *entry, "temperature", to=value, mentions=("emperature",))
    for value in (-0.25, 1.25, "0.5"):
        yield put(f"threshold-{value}", *entry, "threshold", to=value, mentions=("hreshold",))
    for key in ("conformal_quantile", "ood_threshold"):
        yield put(f"fitted-{key}", *entry, key, to=0.5, mentions=(key, "pgrade"))
    yield put("tolerance-nothing", "tolerance", to={}, mentions=("malignancy",))
    yield put("tolerance-other-task", "tolerance", "other", to=0.1, mentions=("other",))
    for value in (0.6, -0.1, "0.1", True, None):
        name = f"tolerance-{str(value).lower()}"
        yield put(name, "tolerance", "malignancy", to=value, mentions=("malignancy",))
    yield put("parity-status", "parity", "host", "status", to="green", mentions=("green",))
    yield drop("parity-without-device", "parity", "device")
    yield put("digest-short", "files", LICENCE, to="ab12", mentions=("ab12",))
    yield put("digest-capital", "files", LICENCE, to="A" * 64, mentions=(LICENCE,))
    yield put("digest-of-the-manifest", "files", MANIFEST, to=OTHER, mentions=(MANIFEST,))


def _paths() -> Iterator[Damage]:
    """Yield bundles with a file whose name is not safe on every system."""
    unsafe = {
        "absolute": "/notes.txt",
        "drive": "C:/notes.txt",
        "backslash": "notes\\a.txt",
        "parent": "../notes.txt",
        "parent-inside": "notes/../a.txt",
        "dot": "./notes.txt",
        "dot-inside": "notes/./a.txt",
        "empty-part": "notes//a.txt",
        "final-dot": "notes/a.",
        "final-dot-of-a-folder": "notes./a",
        "final-space": "notes/a ",
        "control": "notes/\x1fa",
        "delete": "notes/\x7fa",
        "nfd": "notes/a\u0308.txt",
        "less": "notes/<a",
        "greater": "notes/>a",
        "quote": 'notes/"a',
        "bar": "notes/|a",
        "question": "notes/a?",
        "star": "notes/*a",
        "long": f"notes/{'a' * 256}",
    }
    for name, path in unsafe.items():
        yield Damage(f"path-{name}", ("unsafe",), files=_put(path))
    yield Damage("path-case", ("one file",), files=_put(LICENCE.lower()))
    yield Damage("path-case-of-letters", ("one file",), files=_put("Straße", "STRASSE"))
    yield Damage("path-file-and-folder", ("both a file and a folder",), files=_put("LICENSES"))
    system = ("notes/.DS_Store", "._notes", "Thumbs.db")
    for path in system:
        yield Damage(f"system-{path.rpartition('/')[2].strip('.')}", (path,), files=_put(path))


def _files() -> Iterator[Damage]:
    """Yield bundles whose files are not those of the manifest, or are pickles."""
    yield Damage("missing", (LICENCE,), after=lambda files: files.pop(LICENCE))
    yield Damage("missing-manifest", (MANIFEST,), after=lambda files: files.pop(MANIFEST))
    yield Damage("unlisted", ("notes.txt",), after=_put("notes.txt"))
    yield Damage("unlisted-empty", ("notes.txt",), after=_put("notes.txt", content=b""))
    yield Damage("changed", (LICENCE,), after=_put(LICENCE, content=b"CC0-1.1\n"))
    yield Damage("changed-model", ("model.onnx",), after=_put("model.onnx", content=STAND_IN[:-1]))
    yield Damage("emptied-model", ("model.onnx", "empty"), after=_put("model.onnx", content=b""))
    for ending in ("pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill", "cloudpickle"):
        yield Damage(f"pickle-{ending}", (f"a.{ending}", "pickle"), files=_put(f"a.{ending}"))
    yield Damage("pickle-capitals", ("a.PT", "pickle"), files=_put("a.PT"))
    heads = [b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6))]
    for head in heads:
        change = _put("model.onnx", content=head + STAND_IN)
        yield Damage(f"pickle-{head[:2].hex()}", ("model.onnx", "pickle"), files=change)
    # A `.bin` that is the whole artifact must not start like a pickle.
    alone = Damage(
        "pickle-bin-alone",
        ("model.bin", "pickle"),
        files=lambda files: files.update({"model.bin": b"\x80\x04" + files.pop("model.onnx")}),
        content=_put_value(("artifact", "path"), "model.bin"),
    )
    yield alone
    graph = _into_folder(b"", graph=b"\x80\x02.")
    yield Damage("pickle-in-a-folder", ("model.xml", "pickle"), files=graph, content=_folder)


def _zips() -> Iterator[Damage]:
    """Yield zips that dermedge does not write."""
    yield Damage("zip-link", (LICENCE, "link"), pack=_packed({LICENCE: 0o120777}))
    yield Damage("zip-device", (LICENCE,), pack=_packed({LICENCE: 0o020666}))
    yield Damage("zip-compressed", ("model.onnx",), pack=_packed(compress=("model.onnx",)))
    yield Damage("zip-twice", (LICENCE, "twice"), pack=_packed(again=(LICENCE,)))
    yield Damage("zip-folder", ("notes/",), pack=_packed(folders=("notes/",)))
    yield Damage("zip-encrypted", (), pack=_encrypted)
    yield Damage("zip-cut", (), pack=lambda files: zip_bytes(files)[:-30])
    yield Damage("zip-one-folder-down", (f"small/{MANIFEST}",), pack=_one_down)
    yield Damage("zip-of-nothing", (), pack=lambda files: zip_bytes({}))
    yield Damage("zip-is-text", (), pack=lambda files: b"This is no zip.\n")
    yield Damage("zip-is-empty", ("empty",), pack=lambda files: b"")


def _put(*paths: str, content: bytes = b"text\n") -> Change:
    """Return a change that writes files."""
    return lambda files: files.update(dict.fromkeys(paths, content))


def _put_value(keys: tuple[str | int, ...], value: object) -> Change:
    def change(content: Json) -> None:
        *parents, last = keys
        target: Any = content
        for key in parents:
            target = target[key]
        target[last] = value

    return change


def _drop_value(keys: tuple[str | int, ...]) -> Change:
    def change(content: Json) -> None:
        *parents, last = keys
        target: Any = content
        for key in parents:
            target = target[key]
        del target[last]

    return change


def _require(*names: str) -> Change:
    return _put_value(("artifact", "requires"), list(names))


def _fit(**values: float | None) -> Change:
    return _put_value(("postprocessing", "malignancy"), values)


def _edges(content: Json) -> None:
    """Set every number to the end of its range."""
    content["postprocessing"]["malignancy"] = {"temperature": 1e-300, "threshold": 1}
    content["tolerance"]["malignancy"] = 0.5
    content["spec"]["preprocess"]["background"] = [0, 255, 0]


def _add_unknown_keys(content: Json) -> None:
    content["added"] = {"\ufb33": 1e20, "\U0001f600": [1e-7, -0.0, 5e-324, 1e21], "": "é\x7f"}
    content["spec"]["added"] = content["artifact"]["added"] = None
    content["postprocessing"]["malignancy"]["added"] = 1.0
    content["spec"]["intended_use"] = content["artifact"]["details"] = None


def _into_folder(weights: bytes, graph: bytes = b"<net/>") -> Change:
    def change(files: Files) -> None:
        del files["model.onnx"]
        files.update({"model/model.xml": graph, "model/model.bin": weights + b"\0" * 8})

    return change


def _folder(content: Json) -> None:
    content["artifact"] |= {"path": "model", "format": "openvino"}


def _with_id(manifest: bytes, new: str | None) -> bytes:
    """Replace the id, or write it in capitals if `new` is None."""
    at = manifest.index(b'"id": "') + 7
    old = manifest[at : at + 64]
    return manifest[:at] + (new.encode() if new else old.upper()) + manifest[at + 64 :]


def _without_id(manifest: bytes) -> bytes:
    at = manifest.index(b'"id": "')
    return manifest[:at] + manifest[manifest.index(b"\n", at) :].lstrip()


def _packed(
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


def _encrypted(files: Files) -> bytes:
    """Set the flag of encryption in every entry."""
    data = bytearray(zip_bytes(files))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 4)
    return bytes(data)


def _one_down(files: Files) -> bytes:
    return zip_bytes({f"small/{name}": content for name, content in files.items()})
