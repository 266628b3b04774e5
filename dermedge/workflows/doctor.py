"""`doctor`: report this machine, and the installed and missing extras."""

from dataclasses import dataclass

from dermedge.workflows.extras import extras, purpose
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import GROUP, RUNTIMES
from dermedge_runtime.packages import dermedge_version, find_version
from dermedge_runtime.registry import list_entries


@dataclass(frozen=True)
class ExtraState:
    """An extra, the verbs that it enables, and its installed and missing packages.

    `status` is `ok` if nothing is missing, else `missing`.

    Example:
        >>> [extra] = [extra for extra in doctor().extras if extra.name == "evaluate"]
        >>> extra.status, "pandas" in extra.versions
        ('ok', True)
    """

    name: str
    enables: str
    status: str
    versions: dict[str, str]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class DoctorReport:
    """This machine, the engines that dermedge knows, and the state of each extra.

    Example:
        >>> report = doctor()
        >>> missing = [extra.name for extra in report.extras if extra.missing]
        >>> "onnxruntime" in report.engines, "evaluate" in missing
        (True, False)
    """

    dermedge: str
    device: dict[str, str]
    engines: tuple[str, ...]
    extras: tuple[ExtraState, ...]


def doctor() -> DoctorReport:
    """Report this machine and its packages without importing an engine.

    Example:
        >>> [extra.enables for extra in doctor().extras if extra.name == "evaluate"]
        ['evaluate, build']
    """
    return DoctorReport(
        dermedge_version(),
        dict(describe_device()),
        tuple(sorted(list_entries(RUNTIMES, GROUP))),
        tuple(_describe_extra(extra, sorted(packages)) for extra, packages in extras().items()),
    )


def _describe_extra(extra: str, packages: list[str]) -> ExtraState:
    versions = {name: text for name in packages if (text := find_version(name))}
    missing = tuple(name for name in packages if name not in versions)
    return ExtraState(extra, purpose(extra), "missing" if missing else "ok", versions, missing)
