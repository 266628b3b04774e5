"""The texts that travel in a bundle: its model card, and whose work it rests on."""

from collections.abc import Mapping
from typing import Any

from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Artifact, Postprocessing, Spec, to_json

INT8 = (
    "8-bit results differ between instruction sets: these hold where products are computed as on the machine above; "
    "`dermedge verify` asks another one."
)


def model_card(
    spec: Spec,
    artifact: Artifact,
    postprocessing: Mapping[str, Postprocessing],
    report: ParityReport,
    device: Mapping[str, Any] | None = None,
) -> str:
    """Markdown for the person who was handed the file: what it answers, for whom, how sure, and what is not known.

    Args:
        spec: what the model is.
        artifact: which file for which target.
        postprocessing: what was fitted, by task.
        report: its parity on the exporting machine.
        device: the manifest's `parity.device`; None where nothing has run on the device.
    """
    lines = [
        f"# {spec.name} {spec.version}",
        "",
        f"For `{artifact.target}`: {artifact.format}, {artifact.precision}. "
        f"Needs {', '.join(artifact.requires) or 'nothing'}.",
        "",
        "## Intended use",
        "",
        spec.intended_use or "Not stated by its maker.",
        "",
        "## Input",
        "",
        f"One RGB photograph, {spec.preprocess.fit} to a square of {spec.preprocess.size} pixels "
        "by dermedge's own preprocessing. Any other resizing is another model.",
        "",
        "## Answers",
        "",
        *(
            _task_line(spec, name, postprocessing.get(name, Postprocessing()))
            for name in (t.name for t in spec.tasks)
        ),
        "",
        "## How it was rounded",
        "",
        f"- calibration: {calibrated_on(artifact)}",
        f"- kept in fp32: {', '.join(f'`{name}`' for name in kept_fp32(artifact)) or 'no layer by choice'}",
        "",
        "## Still the same model?",
        "",
        f"- on the exporting machine: **{report.status}**, compared with its fp32 student on {report.basis} "
        f"({report.cases} images, {report.engine}, {report.hardware})",
        f"- on the device: {_device_line(device or {'status': 'not_run'})}",
        "",
        *([INT8, ""] if eight_bit(artifact) else []),
        "| metric | student | this artifact | loss | allowed | |",
        "|---|---|---|---|---|---|",
        *(
            f"| {limit.metric} | {_number(limit.reference)} | {_number(limit.candidate)} | {_number(limit.loss.value)} "
            f"| {_number(limit.allowed)} | {limit.status} |"
            for limit in report.limits
        ),
        "",
        "## Not known",
        "",
        "Out-of-distribution detection and conformal sets are not fitted: the model answers for any picture, also "
        "for one that shows no skin. Subgroups with fewer than 100 cases were not judged.",
        "",
    ]
    return "\n".join(lines)


def calibrated_on(artifact: Artifact) -> str:
    """Which images told quantization the ranges of activations."""
    found = artifact.calibration
    if found is None:
        return "none, its precision needs none"
    images = (
        f"{found.get('count', 'unknown number of')} images of split {found.get('split', 'unknown')}"
    )
    return f"{images}, digest {str(found.get('digest', 'unknown'))[:12]}"


def kept_fp32(artifact: Artifact) -> tuple[str, ...]:
    """The layers that were kept in fp32 because rounding them costs accuracy."""
    return tuple(map(str, artifact.details.get("kept_fp32") or ()))


def other_details(artifact: Artifact) -> str:
    """What else only this format has: `opset 18, batch 1`."""
    return ", ".join(
        f"{name} {value}" for name, value in artifact.details.items() if name != "kept_fp32"
    )


def eight_bit(artifact: Artifact) -> bool:
    """Whether activations are 8-bit integers, which CPUs multiply differently."""
    return "int8" in artifact.precision or "a8" in artifact.precision


def licences(spec: Spec) -> dict[str, bytes]:
    """`LICENSES/`: where teacher, student and data come from and under which licences, as the spec's lineage says."""
    text = (
        f"# Origins of {spec.name} {spec.version}\n\n"
        "What this model was made of, as its maker recorded it in `lineage.json`. A model trained on data "
        "under a non-commercial licence must not be shipped commercially without legal advice.\n"
    )
    return {
        "LICENSES/README.md": text.encode(),
        "LICENSES/lineage.json": pretty_json(to_json(spec.lineage)),
    }


def _task_line(spec: Spec, name: str, fitted: Postprocessing) -> str:
    task = spec.task(name)
    labels = ", ".join(label.name for label in task.labels) if task else ""
    temperature = "not fitted" if fitted.temperature is None else f"{fitted.temperature:.3f}"
    threshold = "" if fitted.threshold is None else f", decision threshold {fitted.threshold:.4f}"
    kind = task.kind if task else "?"
    return f"- `{name}` ({kind}{': ' + labels if labels else ''}); temperature {temperature}{threshold}"


def _device_line(device: Mapping[str, Any]) -> str:
    state = f"**{device.get('status')}**"
    if todo := device.get("todo"):
        return f"{state}; to do {todo}"
    measured = ", ".join(str(device[key]) for key in ("engine", "hardware") if device.get(key))
    return f"{state}{f' ({measured})' if measured else ''}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
