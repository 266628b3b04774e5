"""Every option of a command is a keyword of its function, or a field of its options."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

import dermedge
from dermedge.cli import cli

# Commands whose function has another name than theirs.
FUNCTIONS = {
    "caption evaluate": "evaluate_caption",
    "caption predict": "predict_caption",
    "caption train": "train_caption",
    "data add": "add_data",
    "data caption": "caption_data",
    "data check": "check_data",
    "data sets": "list_data_sets",
    "data split": "split_data",
    "federated client": "join_federated",
    "federated server": "serve_federated",
    "federated simulate": "simulate_federated",
    "parity debug": "debug_parity",
    "readers analyze": "analyze_readers",
    "readers kit": "write_reader_kit",
    "readers plan": "plan_readers",
    "teacher ensemble": "make_ensemble",
    "teacher import": "import_teacher",
}
# Printing and opening a browser belong to the command line. `--preset` names a recipe, which
# the other options change. `predict --explain` draws the maps of `Prediction.cam`.
OWN = {"as_json", "open_page", "preset"}
OWN_BY_COMMAND = {"predict": {"explain"}}
PUBLIC = {name: getattr(dermedge, name) for name in dermedge.__all__}


def commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands())


def option_classes(annotation: Any) -> Iterator[type]:
    """Yield the dataclasses in an annotation."""
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and dataclasses.is_dataclass(part):
            yield part
        elif isinstance(part, types.UnionType) or typing.get_origin(part):
            for inner in typing.get_args(part):
                yield from option_classes(inner)


def keywords(function: Callable[..., Any]) -> set[str]:
    """Return the names of a function's parameters, and of the fields of its option classes."""
    hints = typing.get_type_hints(function)
    names = set(inspect.signature(function).parameters)
    pending = [
        kind
        for name, hint in hints.items()
        if name in ("options", "recipe", "partition", "tls")
        for kind in option_classes(hint)
    ]
    while pending:
        options = pending.pop()
        assert options.__dataclass_params__.frozen, options  # type: ignore[attr-defined]
        fields = typing.get_type_hints(options, vars(inspect.getmodule(options)), PUBLIC)
        names |= set(fields)
        pending += [kind for hint in fields.values() for kind in option_classes(hint)]
    return names


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_a_keyword_of_the_function_of_that_name(name: str) -> None:
    function = getattr(dermedge, FUNCTIONS.get(name, name))
    options = {str(parameter.name) for parameter in COMMANDS[name].params}
    options -= OWN | OWN_BY_COMMAND.get(name, set())
    assert options <= keywords(function), options - keywords(function)


def test_no_function_has_more_than_ten_parameters() -> None:
    for name in COMMANDS:
        function = getattr(dermedge, FUNCTIONS.get(name, name))
        assert len(inspect.signature(function).parameters) <= 10, name
