"""Test that bundles are written whole and alike, and that damage is refused."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from conftest import TOY_SPEC, folder_bytes, toy_cases, toy_content
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.canonical_json import canonical_json, pretty_json
from dermedge_runtime.container import zip_bytes
from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.golden import golden_files, read_golden
from dermedge_runtime.spec import Postprocessing

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "runtimes" / "bundle.schema.json").read_text("utf-8"))
FILES = sorted(["manifest.json", *toy_content()["files"]])


def manifest_of(path):
    return json.loads((path / "manifest.json").read_text("utf-8"))


def rewrite(path, edit, *, digests=False):
    """Edit the manifest, and make its id (and on request its digests) match."""
    manifest = manifest_of(path)
    edit(manifest)
    if digests:
        manifest["files"] = {
            n: sha256_hex(data) for n, data in folder_bytes(path).items() if n != "manifest.json"
        }
    manifest["id"] = sha256_hex(canonical_json({k: v for k, v in manifest.items() if k != "id"}))
    (path / "manifest.json").write_bytes(pretty_json(manifest))
    return manifest


def at(*keys, value=None):
    """Return an edit that sets or (with None) deletes the value at nested keys."""

    def edit(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        if value is None:
            del manifest[keys[-1]]
        else:
            manifest[keys[-1]] = value

    return edit


def test_a_written_bundle_is_read_back(toy_bundle_path):
    bundle, content = Bundle.open(toy_bundle_path), toy_content()
    for name in ("spec", "artifact", "postprocessing", "tolerance", "parity"):
        assert getattr(bundle, name) == content[name]
    assert {name: bundle.read(name) for name in bundle.files} == content["files"]
    for case, original in zip(bundle.golden(), toy_cases(), strict=True):
        assert (case.name, case.image, case.prediction) == (
            original.name,
            original.image,
            original.prediction,
        )
        np.testing.assert_array_equal(case.tensor, original.tensor, strict=True)
        for got, want in ((case.reference, original.reference), (case.expected, original.expected)):
            assert got.keys() == want.keys() == {"diagnosis", "malignancy"}
            for output in want:
                np.testing.assert_array_equal(got[output], want[output], strict=True)


def test_id_is_the_digest_of_the_canonical_manifest(toy_bundle_path):
    manifest = manifest_of(toy_bundle_path)
    identity = manifest.pop("id")
    assert identity == sha256_hex(canonical_json(manifest)) == Bundle.open(toy_bundle_path).id


def test_id_covers_labels_thresholds_and_files(tmp_path):
    content = toy_content()
    tasks = (replace(TOY_SPEC.tasks[0], labels=TOY_SPEC.tasks[0].labels[::-1]), TOY_SPEC.tasks[1])
    variants = [
        {},
        {"spec": replace(TOY_SPEC, tasks=tasks)},
        {"postprocessing": {"malignancy": Postprocessing(threshold=0.41)}},
        {"tolerance": {"diagnosis": 1e-3, "malignancy": 2e-3}},
        {"files": {**content["files"], "model.fake": b"means of colour"}},
    ]
    ids = [
        write_bundle(tmp_path / str(i), **{**content, **change}).id
        for i, change in enumerate(variants)
    ]
    assert len(set(ids)) == len(ids)


def test_the_same_content_gives_the_same_bytes(toy_bundle_path, tmp_path):
    content = toy_content()
    content["files"] = dict(reversed(content["files"].items()))
    content["postprocessing"] = dict(reversed(content["postprocessing"].items()))
    again = write_bundle(tmp_path / "again", **content)
    assert folder_bytes(again.path) == folder_bytes(toy_bundle_path)
    one, two = (again.save(tmp_path / name, zipped=True).path for name in ("1.zip", "2.zip"))
    assert one.read_bytes() == two.read_bytes()


def test_folder_to_zip_and_back(toy_bundle_path, tmp_path):
    folder = Bundle.open(toy_bundle_path)
    zipped = folder.save(tmp_path / "toy.zip", zipped=True)
    back = zipped.save(tmp_path / "back")
    assert folder_bytes(back.path) == folder_bytes(toy_bundle_path)
    assert (
        back.save(tmp_path / "again.zip", zipped=True).path.read_bytes() == zipped.path.read_bytes()
    )
    assert replace(zipped, path=folder.path) == folder == replace(back, path=folder.path)
    assert zipped.read("model.fake") == folder.read("model.fake")
    assert [case.name for case in zipped.golden()] == [case.name for case in folder.golden()]
    with zipfile.ZipFile(zipped.path) as archive:
        infos = archive.infolist()
        assert [info.filename for info in infos] == FILES
        assert {(info.compress_type, info.date_time) for info in infos} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))
        }


@pytest.mark.parametrize("zipped", [False, True])
def test_save_overwrites_only_when_asked(toy_bundle_path, tmp_path, zipped):
    bundle = Bundle.open(toy_bundle_path)
    out = tmp_path / "out"
    bundle.save(out, zipped=zipped)
    with pytest.raises(UsageError, match=r"exists already"):
        bundle.save(out, zipped=zipped)
    assert bundle.save(out, zipped=zipped, overwrite=True).id == bundle.id


def test_neither_form_replaces_a_folder_that_is_not_a_bundle(toy_bundle_path, tmp_path):
    bundle = Bundle.open(toy_bundle_path)
    album = tmp_path / "album"
    album.mkdir()
    (album / "photo.jpg").write_bytes(b"dear")
    for zipped in (False, True):
        with pytest.raises(UsageError, match=r"album"):
            bundle.save(album, zipped=zipped, overwrite=True)
    assert folder_bytes(album) == {"photo.jpg": b"dear"}


@pytest.mark.parametrize("position", [0, 0.5, -1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused(toy_bundle_path, name, position):
    data = bytearray((toy_bundle_path / name).read_bytes())
    data[int(len(data) * position) if position == 0.5 else position] ^= 0x01
    (toy_bundle_path / name).write_bytes(data)
    with pytest.raises(BundleError, match=name.replace("manifest.json", "manifest")):
        Bundle.open(toy_bundle_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(toy_bundle_path, name):
    (toy_bundle_path / name).unlink()
    with pytest.raises(BundleError, match=f"misses '{name}'"):
        Bundle.open(toy_bundle_path)


@pytest.mark.parametrize("name", ["extra.txt", "golden/extra.png", ".hidden", "reports/x/y.html"])
def test_an_unlisted_file_is_refused(toy_bundle_path, name):
    (toy_bundle_path / name).parent.mkdir(parents=True, exist_ok=True)
    (toy_bundle_path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=name):
        Bundle.open(toy_bundle_path)


def test_a_truncated_and_an_empty_file_are_refused(toy_bundle_path):
    model = toy_bundle_path / "model.fake"
    for data in (model.read_bytes()[:-1], b""):
        model.write_bytes(data)
        with pytest.raises(BundleError, match=r"model\.fake"):
            Bundle.open(toy_bundle_path)


UNSAFE = [
    "../escape",
    "golden/../../escape",
    "/etc/escape",
    "C:/escape",
    "C:escape",
    "a\\b",
    "a//b",
    "./a",
    "a/",
    "a/.",
    "a\x00b",
    "a\nb",
    "a.",
    "a ",
    "e\u0301",
    "MODEL.fake",
    "model.fake/inside",
    "Golden",
    "manifest.json",
    "Manifest.json",
    "",
]


@pytest.mark.parametrize("name", UNSAFE)
def test_an_unsafe_path_is_refused_by_reader_and_writer(toy_bundle_path, tmp_path, name):
    rewrite(toy_bundle_path, at("files", name, value="0" * 64))
    with pytest.raises(BundleError):
        Bundle.open(toy_bundle_path)
    before = sorted(tmp_path.rglob("*"))
    content = toy_content()
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "new", **{**content, "files": {**content["files"], name: b"x"}})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_in_other_alphabets_is_fine(tmp_path):
    content = toy_content()
    content["files"]["LICENSES/Lizenz für 日本.txt"] = b"x"
    bundle = write_bundle(tmp_path / "new", **content)
    assert bundle.save(tmp_path / "new.zip", zipped=True).id == bundle.id


@pytest.mark.parametrize("kind", ["file", "folder", "outside", "pipe"])
def test_a_link_is_refused(toy_bundle_path, tmp_path, kind):
    if kind == "file":
        (toy_bundle_path / "model.fake").rename(tmp_path / "model.fake")
        (toy_bundle_path / "model.fake").symlink_to(tmp_path / "model.fake")
    elif kind == "folder":
        (toy_bundle_path / "golden").rename(tmp_path / "golden")
        (toy_bundle_path / "golden").symlink_to(tmp_path / "golden")
    elif kind == "outside":
        (toy_bundle_path / "loop").symlink_to(toy_bundle_path)
    else:
        os.mkfifo(toy_bundle_path / "pipe")
    with pytest.raises(BundleError, match=r"link"):
        Bundle.open(toy_bundle_path)


def test_a_link_to_a_whole_bundle_is_fine(toy_bundle_path, tmp_path):
    (tmp_path / "current").symlink_to(toy_bundle_path)
    assert Bundle.open(tmp_path / "current").id == Bundle.open(toy_bundle_path).id


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in entries:
            archive.writestr(info, data)


def zip_entries(bundle):
    return [(zipfile.ZipInfo(name), data) for name, data in folder_bytes(bundle).items()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "kind", ["fine", "twice", "compressed", "link", "folder", "escape", "encrypted"]
)
def test_an_unsafe_zip_is_refused(toy_bundle_path, tmp_path, kind):
    entries, extra = zip_entries(toy_bundle_path), zipfile.ZipInfo("model.fake")
    if kind == "twice":
        entries.append((extra, b"means of colours"))
    elif kind == "compressed":
        entries[0][0].compress_type = zipfile.ZIP_DEFLATED
    elif kind == "link":
        entries[0][0].external_attr = 0o120777 << 16
    elif kind == "folder":
        entries.append((zipfile.ZipInfo("golden/"), b""))
    elif kind == "escape":
        entries.append((zipfile.ZipInfo("../escape"), b"x"))
    write_zip(tmp_path / "x.zip", entries)
    if kind == "encrypted":
        data = bytearray((tmp_path / "x.zip").read_bytes())
        data[data.index(b"PK\x01\x02") + 8] |= 1
        (tmp_path / "x.zip").write_bytes(data)
    if kind == "fine":
        assert Bundle.open(tmp_path / "x.zip").id == Bundle.open(toy_bundle_path).id
    else:
        with pytest.raises(BundleError):
            Bundle.open(tmp_path / "x.zip")


def test_a_cut_zip_is_refused(toy_bundle_path, tmp_path):
    data = zip_bytes(folder_bytes(toy_bundle_path))
    for length in (4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "x.zip").write_bytes(data[:length])
        with pytest.raises(BundleError, match=r"zip"):
            Bundle.open(tmp_path / "x.zip")


@pytest.mark.parametrize("schema", ["dermedge.bundle/2", "dermedge.bundle/10"])
def test_a_newer_schema_says_upgrade(toy_bundle_path, schema):
    rewrite(toy_bundle_path, at("schema", value=schema))
    with pytest.raises(BundleError, match=rf"{schema}.*Upgrade dermedge"):
        Bundle.open(toy_bundle_path)


@pytest.mark.parametrize("schema", ["other/1", "dermedge.bundle/x", "dermedge.bundle"])
def test_a_foreign_schema_is_named(toy_bundle_path, schema):
    rewrite(toy_bundle_path, at("schema", value=schema))
    with pytest.raises(BundleError, match=rf"{schema}.*no dermedge bundle"):
        Bundle.open(toy_bundle_path)


def test_missing_preprocessing_is_refused(toy_bundle_path):
    rewrite(toy_bundle_path, at("spec", "preprocess"))
    with pytest.raises(BundleError, match=r"preprocess"):
        Bundle.open(toy_bundle_path)


def test_a_changed_manifest_is_refused_by_its_id(toy_bundle_path):
    manifest = manifest_of(toy_bundle_path)
    manifest["postprocessing"]["malignancy"]["threshold"] = 0.99
    (toy_bundle_path / "manifest.json").write_bytes(pretty_json(manifest))
    with pytest.raises(BundleError, match=r"manifest .* was changed"):
        Bundle.open(toy_bundle_path)


def test_unknown_keys_are_minor_additions(toy_bundle_path):
    def edit(manifest):
        for part in (
            manifest,
            manifest["spec"],
            manifest["spec"]["preprocess"],
            manifest["artifact"],
        ):
            part["added_later"] = {"x": [1.5, None]}
        manifest["postprocessing"]["diagnosis"]["added_later"] = 1

    rewrite(toy_bundle_path, edit)
    jsonschema.validate(manifest_of(toy_bundle_path), SCHEMA)
    assert Bundle.open(toy_bundle_path).spec == TOY_SPEC


def test_a_pickle_is_refused_by_name_and_by_content(toy_bundle_path, tmp_path):
    content = toy_content()
    for name in ("weights.pt", "notes/x.PKL", "x.pth", "x.ckpt", "x.joblib", "x.pickle"):
        with pytest.raises(BundleError, match=rf"{name}.* is a pickle"):
            write_bundle(tmp_path / "new", **{**content, "files": {**content["files"], name: b"x"}})
    torch_like = zip_bytes({"archive/data.pkl": pickle.dumps([1])})
    for data in (torch_like, *(pickle.dumps({"a": 1}, protocol) for protocol in (2, 3, 4, 5))):
        with pytest.raises(BundleError, match=r"model\.fake.* is a pickle"):
            write_bundle(
                tmp_path / "new", **{**content, "files": {**content["files"], "model.fake": data}}
            )
        (toy_bundle_path / "model.fake").write_bytes(data)
        rewrite(toy_bundle_path, lambda manifest: None, digests=True)
        with pytest.raises(BundleError, match=r"model\.fake.* is a pickle"):
            Bundle.open(toy_bundle_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.dermedge"]


def test_an_artifact_may_be_a_folder_with_raw_weights(tmp_path):
    content = toy_content()
    files = {name: data for name, data in content["files"].items() if name != "model.fake"}
    for weights in (b"\x80\x04 raw", b"PK\x03\x04 raw"):
        files |= {"model/net.xml": b"<net/>", "model/net.bin": weights}
        artifact = replace(content["artifact"], path="model")
        bundle = write_bundle(
            tmp_path / "new", **{**content, "artifact": artifact, "files": files}, overwrite=True
        )
        assert bundle.read("model/net.bin") == weights


CONFORMAL = ("postprocessing", "diagnosis", "conformal")


def conformal(**changes):
    sets = {"method": "lac", "coverage": 0.9, "quantiles": [0.5, 0.5, None]}
    return at(*CONFORMAL, value=sets | changes)


BROKEN = {
    "no schema": at("schema"),
    "schema of another type": at("schema", value=1),
    "no spec": at("spec"),
    "spec is a list": at("spec", value=[1]),
    "no tasks": at("spec", "tasks", value=[]),
    "unknown kind": at("spec", "tasks", 0, "kind", value="caption"),
    "one label": at("spec", "tasks", 0, "labels", value=[{"id": "a", "name": "a"}]),
    "no labels": at("spec", "tasks", 0, "labels"),
    "malignant is text": at("spec", "tasks", 0, "labels", 0, "malignant", value="no"),
    "name is a path": at("spec", "name", value="../x"),
    "no preprocessing": at("spec", "preprocess"),
    "tiny size": at("spec", "preprocess", "size", value=8),
    "huge size": at("spec", "preprocess", "size", value=5000),
    "size is a fraction": at("spec", "preprocess", "size", value=32.5),
    "unknown fit": at("spec", "preprocess", "fit", value="cover"),
    "unknown kernel": at("spec", "preprocess", "kernel", value="lanczos"),
    "background of two": at("spec", "preprocess", "background", value=[1, 2]),
    "background too bright": at("spec", "preprocess", "background", value=[1, 2, 256]),
    "no artifact": at("artifact"),
    "no artifact path": at("artifact", "path"),
    "no precision": at("artifact", "precision"),
    "requires is text": at("artifact", "requires", value="onnxruntime"),
    "temperature zero": at("postprocessing", "diagnosis", "temperature", value=0),
    "temperature is text": at("postprocessing", "diagnosis", "temperature", value="1"),
    "threshold above one": at("postprocessing", "malignancy", "threshold", value=1.5),
    "rule_in above one": at("postprocessing", "malignancy", "rule_in", value=1.5),
    "rule_in without a threshold": at("postprocessing", "diagnosis", "rule_in", value=0.5),
    "ood_threshold is text": at("postprocessing", "diagnosis", "ood_threshold", value="1"),
    "conformal is a number": at("postprocessing", "diagnosis", "conformal", value=0.9),
    "conformal without quantiles": at(*CONFORMAL, value={"method": "lac", "coverage": 0.9}),
    "unknown conformal method": conformal(method="topk"),
    "coverage is all": conformal(coverage=1),
    "coverage is nothing": conformal(coverage=0),
    "negative quantile": conformal(quantiles=[0.5, -0.1, None]),
    "quantile is true": conformal(quantiles=[0.5, True, None]),
    "negative penalty": conformal(method="raps", penalty=-0.5),
    "free is a fraction": conformal(method="raps", free=1.5),
    "tolerance negative": at("tolerance", "diagnosis", value=-0.1),
    "tolerance unbounded": at("tolerance", "diagnosis", value=0.51),
    "tolerance is text": at("tolerance", "diagnosis", value="0.1"),
    "tolerance is true": at("tolerance", "diagnosis", value=True),
    "no device parity": at("parity", "device"),
    "unknown parity": at("parity", "host", "status", value="green"),
    "parity is text": at("parity", "host", value="passed"),
    "no files": at("files", value={}),
    "digest too short": at("files", "model.fake", value="00"),
    "digest in capitals": at("files", "model.fake", value="A" * 64),
    "absolute path": at("files", "/x", value="0" * 64),
    "path upwards": at("files", "a/../x", value="0" * 64),
    "a pickle": at("files", "x.PTH", value="0" * 64),
    "manifest lists itself": at("files", "manifest.json", value="0" * 64),
}


@pytest.mark.parametrize("edit", BROKEN.values(), ids=BROKEN.keys())
def test_schema_and_reader_refuse_the_same_manifests(toy_bundle_path, edit):
    jsonschema.validate(manifest_of(toy_bundle_path), SCHEMA)
    manifest = rewrite(toy_bundle_path, edit)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)
    with pytest.raises(BundleError) as refused:
        Bundle.open(toy_bundle_path)
    assert "SHA-256 does not fit" not in str(refused.value)
    assert "was changed" not in str(refused.value)


BROKEN_BEYOND_SCHEMA = {
    "tolerance misses a task": at("tolerance", "malignancy"),
    "tolerance of no task": at("tolerance", "other", value=0.1),
    "postprocessing misses a task": at("postprocessing", "malignancy"),
    "artifact not listed": at("artifact", "path", value="other.onnx"),
    "artifact outside": at("artifact", "path", value="../model.fake"),
    "label twice": at("spec", "tasks", 0, "labels", 0, "id", value="mel"),
    "rule_in below the threshold": at("postprocessing", "malignancy", "rule_in", value=0.01),
    "rule_in of another task": at(
        "postprocessing", "diagnosis", value={"threshold": 0.2, "rule_in": 0.5}
    ),
    "ood_threshold of another task": at("postprocessing", "diagnosis", "ood_threshold", value=1.0),
    "conformal of a binary task": at(
        "postprocessing",
        "malignancy",
        "conformal",
        value={"method": "lac", "coverage": 0.9, "quantiles": []},
    ),
    "quantiles of other labels": conformal(quantiles=[0.5]),
    "task twice": at("spec", "tasks", 0, "name", value="malignancy"),
}


@pytest.mark.parametrize("edit", BROKEN_BEYOND_SCHEMA.values(), ids=BROKEN_BEYOND_SCHEMA.keys())
def test_reader_refuses_faults_that_a_schema_cannot_express(toy_bundle_path, edit):
    rewrite(toy_bundle_path, edit)
    with pytest.raises(BundleError) as refused:
        Bundle.open(toy_bundle_path)
    assert "was changed" not in str(refused.value)


@pytest.mark.parametrize("name", UNSAFE)
def test_schema_refuses_unsafe_paths(toy_bundle_path, name):
    other_files_needed = {"MODEL.fake", "model.fake/inside", "Golden", "e\u0301"}
    manifest = rewrite(toy_bundle_path, at("files", name, value="0" * 64))
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(manifest) == (
        name in other_files_needed
    )


def test_the_schema_itself_is_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b'{"a": NaN}', b"\xff", b'"x"', b"[" * 100_000]
)
def test_a_manifest_that_is_no_object_is_refused(toy_bundle_path, data):
    (toy_bundle_path / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(toy_bundle_path)


def test_a_manifest_without_canonical_form_is_refused(toy_bundle_path):
    text = (toy_bundle_path / "manifest.json").read_text("utf-8")
    (toy_bundle_path / "manifest.json").write_text(text.replace("Tests only.", r"\ud800"), "utf-8")
    with pytest.raises(BundleError, match=r"surrogate"):
        Bundle.open(toy_bundle_path)


def test_a_manifest_that_would_fill_the_memory_is_refused(toy_bundle_path):
    with (toy_bundle_path / "manifest.json").open("ab") as stream:
        stream.write(b" " * (1 << 24))
    with pytest.raises(BundleError, match=r"manifest\.json .* has over 16777216 bytes"):
        Bundle.open(toy_bundle_path)


def test_a_path_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.dermedge"):
        Bundle.open(tmp_path / "gone.dermedge")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07onnx")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, found in (
        ("model.onnx", "neither"),
        ("empty", r"is empty \(0 bytes\)"),
        ("folder", r"misses 'manifest\.json'"),
    ):
        with pytest.raises(BundleError, match=rf"{name}.*{found}"):
            Bundle.open(tmp_path / name)


def test_a_file_that_changes_after_opening_is_noticed(toy_bundle_path, tmp_path):
    bundle = Bundle.open(toy_bundle_path)
    (toy_bundle_path / "model.fake").write_bytes(b"means of colourz")
    with pytest.raises(BundleError, match=r"model\.fake.*changed since"):
        bundle.read("model.fake")
    with pytest.raises(BundleError, match=r"changed since"):
        bundle.save(tmp_path / "copy")
    with pytest.raises(BundleError, match=r"no file 'other'"):
        bundle.read("other")
    assert not (tmp_path / "copy").exists()


def test_a_bundle_that_was_replaced_after_opening_is_not_saved_as_the_old_one(
    toy_bundle_path, tmp_path
):
    bundle, content = Bundle.open(toy_bundle_path), toy_content()
    content["postprocessing"] = {"malignancy": Postprocessing(threshold=0.99)}
    write_bundle(toy_bundle_path, **content, overwrite=True)
    with pytest.raises(BundleError, match=r"changed since"):
        bundle.save(tmp_path / "copy")


KILLS = {
    "while writing files": "Path.write_bytes = counted(Path.write_bytes, 5)",
    "while flushing": "os.fsync = counted(os.fsync, 3)",
    "before the renames": "files._move_into_place = counted(files._move_into_place, 1)",
    "between the renames": "Path.rename = counted(Path.rename, 2)",
    "after the renames": "files._remove = counted(files._remove, 1)",
}
KILLED = """
import os, signal, sys
from pathlib import Path
from conftest import toy_content
from dermedge_runtime import files
from dermedge_runtime.bundle import write_bundle
def counted(function, last):
    calls = iter(range(1, last))
    def wrapper(*args, **kwargs):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
content = toy_content()
content["files"]["modelcard.md"] = b"newer"
{kill}
write_bundle(Path(sys.argv[1]), **content, overwrite=True)
"""


@pytest.mark.parametrize("kill", KILLS)
def test_a_kill_in_the_middle_of_a_write_breaks_nothing(toy_bundle_path, tmp_path, kill):
    old = Bundle.open(toy_bundle_path)
    new = tmp_path / "elsewhere" / "new.dermedge"
    for target in (toy_bundle_path, new):
        command = [sys.executable, "-c", KILLED.replace("{kill}", KILLS[kill]), str(target)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, check=False, env=environment)
        replaces = target is toy_bundle_path
        if "the renames" in kill and kill != "before the renames" and not replaces:
            assert done.returncode == 0
            assert Bundle.open(new).read("modelcard.md") == b"newer"
            continue
        assert done.returncode == -signal.SIGKILL
        assert not new.exists()
        if kill == "between the renames":
            (aside,) = toy_bundle_path.parent.glob(f".{toy_bundle_path.name}.old-*")
            assert Bundle.open(aside).id == old.id
            aside.rename(toy_bundle_path)
        elif kill == "after the renames":
            assert Bundle.open(toy_bundle_path).read("modelcard.md") == b"newer"
        else:
            assert Bundle.open(toy_bundle_path).id == old.id
    assert write_bundle(toy_bundle_path, **toy_content(), overwrite=True).id == old.id


def test_a_full_disk_leaves_the_old_bundle(toy_bundle_path, monkeypatch):
    old = folder_bytes(toy_bundle_path.parent)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Exception, match=r"No space left") as failed:
        write_bundle(toy_bundle_path, **toy_content(), overwrite=True)
    monkeypatch.undo()
    assert failed.value.exit_code == 1
    assert folder_bytes(toy_bundle_path.parent) == old


def broken_golden(edit):
    files = golden_files(toy_cases())
    cases = json.loads(files["golden/cases.json"])
    edit(cases, files)
    return {**files, "golden/cases.json": pretty_json(cases)}


GOLDEN = {
    "no case": lambda cases, files: cases.update(cases=[]),
    "newer schema": lambda cases, files: cases.update(schema="dermedge.golden/2"),
    "no tensor": lambda cases, files: cases["cases"][0].pop("tensor"),
    "other dtype": lambda cases, files: cases["cases"][0]["tensor"].update(dtype="float32"),
    "negative shape": lambda cases, files: cases["cases"][0]["tensor"].update(shape=[-32, -32, 3]),
    "two dimensions": lambda cases, files: cases["cases"][0]["tensor"].update(shape=[32, 96]),
    "too short": lambda cases, files: files.update({"golden/lesion-1.tensor.bin": b"x"}),
    "NaN": lambda cases, files: files.update(
        {"golden/lesion-1.expected.malignancy.bin": b"\x00\x00\xc0\x7f"}
    ),
    "no prediction": lambda cases, files: cases["cases"][1].pop("prediction"),
}


@pytest.mark.parametrize("edit", GOLDEN.values(), ids=GOLDEN.keys())
def test_broken_golden_cases_are_refused(edit):
    files = golden_files(toy_cases())
    assert len(read_golden(files.__getitem__)) == 2
    with pytest.raises(BundleError):
        read_golden(broken_golden(edit).__getitem__)


def test_golden_cases_are_raw_little_endian_and_without_run_time_facts():
    case = toy_cases()[0]
    files = golden_files(
        [
            replace(
                case, prediction={**case.prediction, "timing": {"engine_ms": 1.0}, "provenance": {}}
            )
        ]
    )
    assert files == golden_files([case])
    assert (
        files["golden/lesion-1.expected.diagnosis.bin"]
        == case.expected["diagnosis"].astype("<f4").tobytes()
    )
    assert files["golden/lesion-1.tensor.bin"] == case.tensor.tobytes()


def test_golden_cases_that_cannot_be_written_are_refused():
    case = toy_cases()[0]
    bad = np.array([np.nan], np.float32)
    for cases in (
        [],
        [case, case],
        [replace(case, name="a/b")],
        [replace(case, expected={"malignancy": bad})],
    ):
        with pytest.raises(UsageError):
            golden_files(cases)


def test_a_bundle_can_be_saved_over_its_own_folder(tmp_path, toy_bundle_path):
    """Save a bundle over the folder that is being read."""
    bundle = Bundle.open(toy_bundle_path)
    before = folder_bytes(toy_bundle_path)
    assert bundle.save(toy_bundle_path, overwrite=True).id == bundle.id
    assert folder_bytes(toy_bundle_path) == before
    shutil.rmtree(toy_bundle_path)
    with pytest.raises(UsageError):
        bundle.read("model.fake")
