"""List what `serve` answers with: the built page, and the files of a bundle."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.container import MANIFEST, open_container
from dermedge_runtime.errors import DermedgeError, UsageError
from dermedge_runtime.files import sha256_hex

# `make web` writes the page here, and the wheel contains it.
FOLDER = Path(__file__).parents[1] / "page"
BUNDLE = "/bundle/"
# Formats that an engine runs in a browser.
FORMATS = ("onnx", "litert")
# Not from `mimetypes`, which reads the tables of the system and differs between machines.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
OTHER = "application/octet-stream"
# Vite names the files in `assets/` after their content.
FOREVER = "public, max-age=31536000, immutable"
CHECK_FIRST = "no-cache"


class MissingPageError(DermedgeError):
    """Error for the example page, which is built with Node.js and may be missing.

    Example:
        >>> from dermedge.workflows.serve import serve
        >>> serve("toy.dermedge", page="lesions")
        Traceback (most recent call last):
            ...
        dermedge.workflows.page.MissingPageError: lesions has no built page...
    """

    exit_code = 4


@dataclass(frozen=True)
class Resource:
    """One file that the server answers with.

    `read` returns the content, whose SHA-256 is `digest`. `headers` holds its type and
    how long a browser may keep it.

    Example:
        >>> toy = open_for_browsers("toy.dermedge")
        >>> Path("page").mkdir()
        >>> _ = Path("page/index.html").write_text("<!doctype html><title>Lesions</title>")
        >>> list_resources(Path("page"), toy)["/"].headers["Content-Type"]
        'text/html; charset=utf-8'
    """

    digest: str
    read: Callable[[], bytes]
    headers: dict[str, str]


def open_for_browsers(bundle: Path | str | Bundle) -> Bundle:
    """Open a bundle; raise UsageError if no engine runs its format in a browser."""
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    name = opened.artifact.format
    if name not in FORMATS:
        raise UsageError(
            f"{opened.path} is a {name} bundle for {opened.artifact.target!r}, and no browser "
            "runs that. Export the model with `dermedge export --target web`."
        )
    return opened


def list_resources(page: Path, bundle: Bundle) -> dict[str, Resource]:
    """Return every file that the server may answer with, by the path of its URL.

    Args:
        page: Folder of the built page.
        bundle: The opened bundle; its files appear below `/bundle/`.

    Raises:
        MissingPageError: The folder has no page.
    """
    if not (page / "index.html").is_file():
        raise MissingPageError(
            f"{page} has no built page. Build it with `make web` in the source of dermedge, "
            "which needs Node.js 20 or newer."
        )
    resources = {}
    for path in page.rglob("*"):
        place = path.relative_to(page)
        if path.is_file() and not any(part.startswith(".") for part in place.parts):
            resources[f"/{place.as_posix()}"] = _page_file(path, place)
    resources["/"] = resources["/index.html"]
    with open_container(bundle.path) as container:
        manifest = container.read(MANIFEST)
    resources[BUNDLE + MANIFEST] = _bundle_file(MANIFEST, sha256_hex(manifest), lambda: manifest)
    for name, digest in bundle.files.items():
        resources[BUNDLE + name] = _bundle_file(name, digest, partial(bundle.read, name))
    return resources


def _page_file(path: Path, place: Path) -> Resource:
    # Read now, so that a page that is built again does not mix with this one.
    content = path.read_bytes()
    headers = {
        "Content-Type": MEDIA_TYPES.get(path.suffix, OTHER),
        "Cache-Control": FOREVER if place.parts[0] == "assets" else CHECK_FIRST,
    }
    return Resource(sha256_hex(content), lambda: content, headers)


def _bundle_file(name: str, digest: str, read: Callable[[], bytes]) -> Resource:
    # A bundle is data. Under no name may it bring a script or a page of this origin.
    kind = "application/json" if name.endswith(".json") else OTHER
    return Resource(digest, read, {"Content-Type": kind, "Cache-Control": CHECK_FIRST})
