"""Write the model card and the licence files of a bundle."""

from collections.abc import Mapping
from typing import Any

from dermedge_export.evaluation.conformal import describe_unfitted
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Artifact, Postprocessing, Spec, Task, to_json

INT8 = (
    "Results of 8-bit arithmetic differ between instruction sets. These results hold for CPUs "
    "with the instruction set of the machine above; run `dermedge verify` on other machines."
)

GPU_HAZARDS = "gpu_hazards"
GPU_ADVICE = (
    "A GPU that computes in fp16 may be wrong or slow at such operators. Run this model on the "
    "CPU, or force fp32 on the GPU."
)


def model_card(
    spec: Spec,
    artifact: Artifact,
    postprocessing: Mapping[str, Postprocessing],
    report: ParityReport,
    device: Mapping[str, Any] | None = None,
) -> str:
    """Return the model card: Markdown for the person who receives the bundle.

    Args:
        spec: Spec of the model.
        artifact: Description of the artifact.
        postprocessing: Fitted postprocessing by task.
        report: Parity on the exporting machine.
        device: The manifest's `parity.device`; None if nothing has run on the device.
    """
    kept = ", ".join(f"`{name}`" for name in kept_fp32(artifact))
    lines = [
        f"# {spec.name} {spec.version}",
        "",
        f"For `{artifact.target}`: {artifact.format}, {artifact.precision}. "
        f"Needs {', '.join(artifact.requires) or 'nothing'}.",
        "",
        "## Intended use",
        "",
        spec.intended_use or "Not stated.",
        "",
        "## Input",
        "",
        f"One RGB photograph, {spec.preprocess.fit} to a square of {spec.preprocess.size} pixels "
        "by dermedge's own preprocessing. Do not resize it in any other way: the accuracy below "
        "holds only for this preprocessing.",
        "",
        "## Outputs",
        "",
        *(_task_line(task, postprocessing.get(task.name, Postprocessing())) for task in spec.tasks),
        "",
        "## Quantization",
        "",
        f"- calibration: {calibrated_on(artifact)}",
        f"- layers kept in fp32: {kept or 'none'}",
        "",
        "## Parity with the fp32 student",
        "",
        f"- on the exporting machine: **{report.status}**, measured on {report.basis} "
        f"({report.cases} images, {report.engine}, {report.hardware})",
        f"- on the device: {_device_line(device or {'status': 'not_run'})}",
        "",
        *([INT8, ""] if eight_bit(artifact) else []),
        *_limit_table(report),
        "",
        "## Limitations",
        "",
        *_abstention_lines(spec, postprocessing),
        "The gate did not evaluate subgroups with fewer than 100 cases.",
        "",
        *_gpu_lines(gpu_hazards(artifact)),
    ]
    return "\n".join(lines)


def _abstention_lines(spec: Spec, postprocessing: Mapping[str, Postprocessing]) -> list[str]:
    """Return what the model does with images that it cannot judge."""
    fits = [postprocessing.get(task.name, Postprocessing()) for task in spec.tasks]
    lines = []
    for fit in fits:
        if fit.conformal is not None:
            share = f"{100 * fit.conformal.coverage:.4g} %"
            lines.append(
                f"Conformal sets ({fit.conformal.method}) are fitted to hold the correct label for "
                f"{share} of the images of each label, on images like those of the val split. "
                "Photographs of another kind may be covered less."
            )
        if fit.rule_in is not None:
            lines.append(
                f"Scores from {fit.threshold:.4f} to {fit.rule_in:.4f} get the decision `refer`: a "
                "person must examine the image."
            )
    lines += list(describe_unfitted(spec, postprocessing))
    if all(fit.conformal is None for fit in fits):
        lines.append("Conformal sets are not fitted.")
    flags = [fit.ood_threshold for fit in fits if fit.ood_threshold is not None]
    lines += [
        f"An image with an OOD score above {threshold:.4g} is flagged as unlike the training "
        "images, and gets the decision `refer`. 5 % of the val images are flagged. The flag does "
        "not find every image without skin, nor every clinical photograph."
        for threshold in flags
    ]
    if flags and isinstance(fitted_on := spec.lineage.get("ood"), Mapping):
        lines.append(f"The flag was fitted on these foreign images: {_foreign_images(fitted_on)}.")
    if not flags:
        lines.append(
            "Out-of-distribution detection is not fitted. The model gives a prediction for any "
            "image, even if it shows no skin."
        )
    return lines


def _foreign_images(lineage: Mapping[str, Any]) -> str:
    """Return the kinds of foreign images that an OOD score was fitted on."""
    tables = lineage.get("tables", ())
    drawn = f"{lineage.get('drawn', 0)} drawn images without skin, no photographs"
    texts = [] if tables else [drawn]
    for table in tables:
        modalities = " and ".join(name or "unknown" for name in table["modalities"])
        texts.append(f"{table['images']} images of {table['name']} ({modalities})")
    return ", ".join(texts)


def calibrated_on(artifact: Artifact) -> str:
    """Return a description of the calibration images: their number, split and digest.

    Args:
        artifact: Description of the artifact.
    """
    record = artifact.calibration
    if record is None:
        return "none; this precision needs none"
    count, split = record.get("count", "unknown number of"), record.get("split", "unknown")
    digest = str(record.get("digest", "unknown"))[:12]
    return f"{count} images of split {split}, digest {digest}"


def kept_fp32(artifact: Artifact) -> tuple[str, ...]:
    """Return the names of the layers that stay in fp32 to keep the accuracy.

    Args:
        artifact: Description of the artifact.
    """
    return tuple(map(str, artifact.details.get("kept_fp32") or ()))


def gpu_hazards(artifact: Artifact) -> tuple[str, ...]:
    """Return the operators that a GPU may compute wrongly in fp16, with the reasons.

    Args:
        artifact: Description of the artifact.
    """
    return tuple(map(str, artifact.details.get(GPU_HAZARDS) or ()))


def other_details(artifact: Artifact) -> str:
    """Return the format's own properties, such as `opset 18, batch 1`.

    Args:
        artifact: Description of the artifact.
    """
    return ", ".join(
        f"{name} {value}"
        for name, value in artifact.details.items()
        if name not in ("kept_fp32", GPU_HAZARDS)
    )


def eight_bit(artifact: Artifact) -> bool:
    """Return whether activations are 8-bit integers, which CPUs multiply differently.

    Args:
        artifact: Description of the artifact.
    """
    return "int8" in artifact.precision or "a8" in artifact.precision


def licences(spec: Spec) -> dict[str, bytes]:
    """Return the files of `LICENSES/`: origins and licences of models and data.

    Args:
        spec: Spec of the model; its lineage lists the origins.

    Example:
        >>> from dermedge import Bundle
        >>> from dermedge_export.model_card import licences
        >>> sorted(licences(Bundle.open("toy.dermedge").spec))
        ['LICENSES/README.md', 'LICENSES/lineage.json']
    """
    text = (
        f"# Origins of {spec.name} {spec.version}\n\n"
        "`lineage.json` lists the models and data that this model was trained from, with their "
        "licences. Do not sell a model that was trained on data under a non-commercial licence "
        "without legal advice.\n"
    )
    return {
        "LICENSES/README.md": text.encode(),
        "LICENSES/lineage.json": pretty_json(to_json(spec.lineage)),
    }


def _task_line(task: Task, fitted: Postprocessing) -> str:
    labels = ", ".join(label.name for label in task.labels)
    temperature = "not fitted" if fitted.temperature is None else f"{fitted.temperature:.3f}"
    threshold = "" if fitted.threshold is None else f", decision threshold {fitted.threshold:.4f}"
    kind = f"{task.kind}: {labels}" if labels else task.kind
    return f"- `{task.name}` ({kind}); " + ", ".join(
        [f"temperature {temperature}{threshold}", *abstention_values(fitted)]
    )


def abstention_values(fitted: Postprocessing) -> list[str]:
    """Return texts with the fitted values by which a model abstains; [] without any.

    Args:
        fitted: Postprocessing of one task.
    """
    texts = []
    if fitted.rule_in is not None:
        texts.append(f"malignant from {fitted.rule_in:.4f}")
    if fitted.conformal is not None:
        share = f"{100 * fitted.conformal.coverage:.4g} %"
        texts.append(f"{fitted.conformal.method} sets of {share} coverage")
    if fitted.ood_threshold is not None:
        texts.append(f"OOD above {fitted.ood_threshold:.4g}")
    return texts


def _gpu_lines(hazards: tuple[str, ...]) -> list[str]:
    if not hazards:
        return []
    return [f"{GPU_ADVICE} They are:", "", *(f"- {one}" for one in hazards), ""]


def _limit_table(report: ParityReport) -> list[str]:
    rows = ["| metric | student | this artifact | loss | allowed | |", "|---|---|---|---|---|---|"]
    for limit in report.limits:
        values = (limit.reference, limit.candidate, limit.loss.value, limit.allowed)
        cells = " | ".join(_number(value) for value in values)
        rows.append(f"| {limit.metric} | {cells} | {limit.status} |")
    return rows


def _device_line(device: Mapping[str, Any]) -> str:
    state = f"**{device.get('status')}**"
    if todo := device.get("todo"):
        return f"{state}; to do {todo}"
    measured = ", ".join(str(device[key]) for key in ("engine", "hardware") if device.get(key))
    return f"{state}{f' ({measured})' if measured else ''}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
