"""The texts that travel in a bundle: its model card, and whose work it rests on."""

from collections.abc import Mapping

from dermedge_runtime.files import pretty_json
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Artifact, Postprocessing, Spec, to_json


def model_card(
    spec: Spec, artifact: Artifact, postprocessing: Mapping[str, Postprocessing], report: ParityReport
) -> str:
    """Markdown for the person who was handed the file: what it answers, for whom, how sure, and what is not known."""
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
        *(_task_line(spec, name, postprocessing.get(name, Postprocessing())) for name in (t.name for t in spec.tasks)),
        "",
        "## Still the same model?",
        "",
        f"Compared with its fp32 student on {report.basis} ({report.cases} images, {report.engine}, "
        f"{report.hardware}): **{report.status}**.",
        "",
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


def licences(spec: Spec) -> dict[str, bytes]:
    """`LICENSES/`: where teacher, student and data come from and under which licences, as the spec's lineage says."""
    text = (
        f"# Origins of {spec.name} {spec.version}\n\n"
        "What this model was made of, as its maker recorded it in `lineage.json`. A model trained on data "
        "under a non-commercial licence must not be shipped commercially without legal advice.\n"
    )
    return {"LICENSES/README.md": text.encode(), "LICENSES/lineage.json": pretty_json(to_json(spec.lineage))}


def _task_line(spec: Spec, name: str, fitted: Postprocessing) -> str:
    task = spec.task(name)
    labels = ", ".join(label.name for label in task.labels) if task else ""
    temperature = "not fitted" if fitted.temperature is None else f"{fitted.temperature:.3f}"
    threshold = "" if fitted.threshold is None else f", decision threshold {fitted.threshold:.4f}"
    kind = task.kind if task else "?"
    return f"- `{name}` ({kind}{': ' + labels if labels else ''}); temperature {temperature}{threshold}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
