"""Look up versions of installed packages, also where their metadata is missing.

An app that PyInstaller froze, or a zip on the import path, may hold a package without
its metadata.
"""


def find_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None without its metadata.

    Example:
        >>> find_version("numpy").count(".") > 0, find_version("no-such-package")
        (True, None)
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def dermedge_version() -> str:
    """Return the version of dermedge, or `unknown` without its metadata.

    Example:
        >>> dermedge_version()
        '0...'
    """
    return find_version("dermedge") or "unknown"
