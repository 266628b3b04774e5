"""`dermedge export`."""

from pathlib import Path

import click

from dermedge.cli.console import emit, json_option, known_target, overwrite_option, progress
from dermedge.cli.inspect import show


@click.command("export")
@click.argument("student", type=click.Path(path_type=Path))
@click.option(
    "--target", required=True, callback=known_target, help="What to export for; `dermedge targets` lists them."
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Table: val fits the postprocessing, test is what the gate judges."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write NAME-TARGET.dermedge into."
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open; it is 1 by default.")
@click.option(
    "--allow-parity-failure", is_flag=True, help="Write the bundle although the gate failed, and record that."
)
@overwrite_option
@json_option
def command(
    student: Path,
    target: str,
    data: Path | None,
    out: Path,
    dynamic_batch: bool,
    allow_parity_failure: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn STUDENT, a folder that training wrote, into a bundle, compared with the student before it is written.

    Exit code 3, and no bundle, if it lost more accuracy than the target allows. Without --data only agreement with
    the student on procedural lesions is judged, and nothing is fitted.
    """
    from dermedge.exporting import export

    with progress("export") as tell:
        bundle = export(
            student,
            target,
            out,
            data=data,
            dynamic_batch=dynamic_batch,
            allow_parity_failure=allow_parity_failure,
            overwrite=overwrite,
            progress=tell,
        )
    emit(bundle, as_json, show)
    if not as_json:
        click.echo(f"wrote {bundle.path}")
