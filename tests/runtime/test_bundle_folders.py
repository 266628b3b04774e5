"""Bundle folders on a person's disk: system files are ignored, damage is named as what it is."""

import shutil
import zipfile
from pathlib import Path

import pytest

from conftest import FakeRuntime, folder_bytes
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import BundleError
from dermedge_runtime.verify import verify

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
SYSTEM = (".DS_Store", "golden/._cases.json", "Thumbs.db", "golden/desktop.ini", ".nfs0007")


def test_system_files_are_ignored_and_only_verify_reports_them(
    toy_bundle_path: Path, fake_runtime: FakeRuntime, tmp_path: Path
) -> None:
    before = Bundle.open(toy_bundle_path)
    for name in SYSTEM:
        (toy_bundle_path / name).write_bytes(b"anything")
    (toy_bundle_path / "@eaDir").mkdir()
    (toy_bundle_path / "@eaDir/model.fake@SynoEAStream").write_bytes(b"x")
    # A link with such a name is not followed either.
    (toy_bundle_path / "golden/.DS_Store").symlink_to("/etc/passwd")
    opened = Bundle.open(toy_bundle_path)
    assert opened == before
    report = verify(toy_bundle_path, runtime=fake_runtime)
    assert report.status == "passed"
    ignored = report.checks[0].detail
    assert ignored.endswith(
        "; ignored: '.DS_Store', '.nfs0007', '@eaDir', 'Thumbs.db', 'golden/.DS_Store', ..."
    )
    copy = opened.save(tmp_path / "copy")
    assert folder_bytes(copy.path).keys() == {"manifest.json", *before.files}


@pytest.mark.parametrize("name", [".gitattributes", "notes.txt", "golden/.hidden", "DS_Store"])
def test_other_files_are_refused(toy_bundle_path: Path, name: str) -> None:
    (toy_bundle_path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=rf"holds '{name}', which its manifest does not list"):
        Bundle.open(toy_bundle_path)


def test_a_manifest_cannot_list_a_system_file(toy_bundle_path: Path, tmp_path: Path) -> None:
    from conftest import toy_content
    from dermedge_runtime.bundle import write_bundle

    content = toy_content()
    content["files"]["golden/Thumbs.db"] = b"x"
    with pytest.raises(BundleError, match=r"misses 'golden/Thumbs.db'"):
        write_bundle(tmp_path / "new", **content)
    assert [path.name for path in tmp_path.iterdir()] == [toy_bundle_path.name]


@pytest.mark.parametrize("name", ["model.fake", "manifest.json", "golden/cases.json"])
def test_a_pointer_of_git_lfs_is_named(toy_bundle_path: Path, name: str) -> None:
    (toy_bundle_path / name).write_bytes(POINTER)
    with pytest.raises(BundleError, match=rf"'{name}' in .* is a Git LFS pointer.* 'git lfs pull'"):
        Bundle.open(toy_bundle_path)


def test_a_zip_that_is_a_pointer_or_empty_is_named(tmp_path: Path) -> None:
    path = tmp_path / "toy.dermedge"
    path.write_bytes(POINTER)
    with pytest.raises(BundleError, match=r"toy.dermedge is a Git LFS pointer"):
        Bundle.open(path)
    path.write_bytes(b"")
    with pytest.raises(BundleError, match=r"is empty \(0 bytes\). Wait"):
        Bundle.open(path)


def test_windows_line_ends_are_named(toy_bundle_path: Path) -> None:
    for path in (toy_bundle_path / "manifest.json", toy_bundle_path / "modelcard.md"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(BundleError, match=r"'modelcard.md' .* Windows line ends.* -text"):
        Bundle.open(toy_bundle_path)


@pytest.mark.parametrize("name", ["model.fake", "golden/cases.json", "manifest.json"])
def test_a_file_that_is_not_downloaded_is_named(toy_bundle_path: Path, name: str) -> None:
    path = toy_bundle_path / name
    path.rename(path.with_name(f".{path.name}.icloud"))
    with pytest.raises(BundleError, match=rf"'{name}' in .* is not downloaded.*icloud'. Wait"):
        Bundle.open(toy_bundle_path)
    path.with_name(f".{path.name}.icloud").unlink()
    path.write_bytes(b"")
    with pytest.raises(BundleError, match=rf"'{name}' in .* is empty \(0 bytes\). Wait"):
        Bundle.open(toy_bundle_path)


@pytest.mark.parametrize("name", ["model.fake.part", "golden/~x.tmp", "model.fake.partial"])
def test_a_copy_that_has_not_ended_is_named(toy_bundle_path: Path, name: str) -> None:
    (toy_bundle_path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=rf"holds '{name}', a download or copy .* Wait"):
        Bundle.open(toy_bundle_path)


def rezip(bundle: Path, out: Path, root: Path, compression: int) -> Path:
    with zipfile.ZipFile(out, "w", compression) as archive:
        for path in sorted(bundle.rglob("*")):
            archive.write(path, path.relative_to(root))
    return out


@pytest.mark.parametrize("kind", ["deflated", "with its folder", "folder entries", "macOS"])
def test_a_zip_by_another_program_is_named(
    toy_bundle_path: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "toy.zip"
    if kind == "with its folder":
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in folder_bytes(toy_bundle_path).items():
                archive.writestr(f"toy.dermedge/{name}", data)
    elif kind == "macOS":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("__MACOSX/._manifest.json", b"x")
    else:
        compression = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        rezip(toy_bundle_path, out, toy_bundle_path, compression)
    with pytest.raises(BundleError, match=r"another program zipped or compressed it. Unzip it"):
        Bundle.open(out)


def test_unzipping_it_is_the_remedy(toy_bundle_path: Path, tmp_path: Path) -> None:
    out = rezip(toy_bundle_path, tmp_path / "x.zip", tmp_path, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("toy.dermedge/._manifest.json", b"x")
    shutil.unpack_archive(out, tmp_path / "unzipped")
    unzipped = Bundle.open(tmp_path / "unzipped/toy.dermedge")
    assert unzipped.id == Bundle.open(toy_bundle_path).id
