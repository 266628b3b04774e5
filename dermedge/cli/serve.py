"""`dermedge serve`: options and printing."""

import webbrowser
from pathlib import Path

import click

from dermedge.cli.console import bundle_argument, print_line
from dermedge.workflows.serve import PageServer, serve

PHONE = (
    "Browsers allow the camera and the check of the bundle's files only over HTTPS or on "
    "localhost, so another device cannot run the page from this address. Give --cert and --key "
    "for HTTPS, or forward the port to a phone with `adb reverse`."
)


@click.command("serve")
@bundle_argument
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 is reached from a phone in the same network.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="TCP port; 0 chooses a free one.",
)
@click.option(
    "--cert",
    type=click.Path(path_type=Path),
    help="Certificate for HTTPS as PEM. A phone's camera needs HTTPS.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="Private key of the certificate as PEM. Default: it is in the same file.",
)
@click.option(
    "--page",
    type=click.Path(path_type=Path),
    help="Folder of another built page. Default: the one that was built with dermedge.",
)
@click.option("--open", "open_page", is_flag=True, help="Open the page in the default browser.")
def command(
    bundle: Path,
    host: str,
    port: int,
    cert: Path | None,
    key: Path | None,
    page: Path | None,
    open_page: bool,
) -> int:
    """Serve a page that runs BUNDLE in a browser, on this machine or on a phone.

    Images stay in the browser. The page can be installed, and works offline after the
    first load.
    """
    with serve(bundle, host=host, port=port, cert=cert, key=key, page=page) as server:
        try:
            show(server)
            if open_page:
                webbrowser.open(server.url)
            server.wait()
        except KeyboardInterrupt:
            print_line("Stopped.")
    return 0


def show(server: PageServer) -> None:
    """Print the address and the model, and what a phone needs if it cannot run the page."""
    spec, artifact = server.bundle.spec, server.bundle.artifact
    print_line(f"{server.url}")
    print_line(
        f"{spec.name} {spec.version} ({artifact.format}, {artifact.precision}), "
        f"bundle {server.bundle.id[:16]}. Press Ctrl-C to stop."
    )
    if not server.secure:
        print_line(PHONE, fg="yellow", err=True)
