"""The reports that every platform writes as the same JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dermedge_runtime.canonical_json import parse_json
from dermedge_runtime.errors import BundleError
from dermedge_runtime.spec import Json
from dermedge_runtime.spec import Status as Status

if TYPE_CHECKING:
    from dermedge_runtime.bundle import Bundle

# Reports that a bundle may carry, by their path in it.
PARITY_REPORT = "reports/parity.json"
CANDIDATES_REPORT = "reports/candidates.json"
REFERENCE_REPORT = "reports/reference.json"
TRAINING_IMAGES = "reports/training_images.txt"
# Reports name an image by the first hexadecimal digits of its file's SHA-256: 64 bits find
# an image again among millions, in a quarter of the space.
DIGEST_PREFIX = 16


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % interval; `low` and `high` are None where no interval can be given."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Check:
    """One question that was asked of a bundle, and its answer."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """The answers of `verify`, in the order in which they were asked; those after a failure are `not_run`, and so is
    the engine's where this machine cannot have that engine.
    """

    bundle: str
    engine: str
    status: Status
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds of one stage over all timed calls."""

    p50: float
    p90: float
    p99: float
    mean: float
    count: int


@dataclass(frozen=True)
class LatencyReport:
    """What `bench` measured; times in milliseconds, memory in bytes (None where the system does not tell).

    `end_to_end` starts at encoded bytes, `engine` is the bare engine call. `sustained` holds the end-to-end median of
    each tenth of a sustained run, so that throttling shows.
    """

    bundle: str
    engine: str
    engine_version: str
    device: Mapping[str, str]
    threads: int | None
    image: str
    end_to_end: Percentiles
    preprocess: Percentiles
    engine_only: Percentiles
    cold_start_ms: float
    resident_bytes: int | None
    sustained: tuple[float, ...] = ()


@dataclass(frozen=True)
class Limit:
    """One line of the gate: what was measured, what was allowed, and what came of it.

    `reference` and `candidate` are the metric on each side; `loss` is how much worse the candidate is, in the limit's
    own unit, with a 95 % interval from a paired bootstrap over lesions or patients.
    """

    metric: str
    status: Status
    reference: float | None
    candidate: float | None
    loss: Interval
    allowed: float | None
    cases: int
    note: str = ""


@dataclass(frozen=True)
class Subgroup:
    """Balanced accuracy of reference and candidate within one subgroup (`column` = `value`), and its loss as a share of
    the reference's. Within one class (`class` = its label) that is the class's recall.
    """

    column: str
    value: str
    cases: int
    reference: Interval
    candidate: Interval
    loss: Interval


@dataclass(frozen=True)
class ParityReport:
    """Two tables of predictions over the same images, compared.

    `basis` says on what (`test split of ham10000`, `procedural lesions`); `engine` and `hardware` name who produced
    the candidate. `classes` holds a `Subgroup` for each class with a labelled image; it is missing in older reports.
    """

    status: Status
    basis: str
    cases: int
    engine: str
    hardware: str
    precision: str
    limits: tuple[Limit, ...]
    subgroups: tuple[Subgroup, ...] = ()
    agreement: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[Subgroup, ...] = ()


def read_report(bundle: "Bundle", path: str) -> Json:
    """Read a JSON report of a bundle; return an empty object if the bundle has no such file.

    Args:
        bundle: The opened bundle.
        path: Path of the report within the bundle, such as `PARITY_REPORT`.

    Raises:
        BundleError: The report is not a JSON object, or changed after the bundle was opened.
    """
    if path not in bundle.files:
        return {}
    report = parse_json(bundle.read(path), path, BundleError)
    if not isinstance(report, dict):
        raise BundleError(f"{path} of {bundle.path} is not a JSON object; export the model again.")
    return report
