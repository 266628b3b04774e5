"""`dermedge targets`."""

import click

from dermedge.cli.console import emit, json_option, table
from dermedge_export.target import GROUP, TARGETS, Target, find_target
from dermedge_runtime.registry import entries


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List what bundles can be made for, and what their devices need."""
    emit([find_target(name) for name in entries(TARGETS, GROUP)], as_json, show)


def show(targets: list[Target]) -> None:
    """Print a line per target."""
    rows = [(t.name, t.format, ", ".join(t.precisions), ", ".join(t.requires), _gate(t), t.checked) for t in targets]
    table(("target", "format", "precisions", "needs", "gate", "checked"), rows)


def _gate(target: Target) -> str:
    return ", ".join(f"{name} {value}" for name, value in target.gate.items()) or "default limits"
