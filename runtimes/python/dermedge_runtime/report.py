"""Define the reports that every platform writes as the same JSON."""

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
VALIDATION_IMAGES = "reports/validation_images.txt"
# Reports name an image by the first hexadecimal digits of its file's SHA-256: 64 bits
# find an image again among millions, in a quarter of the space.
DIGEST_PREFIX = 16


@dataclass(frozen=True)
class Interval:
    """Point estimate with its 95 % interval.

    `low` and `high` are None if no interval can be computed. `value` is None if there
    is no estimate.

    Example:
        >>> Interval(0.87, 0.81, 0.92).low
        0.81
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Check:
    """One check of `verify`: its name, its status and a text about its measurement.

    Example:
        >>> from dermedge_runtime.verify import verify
        >>> for check in verify("toy.dermedge").checks[:2]:
        ...     print(f"{check.name}: {check.status}, {check.detail}")
        files: passed, ... files and ... golden cases are intact
        preprocessing: passed, ...
    """

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify`: the checks in the order in which they run.

    Checks after a failure are `not_run`. So is the engine's check if this machine
    cannot have that engine. `bundle` is the bundle's id, or its path if it could not be
    opened.

    Example:
        >>> from dermedge_runtime.verify import verify
        >>> report = verify("toy.dermedge")
        >>> report.status
        'passed'
        >>> [check.name for check in report.checks if check.status == "failed"]
        []
    """

    bundle: str
    engine: str
    status: Status
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds of one stage over all timed calls.

    Example:
        >>> from dermedge_runtime.bench import percentiles
        >>> times = percentiles([2.0] * 99 + [40.0])
        >>> f"p50 {times.p50:.1f} ms, p99 {times.p99:.1f} ms, {times.count} calls"
        'p50 2.0 ms, p99 2.4 ms, 100 calls'
    """

    p50: float
    p90: float
    p99: float
    mean: float
    count: int


@dataclass(frozen=True)
class LatencyReport:
    """Result of `bench`: times in milliseconds, memory in bytes.

    `end_to_end` starts at encoded bytes; `engine_only` is the bare engine call.
    `sustained` holds the end-to-end median of each tenth of a sustained run, which
    shows throttling. `resident_bytes` is None on systems that do not report it. `cpus`
    is the number of CPUs that the process may use, and None in older reports.

    Example:
        >>> from dermedge_runtime.bench import bench
        >>> report = bench("toy.dermedge", image="lesion.png", runs=5, warmup=1)
        >>> report.engine_only.p50 < report.end_to_end.p50 < report.cold_start_ms
        True
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
    cpus: int | None = None


@dataclass(frozen=True)
class Limit:
    """One limit of the gate: the metric, the allowed loss and the measured loss.

    `reference` and `candidate` are the metric of each side. `loss` is positive if the
    candidate is worse, and has the unit of the limit. Its 95 % interval comes from a
    paired bootstrap over lesions or patients.

    Example:
        >>> loss = Interval(0.004, -0.002, 0.011)
        >>> limit = Limit("macro_auroc", "passed", 0.93, 0.926, loss, 0.02, cases=400)
        >>> limit.loss.high <= limit.allowed
        True
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
    """Balanced accuracy of reference and candidate within one subgroup.

    `column` = `value` defines the subgroup. `loss` is a share of the reference's
    balanced accuracy. If `column` is `class` and `value` a label, the metric is that
    class's recall. In `ParityReport.coverage` it is the coverage of the class, and `loss`
    is the difference to the reference, which counts up to the coverage that the sets are
    fitted to.

    Example:
        >>> light, dark = Interval(0.85, 0.81, 0.89), Interval(0.76, 0.68, 0.84)
        >>> subgroups = (
        ...     Subgroup("fitzpatrick", "II", 310, light, light, loss=Interval(0.0)),
        ...     Subgroup("fitzpatrick", "V", 90, dark, dark, loss=Interval(0.03)),
        ... )
        >>> worst = max(subgroups, key=lambda subgroup: subgroup.loss.value)
        >>> f"{worst.column} {worst.value}: loss {worst.loss.value:.0%}"
        'fitzpatrick V: loss 3%'
    """

    column: str
    value: str
    cases: int
    reference: Interval
    candidate: Interval
    loss: Interval


@dataclass(frozen=True)
class ParityReport:
    """Comparison of two tables of predictions over the same images.

    `basis` names the images (`test split of ham10000`, `procedural lesions`). `engine`
    and `hardware` name what computed the candidate's predictions. `classes` holds a
    `Subgroup` for each class that has a labelled image. `coverage` holds the coverage of
    conformal sets for each such class. Older reports lack these two.

    Example:
        >>> exact = Limit("non_finite", "passed", None, None, Interval(0.0), 0.0, 400)
        >>> few = Limit("ece", "insufficient", None, None, Interval(None), 0.02, 12)
        >>> names = ("test split of x", 400, "onnxruntime", "cpu", "int8")
        >>> report = ParityReport("insufficient", *names, limits=(exact, few))
        >>> [limit.metric for limit in report.limits if limit.status != "passed"]
        ['ece']
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
    coverage: tuple[Subgroup, ...] = ()


def outcome_name(status: object) -> str:
    """Return the name of a candidate's outcome, for people.

    Args:
        status: Status of the candidate in `CANDIDATES_REPORT`. Its schema writes `won`
            for the selected candidate.

    Example:
        >>> outcome_name("won"), outcome_name("failed")
        ('selected', 'failed')
    """
    return "selected" if status == "won" else str(status)


def read_report(bundle: "Bundle", path: str) -> Json:
    """Read a JSON report of a bundle; return an empty object if it has no such file.

    Args:
        bundle: The opened bundle.
        path: Path of the report within the bundle, such as `PARITY_REPORT`.

    Raises:
        BundleError: The report is not a JSON object, or changed after the bundle was
            opened.

    Example:
        >>> from dermedge_runtime.bundle import Bundle
        >>> read_report(Bundle.open("toy.dermedge"), PARITY_REPORT)["status"]
        'passed'
    """
    if path not in bundle.files:
        return {}
    report = parse_json(bundle.read(path), path, BundleError)
    if not isinstance(report, dict):
        raise BundleError(f"{path} of {bundle.path} is not a JSON object. Export the model again.")
    return report
