"""Command line of dermedge: one module per command, imported when the command runs.

A command declares its options, calls the Python function of the same name and prints
the result. It imports torch inside its function, so that `--help` stays fast.
"""

import difflib
import importlib
import sys
import warnings
from functools import partial
from typing import Any

import click

from dermedge.cli.allocator import keep_freed_memory
from dermedge.cli.errors import explain, print_error
from dermedge.cli.notes import print_notes
from dermedge.cli.streams import discard_output, is_first_process, prepare_streams
from dermedge_runtime.packages import dermedge_version
from dermedge_runtime.printable import printable

COMMANDS = {
    "demo": "Run every stage on synthetic lesions.",
    "run": "Train, export, verify, evaluate and report in one command.",
    "data": "Import, list, check or split a data set.",
    "pretrain": "Pretrain a teacher on images with and without labels.",
    "teacher": "Import a published checkpoint as a teacher.",
    "probe": "Evaluate a teacher's frozen features.",
    "caption": "Train, run or evaluate a model that describes images in words.",
    "finetune": "Train a teacher, or a student without a teacher, on labelled images.",
    "distill": "Train a compact student from a teacher.",
    "federated": "Train one model at several clients, whose images stay there.",
    "export": "Export a student as a bundle, if it passes the accuracy gate.",
    "build": "Build a bundle's TensorRT engine on this device, and run the gate.",
    "verify": "Check that a bundle is intact and computes correctly here.",
    "embed": "Lay a bundle out for apps on Android, iOS or the web.",
    "evaluate": "Evaluate a bundle on labelled images, overall and per subgroup.",
    "readers": "Plan, run and analyze a reader study.",
    "bench": "Measure a bundle's latency and memory on this machine.",
    "predict": "Run a bundle on images.",
    "serve": "Serve a page that runs a bundle in a browser.",
    "inspect": "Show the contents of a bundle and its reports.",
    "parity": "Find the layers in which an artifact drifts from its student.",
    "students": "List the student presets with size, latency and targets.",
    "targets": "List the targets of export and what this machine can do for them.",
    "doctor": "Show what this machine can do and which extras are missing.",
}

# Commands that train on the CPU if there is no GPU; the allocator is tuned for them.
TRAINING_COMMANDS = frozenset(
    (
        *("demo", "run", "pretrain", "probe", "caption"),
        *("finetune", "distill", "federated", "export"),
    )
)


class _LazyCommands(click.Group):
    """A command group that imports a command's module when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"dermedge.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands for --help without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command; suggest the nearest name for an unknown one."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
            raise click.UsageError(f"Unknown command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 1 runtime error, 2 wrong usage, 3 accuracy gate failed, "
    "4 an engine or extra is missing, 5 bundle verification failed.",
)
@click.version_option(dermedge_version(), message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Export dermatology models to edge devices, with an accuracy gate.

    Start with `dermedge demo`, or `dermedge run --data FOLDER -o OUT` for your own
    images.
    """
    if context.invoked_subcommand in TRAINING_COMMANDS:
        keep_freed_memory()


def main(args: list[str] | None = None) -> None:
    """Run a command; print an expected error as one line and exit with its code."""
    prepare_streams()
    status: Any = 0
    try:
        with warnings.catch_warnings(), print_notes():
            # Pillow warns about odd EXIF data. An unusable image raises an error
            # instead.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            # Without standalone mode click raises its errors and returns the command's
            # value, so the exit codes are set here.
            status = cli.main(args=args, prog_name="dermedge", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        # click declares the message final, but offers no other hook for all its errors.
        error.message = printable(error.message)  # type: ignore[misc]
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        if is_first_process():
            click.echo("Interrupted. Finished results are kept.", err=True)
        status = 130  # As shells report a process that SIGINT ended: 128 + 2.
    except BrokenPipeError:
        status = 1  # The reader of the pipe has ended, so nobody needs a message.
    except Exception as error:
        known = explain(error, sys.argv[1:] if args is None else args)
        if known is None:
            raise
        # Of several training processes, the first that fails prints its error.
        distributed = sys.modules.get("dermedge.train.distributed")
        if distributed is None:
            print_error(known)
        else:
            distributed.report_once(partial(print_error, known))
        status = known.exit_code
    discard_output()
    sys.exit(status if isinstance(status, int) else 0)
