"""The command line: one file per verb, imported when it is asked for, each a thin call of the Python function of that
name.
"""

import difflib
import importlib
import sys
import warnings
from typing import Any

import click

from dermedge.cli.console import explain

COMMANDS = {
    "demo": "Run the whole way on procedural lesions, to see it work.",
    "run": "Go the whole way, from images to a bundle and a report.",
    "data": "Add, list, check or split a data set.",
    "pretrain": "Pretrain a teacher on images with and without labels.",
    "teacher": "Import a published checkpoint as a teacher.",
    "probe": "Measure what a teacher's features already hold.",
    "finetune": "Train a teacher, or a student alone, on labelled images.",
    "distill": "Train a compact student from a teacher.",
    "export": "Turn a student into a gated bundle for a target.",
    "build": "Build a bundle's engine on this device, and gate it there.",
    "verify": "Check that a bundle is intact and right on this machine.",
    "evaluate": "Measure a bundle on labelled images, overall and per subgroup.",
    "bench": "Measure a bundle's speed and memory on this machine.",
    "predict": "Ask a bundle about images.",
    "inspect": "Show what a bundle is, and what is known about it.",
    "parity": "Find where an artifact drifts from its student.",
    "targets": "List what bundles can be made for.",
    "doctor": "Show what this machine can do, and what to install for the rest.",
}


class Verbs(click.Group):
    """The verbs, in the order in which they are used, none of them imported before its turn."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"dermedge.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for --help, without importing a single verb."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
            raise click.UsageError(f"Unknown command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 something went wrong, 2 wrong usage, 3 the accuracy gate failed, 4 an engine or an "
    "extra is missing, 5 a bundle did not verify.",
)
@click.version_option(package_name="dermedge", message="%(prog)s %(version)s")
def cli() -> None:
    """Get a dermatology model onto phones, Jetsons and plain CPUs, with proof that it is still the same model."""


def main(args: list[str] | None = None) -> None:
    """Run a command; every error that dermedge raises on purpose becomes one line and its exit code."""
    try:
        with warnings.catch_warnings():
            # A photograph with odd EXIF is still one; what makes it unusable is an error, not a warning.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            status: Any = cli.main(args=args, prog_name="dermedge", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; what was finished is kept.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has left; there is nobody to tell
        sys.exit(1)
    except Exception as error:
        known = explain(error, sys.argv[1:] if args is None else args)
        if known is None:
            raise
        click.echo(f"Error: {known}", err=True)
        sys.exit(known.exit_code)
    sys.exit(status if isinstance(status, int) else 0)
