"""Read Parquet files that hold their images, as the Hugging Face hub publishes them."""

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from dermedge.data import embedded
from dermedge.data.table import digests, read_table, table_digest
from dermedge_runtime.errors import DataError, DermedgeError
from support.command import dermedge, refused, snapshot
from support.tables import save

LABELS = ["melanoma", "Basal cell carcinoma", "nevus"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    paths = [save(tmp_path / f"pictures/{n}.{'jpg' if n % 2 else 'png'}", n) for n in range(6)]
    return [path.read_bytes() for path in paths]


def write_shard(path: Path, images: list[object], **columns: list[object]) -> Path:
    """Write a file as the library `datasets` does, with `label` as a ClassLabel."""
    table = pa.table({"image": images, **columns})
    names = {"label": {"names": LABELS, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    about = {"huggingface": json.dumps({"info": {"features": names}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        table.replace_schema_metadata(about), path, row_group_size=2, write_page_checksum=True
    )
    return path


def structs(pictures: list[bytes], names: list[str] | None = None) -> list[object]:
    paths = names or [None] * len(pictures)
    return [{"bytes": p, "path": n} for p, n in zip(pictures, paths, strict=True)]


def test_shards_per_split_are_one_data_set(tmp_path: Path, pictures: list[bytes]) -> None:
    hub = tmp_path / "hub"
    write_shard(hub / "data/train-00000-of-00002.parquet", structs(pictures[:2]), label=[0, 1])
    write_shard(hub / "data/train-00001-of-00002.parquet", structs(pictures[2:4]), label=[2, -1])
    write_shard(hub / "data/validation-00000-of-00001.parquet", structs(pictures[4:5]), label=[2])
    write_shard(
        hub / "data/test-00000-of-00001.parquet", structs(pictures[5:], ["x/5.jpg"]), label=[0]
    )
    table = read_table(hub)
    rows = table.frame.set_index("split")
    assert rows.loc["train", "dx"].tolist() == ["mel", "bcc", "nv", ""]
    assert rows.loc["val", "dx"] == "nv"
    assert rows.loc["test", "image_id"] == "data_test-00000-of-00001-5"
    assert {table.path(image).read_bytes() for image in table.frame["image"]} == set(pictures)
    assert {Path(image).suffix for image in table.frame["image"]} == {".jpg", ".png"}
    assert "Read 6 images of 4 Parquet files, splits train 4, val 1, test 1." in table.notes[0]
    assert table.name == "hub"

    before = snapshot(hub)
    again = read_table(hub)
    assert table_digest(again) == table_digest(table)
    assert digests(again).equals(digests(table))
    assert snapshot(hub) == before
    (hub / "data/train-00001-of-00002.parquet").unlink()
    (hub / "data/test-00000-of-00001.parquet").unlink()
    table = read_table(hub)
    assert "Only 1 of the 2 files train-*-of-00002 were given." in table.notes
    assert table.frame["split"].tolist() == ["", "", "val"]


@pytest.mark.parametrize("column", ["img", "jpg"])
def test_a_column_of_bytes_and_a_mask(tmp_path: Path, pictures: list[bytes], column: str) -> None:
    frame = pd.DataFrame(
        {
            column: pictures[:2],
            "mask": [{"bytes": pictures[2], "path": None}, None],
            "image_id": ["a", "b"],
            "dx": ["nv", "MEL"],
            "age": [53, None],
            "vector": [[1.0], [2.0]],
        }
    )
    frame.to_parquet(tmp_path / "own.parquet")
    table = read_table(tmp_path / "own.parquet")
    assert table.frame["image_id"].tolist() == ["a", "b"]
    assert table.frame["dx"].tolist() == ["nv", "mel"]
    assert table.frame["age"][0] == 53
    assert table.path(table.frame["image"][1]).read_bytes() == pictures[1]
    assert table.path(table.frame["mask"][0]).read_bytes() == pictures[2]
    assert table.frame["mask"][1] == ""


def test_an_import_moves_the_images_and_leaves_nothing_behind(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    shard = write_shard(
        tmp_path / "hf/train-00000-of-00001.parquet", structs(pictures), label=[0, 1, 2] * 2
    )
    for number, options in enumerate([("--column", "dx=label"), (), ("--label", "nevus=mel")]):
        out = tmp_path / f"out{number}"
        ran = dermedge("data", "add", "csv", shard, *options, "-o", out)
        assert ran.code == 0, ran.err
        frame = read_table(out).frame
        assert frame["dx"].tolist() == ["mel", "bcc", "mel" if number == 2 else "nv"] * 2
        assert [(out / image).read_bytes() for image in frame["image"]] == pictures
        assert str(tmp_path / ".out") not in ran.out + ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "hf", "out0", "out1", "out2", "pictures"
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "hf").iterdir()] == [shard.name]


def test_a_message_names_the_users_file_and_holds_no_bytes(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    shard = write_shard(tmp_path / "t.parquet", structs(pictures[:2]), dx=["nv", "mole rat"])
    for command in (("data", "check", shard), ("data", "add", "csv", shard, "-o", tmp_path / "o")):
        message = refused(dermedge(*command), 1)
        assert message.startswith(f"{shard}, row 2")
        assert len(message) < 400
    none = write_shard(tmp_path / "n.parquet", [*structs(pictures[:1]), None], dx=["nv", "nv"])
    assert refused(dermedge("data", "check", none), 1).startswith(f"{none}, row 2: image is empty")
    frame = pd.DataFrame({"image_id": ["a"], "image": ["a.png"], "dx": [b"x" * 9000]})
    frame.to_parquet(tmp_path / "blob.parquet")
    assert "<9,000 bytes>" in refused(dermedge("data", "check", tmp_path / "blob.parquet"), 1)


def test_splitting_a_file_of_images_is_refused_with_a_way_that_works(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    shard = write_shard(tmp_path / "t.parquet", structs(pictures), label=[0, 1, 2] * 2)
    assert f"data add csv {shard} -o OUT`" in refused(dermedge("data", "split", shard), 2)
    assert dermedge("data", "add", "csv", shard, "-o", tmp_path / "out").code == 0
    ran = dermedge("data", "split", tmp_path / "out", "--overwrite")
    assert ran.code == 0, ran.err


def test_files_beside_the_shards_are_named(tmp_path: Path, pictures: list[bytes]) -> None:
    write_shard(tmp_path / "set/train.parquet", structs(pictures[:2]), label=[0, 1])
    (tmp_path / "set/README.md").write_text("about")
    (tmp_path / "set/more").mkdir()
    (tmp_path / "set/more/lesion.jpg").write_bytes(pictures[2])
    wanted = "Not looked at: 2 other than Parquet files with images (README.md, more/lesion.jpg)."
    assert wanted in read_table(tmp_path / "set").notes


def test_an_interrupted_extraction_continues(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_shard(tmp_path / f"set/{number}.parquet", structs(pictures[:2]), label=[0, 1])
    written = []
    write = embedded._write_image

    def fail_in_the_second_file(folder: Path, name: str, content: bytes) -> str:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(name)
        return write(folder, name, content)

    monkeypatch.setattr(embedded, "_write_image", fail_in_the_second_file)
    with pytest.raises(DermedgeError, match=r"1\.parquet cannot be extracted.*No space.*Free"):
        read_table(tmp_path / "set")
    (root,) = (tmp_path / "set/.dermedge").iterdir()
    assert [path.name for path in root.iterdir()] == ["0"]
    written.clear()
    monkeypatch.setattr(
        embedded, "_write_image", lambda *parts: written.append(parts[1]) or write(*parts)
    )
    assert len(read_table(tmp_path / "set")) == 6
    assert len(written) == 4


def test_a_changed_file_is_extracted_again(tmp_path: Path, pictures: list[bytes]) -> None:
    path = tmp_path / "t.parquet"
    write_shard(path, structs(pictures[:2]), label=[0, 1])
    before = digests(read_table(path)).tolist()
    write_shard(path, structs(pictures[2:4]), label=[0, 1])
    table = read_table(path)
    assert not set(digests(table)) & set(before)
    os.utime(path, ns=(1, 1))
    assert read_table(path).root != table.root


def test_a_folder_that_cannot_be_written_uses_the_cache_of_the_user(
    tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_shard(tmp_path / "set/t.parquet", structs(pictures[:2]), label=[0, 1])
    monkeypatch.setattr(embedded.os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = read_table(shard)
    assert table.root.parent == tmp_path / "cache/dermedge"
    assert f"Their files are in {table.root}." in table.notes[0]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["t.parquet"]


def test_damaged_files_are_named(tmp_path: Path, pictures: list[bytes]) -> None:
    shard = write_shard(tmp_path / "t.parquet", structs(pictures), label=[0] * 6)
    content = shard.read_bytes()
    zeroed = content[:100] + bytes(3900) + content[4000:]
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1")
    with pytest.raises(DataError, match=r"t\.parquet is a pointer of Git LFS, not Parquet"):
        read_table(shard)
    for damaged in (content[:-20], content[: len(content) // 2], b"PAR1", zeroed):
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=r"t\.parquet is not a readable Parquet file"):
            read_table(shard)
    assert not list(tmp_path.glob(".dermedge/*/*"))
