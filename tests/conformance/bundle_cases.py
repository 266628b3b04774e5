"""Damaged bundles: each breaks one rule, and is correctly sealed otherwise."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from conformance.damage import (
    LICENCE,
    STAND_IN,
    Damage,
    add_unknown_keys,
    drop_value,
    encrypted,
    fit,
    into_folder,
    name_folder,
    one_down,
    packed,
    put_files,
    put_value,
    require,
    set_to_the_ends,
    with_id,
    without_id,
    write_bundle_zip,
)
from conformance.writing import Files, cases_json
from dermedge_runtime.container import MANIFEST, zip_bytes
from dermedge_runtime.errors import BundleError

OTHER = "0" * 64


def bundle_files() -> Files:
    """Return `bundles.json` and the zips."""
    files: Files = {}
    entries = []
    damages = (_valid(), _json(), _manifest(), _abstain(), _paths(), _files(), _zips())
    for damage in chain(*damages):
        path = f"bundles/{damage.name}.zip"
        assert path not in files, path
        files[path] = write_bundle_zip(damage)
        error = None if damage.valid else BundleError.__name__
        mentions = list(damage.mentions)
        entries.append({"name": damage.name, "bundle": path, "error": error, "mentions": mentions})
    return {"bundles.json": cases_json(entries), **files}


def _valid() -> Iterator[Damage]:
    """Yield bundles that a reader must open."""
    yield Damage("plain", valid=True)
    yield Damage("unknown-keys", content=add_unknown_keys, valid=True)
    yield Damage("compact", manifest=lambda data: b"".join(data.split(b"\n  ")), valid=True)
    yield Damage("names", files=put_files("notes/ä b 中.txt"), valid=True)
    yield Damage("names-of-files-alike", files=put_files("model.onnx.txt"), valid=True)
    yield Damage("requires-other-names", content=require("iOS>=17", "JetPack"), valid=True)
    yield Damage("nothing-fitted", content=fit(temperature=None, threshold=None), valid=True)
    yield Damage("edges", content=set_to_the_ends, valid=True)
    yield Damage("quality-of-one", content=put_value(("quality",), {"dark": 0}), valid=True)
    yield Damage("empty-file", files=put_files("empty.txt", content=b""), valid=True)
    # Only a `.bin` in an artifact's folder may start like a pickle.
    yield Damage("weights", files=into_folder(b"\x80\x02."), content=name_folder, valid=True)


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
        return Damage(name, mentions, content=put_value(keys, to))

    def drop(name: str, *keys: str | int) -> Damage:
        return Damage(name, (str(keys[-1]),), content=drop_value(keys))

    yield put(
        "schema-2", "schema", to="dermedge.bundle/2", mentions=("dermedge.bundle/2", "pgrade")
    )
    yield put("schema-of-others", "schema", to="other/1", mentions=("other/1",))
    yield put("schema-number", "schema", to=1, mentions=("schema",))
    for key in ("schema", "spec", "artifact", "postprocessing", "tolerance", "parity", "files"):
        yield drop(f"no-{key}", key)
    yield Damage("id-wrong", ("id",), manifest=lambda data: with_id(data, OTHER))
    yield Damage("id-capital", ("id",), manifest=lambda data: with_id(data, None))
    yield Damage("id-missing", ("id",), manifest=without_id)
    yield Damage(
        "changed-without-a-new-id", ("id",), manifest=lambda d: d.replace(b"0.45", b"0.95")
    )
    yield drop("no-preprocess", "spec", "preprocess")
    for key in ("size", "fit", "kernel", "background"):
        yield drop(f"no-{key}", "spec", "preprocess", key)
    frame = ("spec", "preprocess")
    yield put("fit-unknown", *frame, "fit", to="cover", mentions=("cover",))
    yield put("kernel-unknown", *frame, "kernel", to="cubic", mentions=("cubic",))
    yield put("quality-text", "quality", to="sharp", mentions=("quality",))
    for name, value in (("fraction", 540.5), ("large", 256), ("negative", -1)):
        yield put(f"quality-{name}", "quality", to={"dark": value}, mentions=("dark", str(value)))
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
    both = {**one, "labels": [label, {**label, "id": "mel"}]}
    cam = {"name": "malignancy", "kind": "cam", "labels": both["labels"][::-1]}
    yield put("cam-of-nothing", "spec", "tasks", to=[cam], mentions=("malignancy", "labels"))
    other = [{**both, "name": "type"}, cam]
    yield put("cam-of-other-labels", "spec", "tasks", to=other, mentions=("malignancy", "labels"))
    wrong = {**one, "labels": [label, {**label, "id": "mel", "malignant": "yes"}]}
    yield put("label-malignant", "spec", "tasks", to=[wrong], mentions=("malignant", "yes"))
    yield put("model-name", "spec", "name", to="../toy", mentions=("../toy",))
    yield put("artifact-path", "artifact", "path", to="other.onnx", mentions=("other.onnx",))
    for key in ("target", "format", "path", "precision", "requires", "toolchain"):
        yield drop(f"no-artifact-{key}", "artifact", key)
    unreadable = {"operator": "onnxruntime~=1", "version": "onnxruntime>=1.x"}
    for name, value in unreadable.items():
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
    yield put("fitted-ood_threshold", *entry, "ood_threshold", to=0.5, mentions=("ood_threshold",))
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


def _abstain() -> Iterator[Damage]:
    """Yield bundles with conformal sets, `rule_in` and OOD tasks, most of them malformed."""
    labels = [{"id": name, "name": name.title()} for name in ("a", "b")]
    tasks = [
        {"name": "malignancy", "kind": "binary"},
        {"name": "type", "kind": "classify", "labels": labels},
        {"name": "foreign", "kind": "ood"},
    ]
    sets = {"method": "raps", "coverage": 0.9, "quantiles": [0.5, None], "penalty": 0.1, "free": 1}

    def damage(
        name: str, changes: dict[str, Any], *mentions: str, task: str = "type", valid: bool = False
    ) -> Damage:
        def change(content: Any) -> None:
            content["spec"]["tasks"] = tasks
            content["tolerance"] = dict.fromkeys(("malignancy", "type", "foreign"), 0.1)
            content["postprocessing"] = {
                "malignancy": {"temperature": 1.5, "threshold": 0.25, "rule_in": 0.75},
                "type": {"conformal": sets},
                "foreign": {"ood_threshold": -2.5},
            }
            content["postprocessing"][task] |= changes

        return Damage(f"abstain-{name}", mentions, content=change, valid=valid)

    yield damage("plain", {}, valid=True)
    yield damage("nothing", {"conformal": None, "rule_in": None, "ood_threshold": None}, valid=True)
    edges = {"method": "lac", "coverage": 1e-9, "quantiles": [0, 0], "penalty": 0, "free": 0}
    yield damage("edges", {"conformal": edges}, valid=True)
    short = {"method": "aps", "coverage": 0.5, "quantiles": [None, None]}
    yield damage("no-penalty", {"conformal": short}, valid=True)
    yield damage("old-name", {"conformal_quantile": 0.5}, valid=True)
    for name, value in {"0.2": 0.2, "1.5": 1.5, "text": "0.5", "true": True}.items():
        yield damage(f"rule_in-{name}", {"rule_in": value}, "rule_in", task="malignancy")
    yield damage("rule_in-alone", {"threshold": None}, "rule_in", task="malignancy")
    yield damage("rule_in-elsewhere", {"threshold": 0.2, "rule_in": 0.5}, "rule_in", "type")
    for name, value in {"text": "1", "true": True, "list": [1.0]}.items():
        yield damage(
            f"ood_threshold-{name}", {"ood_threshold": value}, "ood_threshold", task="foreign"
        )
    yield damage("ood_threshold-elsewhere", {"ood_threshold": 1.0}, "ood_threshold", "type")
    yield damage("conformal-number", {"conformal": 0.9}, "conformal")
    yield damage("conformal-elsewhere", {"conformal": sets}, "conformal", task="malignancy")
    yield damage("conformal-of-ood", {"conformal": sets}, "conformal", task="foreign")
    for key in ("method", "coverage", "quantiles"):
        part = {name: value for name, value in sets.items() if name != key}
        yield damage(f"no-{key}", {"conformal": part}, key)
    wrong: dict[str, tuple[str, object]] = {
        "method-unknown": ("method", "topk"),
        "method-number": ("method", 1),
        "coverage-0": ("coverage", 0),
        "coverage-1": ("coverage", 1),
        "coverage-text": ("coverage", "0.9"),
        "quantiles-number": ("quantiles", 0.5),
        "quantiles-few": ("quantiles", [0.5]),
        "quantiles-many": ("quantiles", [0.5, 0.5, 0.5]),
        "quantile-negative": ("quantile", [0.5, -0.25]),
        "quantile-text": ("quantile", ["0.5", None]),
        "quantile-true": ("quantile", [True, None]),
        "penalty-negative": ("penalty", -0.5),
        "penalty-text": ("penalty", "0.5"),
        "free-negative": ("free", -1),
        "free-fraction": ("free", 1.5),
        "free-true": ("free", True),
    }
    for name, (key, value) in wrong.items():
        changed = {**sets, "quantiles" if key == "quantile" else key: value}
        yield damage(name, {"conformal": changed}, key)


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
        yield Damage(f"path-{name}", ("unsafe",), files=put_files(path))
    yield Damage("path-case", ("one file",), files=put_files(LICENCE.lower()))
    yield Damage("path-case-of-letters", ("one file",), files=put_files("Straße", "STRASSE"))
    yield Damage("path-file-and-folder", ("both a file and a folder",), files=put_files("LICENSES"))
    system = ("notes/.DS_Store", "._notes", "Thumbs.db")
    for path in system:
        yield Damage(f"system-{path.rpartition('/')[2].strip('.')}", (path,), files=put_files(path))


def _files() -> Iterator[Damage]:
    """Yield bundles whose files are not those of the manifest, or are pickles."""
    yield Damage("missing", (LICENCE,), after=lambda files: files.pop(LICENCE))
    yield Damage("missing-manifest", (MANIFEST,), after=lambda files: files.pop(MANIFEST))
    yield Damage("unlisted", ("notes.txt",), after=put_files("notes.txt"))
    yield Damage("unlisted-empty", ("notes.txt",), after=put_files("notes.txt", content=b""))
    yield Damage("changed", (LICENCE,), after=put_files(LICENCE, content=b"CC0-1.1\n"))
    yield Damage(
        "changed-model", ("model.onnx",), after=put_files("model.onnx", content=STAND_IN[:-1])
    )
    yield Damage(
        "emptied-model", ("model.onnx", "empty"), after=put_files("model.onnx", content=b"")
    )
    for ending in ("pkl", "pickle", "pt", "pth", "ckpt", "joblib", "dill", "cloudpickle"):
        yield Damage(f"pickle-{ending}", (f"a.{ending}", "pickle"), files=put_files(f"a.{ending}"))
    yield Damage("pickle-capitals", ("a.PT", "pickle"), files=put_files("a.PT"))
    heads = [b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6))]
    for head in heads:
        change = put_files("model.onnx", content=head + STAND_IN)
        yield Damage(f"pickle-{head[:2].hex()}", ("model.onnx", "pickle"), files=change)
    # A `.bin` that is the whole artifact must not start like a pickle.
    alone = Damage(
        "pickle-bin-alone",
        ("model.bin", "pickle"),
        files=lambda files: files.update({"model.bin": b"\x80\x04" + files.pop("model.onnx")}),
        content=put_value(("artifact", "path"), "model.bin"),
    )
    yield alone
    graph = into_folder(b"", graph=b"\x80\x02.")
    yield Damage("pickle-in-a-folder", ("model.xml", "pickle"), files=graph, content=name_folder)


def _zips() -> Iterator[Damage]:
    """Yield zips that dermedge does not write."""
    yield Damage("zip-link", (LICENCE, "link"), pack=packed({LICENCE: 0o120777}))
    yield Damage("zip-device", (LICENCE,), pack=packed({LICENCE: 0o020666}))
    yield Damage("zip-compressed", ("model.onnx",), pack=packed(compress=("model.onnx",)))
    yield Damage("zip-twice", (LICENCE, "twice"), pack=packed(again=(LICENCE,)))
    yield Damage("zip-folder", ("notes/",), pack=packed(folders=("notes/",)))
    yield Damage("zip-encrypted", (), pack=encrypted)
    yield Damage("zip-cut", (), pack=lambda files: zip_bytes(files)[:-30])
    yield Damage("zip-one-folder-down", (f"small/{MANIFEST}",), pack=one_down)
    yield Damage("zip-of-nothing", (), pack=lambda files: zip_bytes({}))
    yield Damage("zip-is-text", (), pack=lambda files: b"This is no zip.\n")
    yield Damage("zip-is-empty", ("empty",), pack=lambda files: b"")
