"""A model folder is written, and read with and without torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dermedge.models import load_model_folder, save_model_folder
from dermedge.models.folder_metadata import read_metadata
from dermedge_runtime.errors import DataError
from support import small, untrained

READS = """
import sys
from dermedge.models.folder_metadata import read_metadata
metadata = read_metadata(sys.argv[1])
print(metadata.role, metadata.spec.name, metadata.backbone.name)
assert not {"torch", "timm", "safetensors"} & set(sys.modules)
"""


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.student_folder(tmp_path_factory.getbasetemp())


def test_metadata_is_read_without_torch(tmp_path: Path) -> None:
    folder = untrained.teacher(tmp_path / "teacher")
    (folder / "weights.safetensors").unlink()
    done = subprocess.run(
        [sys.executable, "-c", READS, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["teacher", "untrained", untrained.CNN]


def test_metadata_and_model_agree(student: Path) -> None:
    model, metadata = load_model_folder(student), read_metadata(student)
    for name in ("spec", "backbone", "role", "metrics", "split", "training_images"):
        assert getattr(model, name) == getattr(metadata, name), name
    assert len(metadata.training_images) > 0


def test_image_ids_with_commas_and_quotes_are_kept(student: Path, tmp_path: Path) -> None:
    rows = (("a,b", "0" * 64, "train"), ('say "c"', "1" * 64, "val"), ("d\ne", "2" * 64, "test"))
    save_model_folder(replace(load_model_folder(student), split=rows), tmp_path)
    assert read_metadata(tmp_path).split == rows


def test_commas_that_an_earlier_version_left_unquoted_are_read(
    student: Path, tmp_path: Path
) -> None:
    save_model_folder(load_model_folder(student), tmp_path)
    (tmp_path / "split.csv").write_text("image_id,sha256,split\na,b,00,train\nplain,11,val\n")
    assert read_metadata(tmp_path).split == (("a,b", "00", "train"), ("plain", "11", "val"))


def test_a_split_table_of_plain_ids_keeps_its_bytes(student: Path, tmp_path: Path) -> None:
    """Folders of earlier versions were written by joining cells with commas."""
    model = load_model_folder(student)
    save_model_folder(model, tmp_path)
    lines = ["image_id,sha256,split", *(",".join(row) for row in model.split)]
    assert (tmp_path / "split.csv").read_bytes() == ("\n".join(lines) + "\n").encode()


def test_another_schema_is_named(student: Path, tmp_path: Path) -> None:
    save_model_folder(load_model_folder(student), tmp_path)
    data = json.loads((tmp_path / "student.json").read_text("utf-8"))
    (tmp_path / "student.json").write_text(json.dumps(data | {"schema": "dermedge.student/2"}))
    with pytest.raises(DataError, match=r"schema 'dermedge\.student/2'.*Upgrade"):
        read_metadata(tmp_path)
