"""`students`: list the student presets with their measurements."""

from collections.abc import Mapping
from dataclasses import dataclass

from dermedge.models.student_presets import (
    DEFAULTS,
    EVERYWHERE,
    NOT_RUN,
    STUDENT_PRESETS,
    StudentPreset,
    read_measurements,
)
from dermedge_export.target import find_target


@dataclass(frozen=True)
class StudentState:
    """A student preset with its size and its latencies.

    Attributes:
        preset: The preset.
        default_for: Targets whose default student it is.
        parameters: Number of parameters, without heads.
        macs: Multiply-accumulates of one image, without heads.
        exports: Result of the export by target: `ok`, `refused`, `failed` or `not_run`.
        latency_ms: Milliseconds of one image by target and precision, or
            `not_run` for a target that the measuring machine could not run.

    Example:
        >>> state = students("jetson").students[0]
        >>> state.preset.name, state.latency_ms["jetson"]
        ('mobilenetv2_035', 'not_run')
    """

    preset: StudentPreset
    default_for: tuple[str, ...]
    parameters: int
    macs: int
    exports: Mapping[str, str]
    latency_ms: Mapping[str, Mapping[str, float] | str]


@dataclass(frozen=True)
class StudentsReport:
    """The student presets, and the machine that measured them.

    Attributes:
        date: Day of the measurement.
        machine: CPU with its instruction sets. `android` was timed on it too, by LiteRT.
        clock: What was measured, such as processor time.
        load: Load of the machine during the measurement.
        versions: Versions of the engines and tools.
        students: The presets, the smallest first.

    Example:
        >>> report = students()
        >>> len(report.students) >= 8, sorted(report.students[0].latency_ms)
        (True, ['android', 'cpu', 'ios', 'jetson', 'web'])
    """

    date: str
    machine: str
    clock: str
    load: float
    versions: Mapping[str, str]
    students: tuple[StudentState, ...]


def students(target: str | None = None) -> StudentsReport:
    """Return the student presets with parameters, MACs, targets and latencies.

    Every option that takes the name of a backbone takes the name of a preset.

    Args:
        target: Return only presets that this target does not refuse. None returns all.

    Raises:
        UsageError: The target is unknown.

    Example:
        >>> [state.preset.name for state in students("web").students if state.default_for]
        ['tf_efficientnet_lite0']
    """
    found = None if target is None else find_target(target)
    measured = read_measurements()
    states = [
        _describe(preset)
        for preset in STUDENT_PRESETS.values()
        if found is None or preset.exports_to(found)
    ]
    states.sort(key=lambda state: state.parameters)
    return StudentsReport(
        measured["date"],
        measured["machine"],
        measured["clock"],
        measured["load"],
        measured["versions"],
        tuple(states),
    )


def _describe(preset: StudentPreset) -> StudentState:
    facts = read_measurements()["presets"][preset.name]
    return StudentState(
        preset,
        tuple(target for target, name in DEFAULTS.items() if name == preset.name),
        facts["parameters"],
        facts["macs"],
        preset.exports,
        {target: facts["latency_ms"].get(target, NOT_RUN) for target in EVERYWHERE},
    )
