"""Properties of the readers that hold for any text: a value or a DataError."""

import csv
import io
import tempfile
from pathlib import Path, PurePosixPath

from hypothesis import given, settings
from hypothesis import strategies as st

from dermedge.data.columns import COLUMNS
from dermedge.data.table import SPLITS, Table, read_table
from dermedge.data.taxonomy import resolve
from dermedge_runtime.errors import DataError

SETTINGS = settings(max_examples=50, deadline=None)
# Values that a column allows, beside any text, so that not every table is refused.
CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "nv", "mel", "1", "0", "IV", "inf", "1e400", "-1", "nan", "٣", "²", "train"]
    ),
)


def read_or_refuse(content: bytes) -> Table | None:
    """Read a table with this content, None if it is refused with a DataError."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "metadata.csv").write_bytes(content)
        try:
            return read_table(folder)
        except DataError as error:
            assert "metadata.csv" in str(error)
            return None


@given(st.dictionaries(st.sampled_from(COLUMNS[2:]), CELLS, max_size=4), st.text(max_size=12))
@SETTINGS
def test_any_cell_gives_a_table_or_a_data_error(cells: dict[str, str], image: str) -> None:
    row = {"image_id": "a", "image": image, **cells}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    table = read_or_refuse(buffer.getvalue().encode("utf-8", "surrogatepass"))
    if table is not None:
        assert list(table.frame.columns) == list(COLUMNS)
        values = table.frame.iloc[0]
        assert values["split"] in ("", *SPLITS)
        assert values["malignant"] in (0, 1) or values["malignant"] != values["malignant"]
        assert values["age"] != values["age"] or 0 <= values["age"] <= 120
        assert values["fitzpatrick"] != values["fitzpatrick"] or 1 <= values["fitzpatrick"] <= 6


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8"))))
@SETTINGS
def test_any_file_gives_a_table_or_a_data_error(content: bytes) -> None:
    read_or_refuse(b"image_id,image\n" + content)
    read_or_refuse(content)


@given(
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    st.lists(CELLS, min_size=2, max_size=2),
)
@SETTINGS
def test_any_dialect_gives_a_table_or_a_data_error(
    delimiter: str, end: str, encoding: str, cells: list[str]
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end)
    writer.writerows([["Image ID", "image", "Caption", "dx"], ["a", "b.png", *cells]])
    table = read_or_refuse(buffer.getvalue().encode(encoding, "replace"))
    assert table is None or table.frame["image"].tolist() == ["b.png"]


FOLDERS = st.sampled_from(["train", "Valid", "test", "nv", "Melanomas", "benign", "spots", "a'b"])


@given(st.lists(st.lists(FOLDERS, max_size=3), max_size=5))
@SETTINGS
def test_any_tree_of_folders_gives_a_table_or_a_data_error(chains: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, chain in enumerate(chains):
            path = Path(folder, *chain, f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        try:
            table = read_table(folder)
        except DataError as error:
            assert str(error).startswith(folder)
        else:
            assert all(table.path(image).is_file() for image in table.frame["image"])
            assert ((table.frame["dx"] != "") | table.frame["malignant"].notna()).all()


@given(st.lists(st.sampled_from(["..", ".", "a", "b.png", "", "\\", "c:", "\0"]), max_size=5))
@SETTINGS
def test_an_image_path_never_leads_outside_the_folder(parts: list[str]) -> None:
    """A path that is accepted does not leave the table's folder when it is resolved."""
    image = "/".join(parts)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["image_id", "image"], ["a", image]])
    table = read_or_refuse(buffer.getvalue().encode())
    if table is not None:
        root = Path("/table")
        path = root / table.frame["image"][0]
        assert Path(*resolve_dots(path)).is_relative_to(root)
        assert "\\" not in table.frame["image"][0]


def resolve_dots(path: Path) -> list[str]:
    """Return the parts of a path without "." and ".."."""
    parts: list[str] = []
    for part in PurePosixPath(path).parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return parts


@given(st.text(max_size=20), st.sampled_from([None, "ham10000", "isic2019", "unknown set"]))
@SETTINGS
def test_any_label_is_a_diagnosis_or_a_data_error(label: str, source: str | None) -> None:
    try:
        diagnosis = resolve(label, source)
    except DataError as error:
        assert repr(label) in str(error)
    else:
        assert resolve(diagnosis.id, source) == diagnosis
