"""Agree on the tasks of all clients, and check that they share no patient or image."""

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd

from dermedge.data.taxonomy import TAXONOMY, lineage, project
from dermedge.federated.options import FederatedOptions
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Label, Task

Mask = Callable[[str], str]
"""Function that hides an id before it leaves a client."""
KINDS = {"image": "images", "lesion": "lesions", "patient": "patients"}


@dataclass(frozen=True)
class Summary:
    """The properties of a client that the server needs before training.

    Attributes:
        name: Name of the client.
        rows: Number of images by split.
        labels: Number of train images by task and label: diagnoses by id, malignancy as
            `0` and `1`, severity by level.
        ids: Split of each hidden id, by kind: `image`, `lesion` and `patient`.
        backbone: Digest of the frozen backbone, "" if the whole network travels.
        key: Hidden constant, equal for clients that hide ids with the same key.

    Example:
        >>> Summary("a", {"train": 70}, {"malignancy": {"0": 50, "1": 20}}).rows["train"]
        70
    """

    name: str
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ids: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    backbone: str = ""
    key: str = ""


def summarize(
    name: str, frame: pd.DataFrame, digests: Sequence[str], mask: Mask, *, local_ids: bool
) -> Summary:
    """Summarize the table of a client.

    Args:
        name: Name of the client.
        frame: Rows of the table, each with a split.
        digests: SHA-256 of each image file.
        mask: Function that hides ids.
        local_ids: Leave out patients and lesions.

    Example:
        >>> from dermedge.data.split import with_split
        >>> from dermedge.data.table import digests, read_table
        >>> table = with_split(read_table("lesions"))
        >>> one = summarize("a", table.frame, digests(table), str, local_ids=False)
        >>> one.rows, sorted(one.labels["malignancy"])
        ({'train': 53, 'val': 15, 'test': 12}, ['0', '1'])
    """
    train = frame[frame["split"] == "train"]
    ids = {"image": dict(zip(map(mask, digests), frame["split"], strict=True))}
    for kind in () if local_ids else ("lesion", "patient"):
        known = frame[frame[f"{kind}_id"] != ""]
        keys = known["source"] + "/" + known[f"{kind}_id"]
        ids[kind] = dict(zip(map(mask, keys), known["split"], strict=True))
    return Summary(
        name=name,
        rows={split: int((frame["split"] == split).sum()) for split in ("train", "val", "test")},
        labels={
            "diagnosis": _count(train["dx"][train["dx"] != ""]),
            "malignancy": _count(train["malignant"].dropna().map("{:.0f}".format)),
            "severity": _count(train["severity"].dropna().map("{:.0f}".format)),
        },
        ids=ids,
        key=mask("dermedge"),
    )


def keyed_mask(key: bytes) -> Mask:
    """Return a function that replaces an id by its HMAC-SHA-256.

    Nobody without the key can test a guessed id.

    Example:
        >>> hide = keyed_mask(b"secret of the hospitals")
        >>> hide("patient 7") == hide("patient 7"), len(hide("patient 7"))
        (True, 32)
    """
    return lambda value: hmac.new(key, value.encode("utf-8", "replace"), "sha256").hexdigest()[:32]


def check_clients(summaries: Sequence[Summary], options: FederatedOptions) -> list[str]:
    """Check that clients can train together.

    Returns:
        Sentences about images, lesions and patients that two clients have in the same
        split. They count twice.

    Raises:
        DataError: Two clients have the same name, another backbone or another key, or
            share an image, a lesion or a patient across splits. The message names them.
    """
    names = [one.name for one in summaries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"Two clients are named {twice[0]!r}. Give each client its own --name.")
    for one in summaries:
        counts = {split: one.rows.get(split, 0) for split in ("train", "val", "test")}
        if not all(counts.values()):
            sizes = ", ".join(f"{count} {split}" for split, count in counts.items())
            raise DataError(
                f"The client {one.name!r} has {sizes} images. Give it a table with all three."
            )
    first = summaries[0]
    for other in summaries[1:]:
        if other.backbone != first.backbone:
            raise DataError(
                f"The clients {first.name!r} and {other.name!r} have different frozen backbones. "
                "Give both the same --init file and the same versions of dermedge, torch and timm."
            )
        if other.key != first.key:
            raise DataError(
                f"The clients {first.name!r} and {other.name!r} hide their ids with different "
                "keys. Give both the same --key file."
            )
    notes = []
    for a, b in combinations(summaries, 2):
        notes += _compare(a, b)
    return notes


def _compare(a: Summary, b: Summary) -> list[str]:
    notes = []
    for kind, plural in KINDS.items():
        there, here = a.ids.get(kind, {}), b.ids.get(kind, {})
        shared = [value for value in there if value in here]
        across = [value for value in shared if there[value] != here[value]]
        if across:
            hint = ""
            if kind != "image":
                hint = ", or pass --local-ids if each client numbers its own"
            raise DataError(
                f"The clients {a.name!r} and {b.name!r} share {len(across)} {plural} across "
                f"splits, first {across[0]!r} ({there[across[0]]} and {here[across[0]]}). Remove "
                f"them from one client{hint}."
            )
        if shared:
            notes.append(
                f"The clients {a.name!r} and {b.name!r} share {len(shared)} {plural}, which count "
                "twice."
            )
    return notes


def agree_tasks(summaries: Sequence[Summary], wanted: Sequence[str] | None) -> tuple[Task, ...]:
    """Return the tasks that all clients can learn.

    The labels of the diagnosis are the widest diagnoses that occur at any client, so
    that each client's diagnoses are covered by exactly one label.

    Args:
        summaries: The clients.
        wanted: Names of the tasks, or None for the default of `FederatedOptions`.

    Raises:
        DataError: A client has no label of a wanted task, or the labels cannot be mapped.
            The message names the clients.

    Example:
        >>> a = Summary("a", {}, {"diagnosis": {"nv": 9, "mel_in_situ": 2}})
        >>> b = Summary("b", {}, {"diagnosis": {"nv": 5, "mel": 4}})
        >>> sorted(label.id for label in agree_tasks([a, b], ["diagnosis"])[0].labels)
        ['mel', 'nv']
    """
    if wanted is not None:
        return tuple(_AGREE[name](summaries) for name in _AGREE if name in wanted)
    tasks, reasons = [], []
    for name in ("diagnosis", "malignancy"):
        try:
            tasks.append(_AGREE[name](summaries))
        except DataError as error:
            reasons.append(error)
    if tasks:
        return tuple(tasks)
    try:
        return (_AGREE["severity"](summaries),)
    except DataError:
        raise reasons[-1] from None


def _agree_diagnosis(summaries: Sequence[Summary]) -> Task:
    present = set(_present(summaries, "diagnosis"))
    # A narrower diagnosis joins the wider one: the client with the wider label cannot tell
    # whether its images show the narrower one.
    widest = [name for name in present if not present & set(list(lineage(name))[1:])]
    if len(widest) < 2:
        raise DataError(
            f"The diagnoses of the clients {_describe(summaries, 'diagnosis')} map to "
            f"{len(widest)} label. Use clients with at least two diagnoses in common, or another "
            "--task."
        )
    order = {name: place for place, name in enumerate(TAXONOMY)}
    known = [TAXONOMY[name] for name in sorted(widest, key=order.__getitem__)]
    labels = [
        Label(d.id, d.name, d.malignant, {"icd11": d.icd11} if d.icd11 else {}) for d in known
    ]
    return Task("diagnosis", "classify", tuple(labels))


def _agree_malignancy(summaries: Sequence[Summary]) -> Task:
    if len(_present(summaries, "malignancy")) < 2:
        raise DataError(
            "The train images of all clients are malignant, or all are benign. Add a client that "
            "has the others."
        )
    return Task("malignancy", "binary")


def _agree_severity(summaries: Sequence[Summary]) -> Task:
    levels = sorted(_present(summaries, "severity"), key=int)
    largest = {max(map(int, one.labels["severity"])) for one in summaries}
    # Levels have no taxonomy, so a grade 3 of 3 and a grade 3 of 5 cannot be compared.
    if len(largest) > 1 or len(levels) < 2:
        raise DataError(
            f"The levels of severity differ: {_describe(summaries, 'severity')}. Use clients that "
            "grade on one scale."
        )
    return Task("severity", "ordinal", tuple(Label(name, f"severity {name}") for name in levels))


_AGREE: Mapping[str, Callable[[Sequence[Summary]], Task]] = {
    "diagnosis": _agree_diagnosis,
    "malignancy": _agree_malignancy,
    "severity": _agree_severity,
}


def _present(summaries: Sequence[Summary], task: str) -> list[str]:
    """Return the labels that occur at any client.

    Raises:
        DataError: A client has none.
    """
    without = [one.name for one in summaries if not one.labels.get(task)]
    if without:
        raise DataError(
            f"The train images of {', '.join(map(repr, without))} have no {task}. Fill that "
            "column, leave the client out, or choose another --task."
        )
    return list(dict.fromkeys(label for one in summaries for label in one.labels[task]))


def describe_mapping(summaries: Sequence[Summary], tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the diagnoses of each client that count as a wider label.

    Example:
        >>> a = Summary("a", {}, {"diagnosis": {"nv": 9, "mel_in_situ": 2}})
        >>> b = Summary("b", {}, {"diagnosis": {"nv": 5, "mel": 4}})
        >>> describe_mapping([a, b], agree_tasks([a, b], ["diagnosis"]))
        {'a': {'mel_in_situ': 'mel'}}
    """
    labels = [label.id for task in tasks if task.kind == "classify" for label in task.labels]
    mapped = {
        one.name: {
            name: label
            for name in one.labels.get("diagnosis", {})
            if (label := project(name, labels)) not in (None, name)
        }
        for one in summaries
    }
    return {name: changes for name, changes in mapped.items() if changes}


def _describe(summaries: Sequence[Summary], task: str) -> str:
    return ", ".join(f"{one.name!r} ({', '.join(one.labels[task])})" for one in summaries)


def _count(values: "pd.Series[str]") -> dict[str, int]:
    return {str(name): int(count) for name, count in values.value_counts().items()}
