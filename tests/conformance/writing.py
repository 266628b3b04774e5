"""Write the lists of cases, and keep files that no two machines encode alike."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from dermedge_runtime.spec import Json

FOLDER = Path(__file__).parent
Files = dict[str, bytes]
"""Content by path within the folder."""


def cases_json(cases: Sequence[Json]) -> bytes:
    """Return `{"cases": [...]}` with one case a line."""
    lines = ",\n".join(json.dumps(case, allow_nan=False, separators=(",", ":")) for case in cases)
    return f'{{"cases": [\n{lines}\n]}}\n'.encode()


def keep(path: str, make: Callable[[], bytes]) -> bytes:
    """Return a committed file, or make it if it does not exist.

    Encoders of JPEG and GIF, and converters of models, write other bytes in other
    versions. Delete the file to make it again.
    """
    kept = FOLDER / path
    return kept.read_bytes() if kept.exists() else make()
