"""`embed`: lay a bundle out as an app of a platform wants it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dermedge.snippets import kotlin, render, swift, symbol, typescript
from dermedge.workflows.page import FORMATS as WEB_FORMATS
from dermedge.workflows.serve import HEADERS
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_folder, check_free, write_files
from dermedge_runtime.registry import pick_known
from dermedge_runtime.spec import Spec

# Steps for the app's developer. `--overwrite` replaces only a folder that has this file,
# so that a mistyped path does not delete an app.
GUIDE = "EMBED.md"


@dataclass(frozen=True)
class Platform:
    """A kind of app, and the files that it expects.

    Attributes:
        name: Name of the platform, as `--platform` takes it. It is also the target to
            export for.
        title: Name for people.
        formats: Formats of artifacts that an engine on the platform runs.
        zipped: The bundle is one file, not a folder.
        bundle: Path of the bundle in the output, with the model's `{name}`.
        snippet: Path of the snippet in the output, with the model's `{symbol}`.
        literals: Function that writes values of a spec in the snippet's language.

    Example:
        >>> PLATFORMS["ios"].formats
        ('coreml',)
    """

    name: str
    title: str
    formats: tuple[str, ...]
    zipped: bool
    bundle: str
    snippet: str
    literals: Callable[[Spec], Mapping[str, str]]


def _web_literals(spec: Spec) -> dict[str, str]:
    """Return the literals of TypeScript, and rows with the headers that a server must send."""
    rows = (f"| `{name}` | `{value}` |" for name, value in HEADERS.items())
    return {**typescript(spec), "headers": "\n".join(rows)}


# Android: one file. `AssetManager` cannot tell a folder from a file without opening it,
# and the packaging tool drops folders whose name starts with `_`.
# iOS: a folder, because Core ML compiles the package from a path.
# Web: a folder, so that a browser fetches and caches the files one by one.
PLATFORMS = {
    platform.name: platform
    for platform in (
        Platform(
            "android",
            "Android",
            ("litert", "onnx"),
            zipped=True,
            bundle="src/main/assets/{name}.dermedge",
            snippet="src/main/kotlin/Embedded{symbol}.kt",
            literals=kotlin,
        ),
        Platform(
            "ios",
            "iOS",
            ("coreml",),
            zipped=False,
            bundle="{name}.dermedge",
            snippet="Embedded{symbol}.swift",
            literals=swift,
        ),
        Platform(
            "web",
            "the web",
            WEB_FORMATS,
            zipped=False,
            bundle="public/{name}.dermedge",
            snippet="src/embedded{symbol}.ts",
            literals=_web_literals,
        ),
    )
}


@dataclass(frozen=True)
class Embedded:
    """A bundle, laid out for a platform.

    Attributes:
        platform: Name of the platform.
        id: The bundle's id; the copy has the same.
        folder: The folder that was written.
        bundle: The copy of the bundle; `verify` takes it.
        snippet: Source file that opens the bundle in an app.
        guide: Text file with the steps for the app's developer.
        target: Target that the bundle was exported for.

    Example:
        >>> embedded = embed("toy.dermedge", platform="android", out="embedded")
        >>> embedded.bundle.as_posix()
        'embedded/src/main/assets/toy.dermedge'
    """

    platform: str
    id: str
    folder: Path
    bundle: Path
    snippet: Path
    guide: Path
    target: str


def embed(
    bundle: str | Path | Bundle,
    *,
    platform: Literal["android", "ios", "web"],
    out: str | Path,
    overwrite: bool = False,
) -> Embedded:
    """Lay a bundle out for apps of a platform, with a snippet of code that opens it.

    The copy has the same files and the same id, so `verify` checks it as it checks the
    original. `EMBED.md` in the folder lists the steps for the app's developer.

    Args:
        bundle: Path of a bundle, or an opened one. All its files are checked.
        platform: Kind of app.
        out: Folder to write.
        overwrite: Replace a folder that `embed` wrote.

    Raises:
        UsageError: The platform is unknown or has no engine for the bundle's format, or
            `out` exists.
        BundleError: The bundle is damaged.

    Example:
        >>> embedded = embed("toy.dermedge", platform="web", out="site")
        >>> from dermedge_runtime.verify import verify
        >>> verify(embedded.bundle).status, embedded.snippet.name
        ('passed', 'embeddedToy.ts')
    """
    chosen = PLATFORMS[pick_known("platform", platform, PLATFORMS)]
    out = Path(out)
    check_free(out, overwrite=overwrite, marker=GUIDE)
    opened = Bundle.open(bundle.path if isinstance(bundle, Bundle) else bundle)
    opened.golden()
    _check_format(opened, chosen)
    names = {"name": opened.spec.name, "symbol": symbol(opened.spec.name)}
    copy, snippet = chosen.bundle.format(**names), chosen.snippet.format(**names)
    texts = {
        snippet: render(f"{chosen.name}{Path(snippet).suffix}", opened, chosen.literals),
        GUIDE: render(f"{chosen.name}.md", opened, chosen.literals),
    }
    with atomic_folder(out, overwrite=overwrite, marker=GUIDE) as folder:
        write_files(folder, {name: text.encode() for name, text in texts.items()})
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        opened.save(folder / copy, zipped=chosen.zipped)
    return Embedded(
        chosen.name,
        opened.id,
        out,
        out / copy,
        out / snippet,
        out / GUIDE,
        opened.artifact.target,
    )


def _check_format(bundle: Bundle, platform: Platform) -> None:
    if bundle.artifact.format not in platform.formats:
        raise UsageError(
            f"{bundle.path} has the format {bundle.artifact.format!r}, but {platform.title} runs "
            f"{' and '.join(map(repr, platform.formats))}. "
            f"Export the student with '--target {platform.name}'."
        )
