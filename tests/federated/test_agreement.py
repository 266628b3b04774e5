"""Clients agree on labels, and share no patient or image across splits."""

from dataclasses import replace

import pandas as pd
import pytest

from dermedge.data.table import digests, read_table
from dermedge.federated.agreement import (
    Summary,
    agree_tasks,
    check_clients,
    describe_mapping,
    keyed_mask,
    summarize,
)
from dermedge.federated.options import FederatedOptions
from dermedge_runtime.errors import DataError, UsageError

ROWS = {"train": 9, "val": 3, "test": 3}


def client(name: str, **labels: dict[str, int]) -> Summary:
    return Summary(name, ROWS, labels)


def test_a_narrower_diagnosis_counts_as_the_wider_one_of_another_client() -> None:
    a = client("a", diagnosis={"nv": 5, "lentigo_maligna": 2})
    b = client("b", diagnosis={"nv": 5, "mel": 2, "bcc": 1})
    (task,) = agree_tasks([a, b], ["diagnosis"])
    assert {label.id for label in task.labels} == {"nv", "mel", "bcc"}
    assert describe_mapping([a, b], [task]) == {"a": {"lentigo_maligna": "mel"}}


def test_a_client_without_the_labels_of_a_task_is_named() -> None:
    a = client("a", diagnosis={"nv": 5, "mel": 2}, malignancy={"0": 5, "1": 2})
    b = client("hospital-b", malignancy={"0": 4})
    with pytest.raises(DataError, match="'hospital-b' have no diagnosis"):
        agree_tasks([a, b], ["diagnosis"])
    assert [task.name for task in agree_tasks([a, b], None)] == ["malignancy"]


def test_labels_that_map_to_one_are_refused_with_the_names() -> None:
    a, b = client("a", diagnosis={"nv": 5}), client("b", diagnosis={"melanocytic": 2})
    with pytest.raises(DataError, match=r"'a' \(nv\), 'b' \(melanocytic\) map to 1 label"):
        agree_tasks([a, b], ["diagnosis"])


def test_grades_on_different_scales_are_refused() -> None:
    a = client("a", severity={"0": 5, "3": 2})
    b = client("b", severity={"0": 5, "4": 2})
    with pytest.raises(DataError, match=r"levels of severity differ: 'a' \(0, 3\), 'b' \(0, 4\)"):
        agree_tasks([a, b], ["severity"])


def shared(kind: str, there: str, here: str) -> list[Summary]:
    ids = ({kind: {"one": split}} for split in (there, here))
    return [Summary(name, ROWS, ids=own) for name, own in zip("ab", ids, strict=True)]


@pytest.mark.parametrize("kind", ["patient", "lesion", "image"])
def test_an_id_of_two_clients_in_two_splits_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match=f"'a' and 'b' share 1 {kind}s across splits, first 'one'"):
        check_clients(shared(kind, "train", "test"), FederatedOptions())


def test_an_id_of_two_clients_in_one_split_is_reported() -> None:
    (note,) = check_clients(shared("patient", "train", "train"), FederatedOptions())
    assert note == "The clients 'a' and 'b' share 1 patients, which count twice."


def test_one_patient_at_two_clients_is_found_through_hidden_ids(lesions) -> None:
    table = read_table(lesions)
    other = table.frame.assign(split=table.frame["split"].replace({"train": "test"}))
    files = digests(table).tolist()
    changed = [f"{digest[:-1]}x" for digest in files]  # other photographs of the same patients

    def hidden(name: str, frame: pd.DataFrame, images: list[str], key: bytes, local=False):
        return summarize(name, frame, images, keyed_mask(key), local_ids=local)

    a, b = hidden("a", table.frame, files, b"k"), hidden("b", other, changed, b"k")
    b = replace(b, rows=a.rows)
    assert not set(a.ids["patient"]) & set(table.frame["patient_id"])
    with pytest.raises(DataError, match=r"'a' and 'b' share .* across splits"):
        check_clients([a, b], FederatedOptions())
    local = [
        replace(hidden(name, frame, images, b"k", local=True), rows=a.rows)
        for name, frame, images in (("a", table.frame, files), ("b", other, changed))
    ]
    assert check_clients(local, FederatedOptions()) == []
    with pytest.raises(DataError, match="different keys"):
        check_clients(
            [a, replace(hidden("b", other, changed, b"x"), rows=a.rows)], FederatedOptions()
        )


def test_clients_need_names_splits_and_one_backbone() -> None:
    a, b = client("a"), client("b")
    with pytest.raises(DataError, match="Two clients are named 'a'"):
        check_clients([a, a], FederatedOptions())
    with pytest.raises(DataError, match="'b' has 0 train, 3 val, 0 test images"):
        check_clients([a, replace(b, rows={"val": 3})], FederatedOptions())
    with pytest.raises(DataError, match="'a' and 'b' have different frozen backbones"):
        check_clients([a, replace(b, backbone="other")], FederatedOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "fedsgd"}, "'fedsgd'"),
        ({"tasks": ["segmentation"]}, "segmentation cannot be learned"),
        ({"rounds": 0}, "rounds is 0"),
        ({"fedbn": True}, "--train all"),
        ({"epsilon": 3.0, "train": "all"}, "--epsilon 3.0"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        FederatedOptions(**changes)
