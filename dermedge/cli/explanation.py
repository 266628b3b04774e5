"""Write class activation maps as pictures, for `dermedge predict --explain`."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dermedge.cli.console import print_line
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write, check_free
from dermedge_runtime.find_images import Skipped
from dermedge_runtime.image import Source
from dermedge_runtime.overlay import MEANING, draw_overlay
from dermedge_runtime.predict import list_sources
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.printable import printable_path

SUFFIX = ".png"


@dataclass
class Explanation:
    """The file or the folder that receives the pictures of some images.

    Example:
        >>> pictures = Explanation(Path("map.png"), exact=False)
        >>> pictures.lines
        []
    """

    out: Path
    exact: bool
    stdin: bytes = b""
    lines: list[str] = field(default_factory=list)

    def check(self, bundle: Bundle, sources: Sequence[Source]) -> None:
        """Check that the pictures can be written; call this before the images are run.

        Raises:
            UsageError: The bundle has no class activation maps, or the path exists, is a
                file of another format, or is one file for several images.
        """
        if not any(task.kind == "cam" for task in bundle.spec.tasks):
            raise UsageError(
                f"{bundle.path} has no class activation maps. Export the model with them: dermedge "
                f"export STUDENT --target {bundle.artifact.target} --explain."
            )
        if not self._is_file and self.out.suffix.lower() in Image.registered_extensions():
            raise UsageError(
                f"{self.out} is no name of a PNG. Give --explain a name that ends with {SUFFIX}, "
                "or a folder."
            )
        check_free(self.out, overwrite=False)
        count = len(list(list_sources(sources, Skipped())))
        if self._is_file and count > 1:
            raise UsageError(
                f"{self.out} is one file for {count} images. Give --explain a folder: a name "
                f"without {SUFFIX}."
            )

    def add(self, name: str, bundle: Bundle, prediction: Prediction) -> None:
        """Write the picture of one image.

        Args:
            name: Path of the image; `-` is stdin.
            bundle: The bundle.
            prediction: Its prediction for the image.
        """
        if prediction.cam is None:
            return
        source = self.stdin if name == "-" else Path(name)
        frame = preprocess(source, bundle.spec.preprocess, exact=self.exact)
        picture = io.BytesIO()
        Image.fromarray(draw_overlay(frame, prediction.cam)).save(picture, "PNG")
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, picture.getvalue())
        self.lines.append(
            f"{printable_path(path)} shows where {printable_path(name)} looks like "
            f"{prediction.labels[0].name}."
        )

    def show(self, *, err: bool) -> None:
        """Print the pictures and what they mean; to stderr if stdout is for JSON."""
        for line in (*self.lines, MEANING) if self.lines else ():
            print_line(line, err=err)

    @property
    def _is_file(self) -> bool:
        return self.out.suffix.lower() == SUFFIX

    def _path(self, name: str) -> Path:
        """Return the path of an image's picture; equal names in two folders get a number."""
        if self._is_file:
            return self.out
        stem = "stdin" if name == "-" else Path(name).stem
        path, number = self.out / f"{stem}{SUFFIX}", 2
        while path.exists():
            path, number = self.out / f"{stem}-{number}{SUFFIX}", number + 1
        return path
