"""`dermedge targets`."""

from collections.abc import Iterator

import click

from dermedge.cli.console import emit, json_option, table
from dermedge.workflows.extras import extra_of
from dermedge.workflows.targets import TargetState, targets
from dermedge_export.target import Target


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List the targets, what their devices need, and what this machine can do for them."""
    emit(targets(), as_json, show)


def show(states: list[TargetState]) -> None:
    """Print the targets, then what this machine can build, run and check, and what is missing.

    A variant stands below its family, with only the cells that differ.
    """
    families = {state.target.name: state.target for state in states}
    rows = [_described(state.target, families.get(state.target.family)) for state in states]
    table(("target", "format", "precisions", "engine", "device needs"), rows)
    own = [state for state in states if state.target.family not in families]
    table(("here", "builds", "runs", "checks by", "limits"), [_possible(state) for state in own])
    for line in dict.fromkeys(line for state in own for line in _remaining(state)):
        click.echo(line)


def _described(target: Target, family: Target | None) -> tuple[str, ...]:
    needs = ", ".join(target.requires)
    if "provider" in target.facts:
        needs = ", ".join(
            str(target.facts[key]) for key in ("provider", "abi") if key in target.facts
        )
    cells = (target.format, ", ".join(target.precisions), target.engine, needs)
    if family is None:
        return (target.name, *cells)
    _, *same = _described(family, None)
    return (
        f"  {target.name}",
        *("" if mine == its else mine for mine, its in zip(cells, same, strict=True)),
    )


def _possible(state: TargetState) -> tuple[str, ...]:
    builds = ", ".join(precision for precision, missing in state.build.items() if missing == ())
    limits = ", ".join(f"{name} {value:g}" for name, value in state.target.gate.items())
    return (
        state.target.name,
        builds or "-",
        ", ".join(state.run) or "-",
        state.check or "-",
        limits or "default",
    )


def _remaining(state: TargetState) -> Iterator[str]:
    """Yield the commands that remain, here or on the device."""
    name = state.target.name
    for precision, missing in state.build.items():
        if missing is None:
            yield f"{name} {precision}: no exporter builds it for this CPU"
        elif missing:
            extras = ",".join(sorted({extra_of(name) or name for name in missing}))
            yield f"{name} {precision}: pip install 'dermedge[{extras}]'"
    if state.target.todo:
        yield f"{name}, once exported, {state.target.todo.format(bundle='BUNDLE')}"
