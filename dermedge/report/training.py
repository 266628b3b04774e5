"""Summarize the `run.json` of a training for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dermedge.report import plots, text

LOSS_NAMES: Mapping[str, str] = {
    "dino": "DINO",
    "ibot": "iBOT",
    "ibot_per_masked_crop": "iBOT, per masked crop",
    "koleo": "KoLeo",
    "pull": "pull of prototypes",
    "loss": "total",
}
"""Key of a loss in the history of a pretraining -> its name on the page."""


@dataclass(frozen=True)
class Training:
    """Summary of one training.

    Attributes:
        role: Teacher, Student or Pretraining.
        name: Name of the model or of its backbone.
        finished: False for an interrupted training.
        validated: False for a pretraining, which uses no validation split.
        plot: Validation metrics by epoch.
        scores: (name, value) of the validation metrics of the kept epoch.
        facts: (name, value) of settings and resources.
        versions: Versions of the packages.

    Examples:
        >>> summarize_run({"command": "distill", "finished": True}).role
        'Student'
    """

    role: str
    name: str
    finished: bool
    validated: bool
    plot: Markup | None
    scores: Sequence[tuple[str, str]]
    facts: Sequence[tuple[str, str]]
    versions: str


def summarize_run(run: Mapping[str, Any]) -> Training:
    """Summarize the content of a `run.json`; missing fields are left out.

    Args:
        run: The content.

    Examples:
        >>> summarize_run({"settings": {"seed": 7}}).facts
        [('Seed', '7')]
    """
    settings = _mapping(run.get("settings"))
    # Older run.json files lack fields, and interrupted runs lack the last ones, so each
    # field is optional.
    pretrained = run.get("command") == "pretrain"
    role = settings.get("role") or {"distill": "student", "pretrain": "pretraining"}.get(
        str(run.get("command")), "model"
    )
    epochs = [epoch for epoch in run.get("history") or () if isinstance(epoch, Mapping)]
    best = run.get("best_epoch")
    backbone, spec = _mapping(settings.get("backbone")), _mapping(settings.get("spec"))
    versions = _mapping(run.get("versions"))
    return Training(
        role=str(role).capitalize(),
        name=str(spec.get("name") or backbone.get("name") or ""),
        finished=run.get("finished") is True,
        validated=not pretrained,
        plot=None if pretrained else plots.history(epochs, best if isinstance(best, int) else None),
        scores=_list_scores(run),
        facts=[
            (name, str(value))
            for name, value in _list_facts(run, settings, len(epochs))
            if value not in (None, "")
        ],
        versions=", ".join(f"{name} {value}" for name, value in versions.items() if value),
    )


def _list_scores(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the validation metrics of the kept epoch, with those of the teacher."""
    teacher = _mapping(run.get("teacher_val"))
    rows = []
    for key, value in _mapping(run.get("metrics")).items():
        if key in text.EVALUATION_METRICS:
            metric = text.EVALUATION_METRICS[key]
            write = text.FORMATS[metric.kind]
            reference = f", teacher {write(teacher[key])}" if key in teacher else ""
            rows.append((metric.name, write(value) + reference))
    return rows


def _list_facts(
    run: Mapping[str, Any], settings: Mapping[str, Any], ran: int
) -> list[tuple[str, Any]]:
    schedule, backbone = (
        _mapping(settings.get("schedule") or settings.get("recipe")),
        _mapping(settings.get("backbone")),
    )
    preprocess = _mapping(_mapping(settings.get("spec")).get("preprocess"))
    size, best = preprocess.get("size") or schedule.get("size"), run.get("best_epoch")
    machine = _mapping(run.get("machine"))
    planned = schedule.get("epochs")
    data = settings.get("data")
    return [
        (
            "Backbone",
            " ".join([str(backbone.get("name") or ""), *_pairs(backbone.get("args"))]).strip(),
        ),
        ("Parameters", text.millions(run["parameters"]) if "parameters" in run else None),
        ("Input", f"{size} x {size} pixels, {preprocess.get('fit', 'crops')}" if size else None),
        ("Initial weights", _initial_weights(settings.get("init"))),
        ("Epochs", f"{ran} of {planned} planned" if planned else ran or None),
        ("Kept epoch", best + 1 if isinstance(best, int) and best >= 0 else None),
        ("Optimizer", _optimizer(schedule)),
        ("Distillation", _distillation(settings)),
        ("Losses of the last epoch", _losses(run) if run.get("command") == "pretrain" else None),
        ("Warnings", " ".join(map(str, run.get("warnings") or ()))),
        (
            "Optimized for",
            {True: "balanced accuracy (logit adjustment)", False: "accuracy"}.get(
                settings.get("balance", "")
            ),
        ),
        ("Seed", settings.get("seed")),
        ("Precision", schedule.get("precision")),
        ("Wall time", text.duration(run["wall_seconds"]) if "wall_seconds" in run else None),
        ("CPU time", text.duration(run["cpu_seconds"]) if "cpu_seconds" in run else None),
        (
            "Machine",
            ", ".join(str(v) for v in (_cpus(machine.get("cpus")), machine.get("platform")) if v),
        ),
        (
            "Data digest",
            ", ".join(map(str, data if isinstance(data, list) else [data])) if data else None,
        ),
        ("Teacher's weights", settings.get("teacher")),
    ]


def _initial_weights(init: object) -> str | None:
    known = {"none": "random", "hub": "timm's published weights"}
    return None if init is None else known.get(str(init), str(init))


def _optimizer(schedule: Mapping[str, Any]) -> str:
    named = (
        ("batch_size", "batch"),
        ("lr", "learning rate"),
        ("weight_decay", "weight decay"),
        ("ema_decay", "moving average"),
    )
    values = {name: schedule[key] for key, name in named if schedule.get(key) is not None}
    return ", ".join(f"{name} {_first_to_last(value)}" for name, value in values.items())


def _first_to_last(value: object) -> str:
    """Format a setting, or the ends of one that changes during the training."""
    ends = dict.fromkeys(map(str, value if isinstance(value, list) else [value]))
    return " to ".join(ends)


def _distillation(settings: Mapping[str, Any]) -> str:
    named = (
        ("temperature", "temperature {}"),
        ("soft_weight", "soft weight {}"),
        ("views", "{} views per image"),
    )
    recipe = _mapping(settings.get("recipe")).get("name")
    facts = [f"recipe {recipe}"] if recipe else []
    facts += [words.format(settings[key]) for key, words in named if settings.get(key) is not None]
    return ", ".join(facts)


def _losses(run: Mapping[str, Any]) -> str:
    last = _mapping(next(reversed(run.get("history") or ()), None))
    return "; ".join(
        f"{LOSS_NAMES.get(name, name)} {value:.3f}"
        for name, value in last.items()
        if name != "images_per_second"
    )


def _cpus(count: object) -> str | None:
    return f"{count} CPU cores" if count else None


def _pairs(value: object) -> list[str]:
    return [f"{key}={item}" for key, item in _mapping(value).items()]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
