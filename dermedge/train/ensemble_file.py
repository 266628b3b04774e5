"""Read and write `ensemble.json`, which names the members of an ensemble."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermedge.models.folder_metadata import ENSEMBLE
from dermedge.train.teacher_member import Member, load_member
from dermedge_runtime.canonical_json import pretty_json, read_json
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import atomic_write

SCHEMA = "dermedge.ensemble/1"
AGAIN = "Write it again with `dermedge teacher ensemble`."


@dataclass(frozen=True)
class _Entry:
    """One model in the file."""

    folder: Path
    weights: str | None
    temperatures: Mapping[str, float]


def write_ensemble(members: Sequence[Member], metrics: Mapping[str, float], folder: Path) -> None:
    """Write the members, temperatures and metrics of an ensemble to `folder`.

    The paths of the members are relative to the folder.
    """
    entries = [
        {
            "folder": Path(os.path.relpath(member.folder, folder)).as_posix(),
            "weights": member.digest,
            "temperatures": dict(member.temperatures),
        }
        for member in members
    ]
    data = {"schema": SCHEMA, "members": entries, "metrics": {"val": dict(metrics)}}
    atomic_write(folder / ENSEMBLE, pretty_json(data))


def read_ensemble(folder: Path) -> tuple[tuple[Member, ...], dict[str, float]]:
    """Return the members of an ensemble, and its metrics on val.

    Raises:
        DataError: The file is damaged, or a member is missing or has changed.
    """
    path = folder / ENSEMBLE
    data = read_json(path, DataError)
    try:
        if data["schema"] != SCHEMA or not data["members"]:
            raise ValueError(f"schema {data['schema']!r}")
        entries = [_read_entry(entry, folder) for entry in data["members"]]
        metrics = dict(data.get("metrics", {}).get("val", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not an ensemble of schema {SCHEMA} ({error}). {AGAIN}"
        ) from error
    return tuple(_load(entry, path) for entry in entries), metrics


def _read_entry(entry: Mapping[str, Any], folder: Path) -> _Entry:
    temperatures = dict(entry.get("temperatures", {}))
    for name, value in temperatures.items():
        if not value > 0:
            raise ValueError(f"temperature {value!r} of {name}")
    return _Entry(folder / entry["folder"], entry.get("weights"), temperatures)


def _load(entry: _Entry, path: Path) -> Member:
    member = load_member(entry.folder)
    if entry.weights not in (None, member.digest):
        raise DataError(
            f"The weights of {entry.folder} have changed since {path} was written. {AGAIN}"
        )
    return replace(member, temperatures=entry.temperatures)
