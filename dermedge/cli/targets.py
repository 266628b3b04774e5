"""`dermedge targets`: options and printing."""

from collections.abc import Iterator

import click

from dermedge.cli.console import (
    emit,
    json_option,
    print_line,
    table,
)
from dermedge.workflows.extras import extra_of
from dermedge.workflows.targets import TargetState, targets
from dermedge_export.target import Target


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List the targets, what their devices need, and what this machine can do."""
    emit(targets(), as_json, show)


def show(states: list[TargetState]) -> None:
    """Print the targets, then the abilities of this machine and the missing extras.

    A variant is printed below its family, with only the cells that differ.
    """
    families = {state.target.name: state.target for state in states}
    rows = [_describe(state.target, families.get(state.target.family)) for state in states]
    table(("target", "format", "precisions", "engine", "device needs"), rows)
    own = [state for state in states if state.target.family not in families]
    table(
        ("here", "builds", "runs", "checks by", "limits"), [_list_abilities(state) for state in own]
    )
    for line in dict.fromkeys(line for state in own for line in _list_commands(state)):
        print_line(line)


def _describe(target: Target, family: Target | None) -> tuple[str, ...]:
    """Return the cells of a target; those equal to its family's are empty."""
    needs = ", ".join(target.requires)
    if "provider" in target.facts:
        needs = ", ".join(
            str(target.facts[key]) for key in ("provider", "abi") if key in target.facts
        )
    cells = (target.format, ", ".join(target.precisions), target.engine, needs)
    if family is None:
        return (target.name, *cells)
    _, *family_cells = _describe(family, None)
    return (
        f"  {target.name}",
        *("" if cell == same else cell for cell, same in zip(cells, family_cells, strict=True)),
    )


def _list_abilities(state: TargetState) -> tuple[str, ...]:
    """Return the cells on this machine: precisions, engines, check and limits."""
    builds = ", ".join(precision for precision, missing in state.build.items() if missing == ())
    limits = ", ".join(f"{name} {value:g}" for name, value in state.target.gate.items())
    return (
        state.target.name,
        builds or "-",
        ", ".join(state.run) or "-",
        state.check or "-",
        limits or "default",
    )


def _list_commands(state: TargetState) -> Iterator[str]:
    """Yield the commands to run next, here or on the device."""
    name = state.target.name
    for precision, missing in state.build.items():
        if missing is None:
            yield f"{name} {precision}: no exporter builds it for this CPU"
        elif missing:
            extras = ",".join(sorted({extra_of(module) or module for module in missing}))
            yield f"{name} {precision}: pip install 'dermedge[{extras}]'"
    if state.target.todo:
        yield f"{name}, once exported, {state.target.todo.format(bundle='BUNDLE')}"
