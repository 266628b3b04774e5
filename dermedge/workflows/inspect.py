"""`inspect`: open a bundle, and write its content as one HTML page."""

from pathlib import Path

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import MissingExtraError
from dermedge_runtime.files import check_free


def inspect(
    bundle: Path | str | Bundle, *, html: Path | str | None = None, overwrite: bool = False
) -> Bundle:
    """Open a bundle, check all of its files, and optionally write a page about it.

    Args:
        bundle: A bundle or its path.
        html: File of the page. It shows all contents of the bundle: the parity by
            subgroup and class, and the reason why this candidate was selected. None
            writes no page.
        overwrite: Replace an existing page.

    Returns:
        The opened bundle.

    Raises:
        BundleError: The bundle is damaged.
        UsageError: The page exists, and `overwrite` is not set.
        MissingExtraError: `html` is given, and the extra `report` is not installed.

    Example:
        >>> from dermedge.workflows.inspect import inspect
        >>> bundle = inspect("toy.dermedge", html="toy.html")
        >>> bundle.spec.name, bundle.artifact.precision
        ('toy', 'fp32')
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if html is not None:
        check_free(Path(html), overwrite=overwrite)
        try:
            from dermedge.report.html import write_report
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                error.name or "jinja2", "report", "`dermedge inspect --html`"
            ) from error
        write_report(Path(html), bundle=opened)
    return opened
