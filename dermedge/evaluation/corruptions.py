"""Corrupt photographs as cameras and photographers do, to measure robustness.

A corruption is one function and its entry in `CORRUPTIONS`. It receives an upright RGB
photograph, a severity (1, 2 or 3) and a random generator, and returns a photograph of
the same size. Lengths are parts of the short side, so that a severity means the same at
every resolution.

Named corruptions at graded severities are an idea of Hendrycks and Dietterich,
Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, 2019.
The functions and the parameters are our own.
"""

import io
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from dermedge_runtime.errors import UsageError

Picture = Image.Image
Corruption = Callable[[Picture, int, np.random.Generator], Picture]

SEVERITIES = (1, 2, 3)
ALL = "all"
GAMMA = 2.2  # Light is proportional to (value / 255) ** GAMMA, near enough to sRGB.


def corrupt(picture: Picture, name: str, severity: int, image_id: str) -> Picture:
    """Return a corrupted photograph; the same arguments give the same pixels.

    Args:
        picture: Upright RGB photograph.
        name: Name of the corruption.
        severity: 1 (weak) to 3 (strong).
        image_id: Name of the image. It seeds what is random, such as the place of
            hairs, so that the result does not depend on the order of the images.

    Raises:
        UsageError: The corruption or the severity is unknown.

    Example:
        >>> photograph = Image.open("lesion.png").convert("RGB")
        >>> dark = corrupt(photograph, "underexposure", 3, "lesion")
        >>> dark.size == photograph.size
        True
    """
    if name not in CORRUPTIONS:
        raise _unknown(name)
    if severity not in SEVERITIES:
        raise UsageError(f"Severity {severity} is unknown. Use 1, 2 or 3.")
    # `hash` of a text differs between processes.
    seed = zlib.crc32(f"{image_id}/{name}/{severity}".encode("utf-8", "surrogateescape"))
    return CORRUPTIONS[name](picture, severity, np.random.default_rng(seed))


def read_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of corruptions in the order of the registry.

    Args:
        names: Names of corruptions; `all` is every one.

    Raises:
        UsageError: A name is unknown, or there is none.

    Example:
        >>> read_names(["motion_blur", "jpeg"])
        ('jpeg', 'motion_blur')
    """
    for name in names or ("",):
        if name != ALL and name not in CORRUPTIONS:
            raise _unknown(name)
    return tuple(name for name in CORRUPTIONS if ALL in names or name in names)


def jpeg(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Compress to a JPEG of quality 40, 20 or 8, as messaging apps do."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=(40, 20, 8)[severity - 1])
    return Image.open(buffer).convert("RGB")


def defocus_blur(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Blur with a disc, as a lens that is out of focus does."""
    radius = (0.012, 0.024, 0.048)[severity - 1] * min(picture.size)
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _spread(picture, np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def motion_blur(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Blur along a line of random direction, as a moving hand does."""
    length = (0.03, 0.06, 0.12)[severity - 1] * min(picture.size)
    angle, reach = rng.uniform(0, np.pi), int(np.ceil(length / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    along = np.linspace(-length / 2, length / 2, 8 * reach + 1)
    rows = np.rint(reach + along * np.sin(angle)).astype(int)
    np.add.at(kernel, (rows, np.rint(reach + along * np.cos(angle)).astype(int)), 1)
    return _spread(picture, kernel)


def underexposure(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Take away light: 1.5, 2.5 or 3.5 stops."""
    return _expose(picture, [2.0 ** -(severity + 0.5)] * 3)


def overexposure(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Add light: 0.7, 1.4 or 2.1 stops; what exceeds the sensor becomes white."""
    return _expose(picture, [2.0 ** (0.7 * severity)] * 3)


def white_balance(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Shift the colour of the light towards warm or cold; green is kept."""
    shift = (0.25, 0.5, 1.0)[severity - 1] * rng.choice((-1, 1))
    return _expose(picture, [2.0**shift, 1.0, 2.0**-shift])


def glare(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Add white reflections of a lamp that cover about 4, 10 or 22 % of the frame."""
    side, spots = min(picture.size), Image.new("L", picture.size)
    draw = ImageDraw.Draw(spots)
    share = (0.04, 0.10, 0.22)[severity - 1]
    for _ in range(3):
        height = side * np.sqrt(share / 3 / np.pi) * rng.uniform(0.8, 1.2)
        width = height * rng.uniform(0.9, 1.5)
        x, y = rng.uniform(0.25, 0.75, 2) * picture.size
        draw.ellipse((x - width, y - height, x + width, y + height), 255)
    spots = spots.filter(ImageFilter.GaussianBlur(0.01 * side))
    return ImageChops.screen(picture, Image.merge("RGB", (spots,) * 3))


def hair(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Draw 6, 18 or 54 dark bent hairs."""
    side, canvas = min(picture.size), picture.copy()
    draw = ImageDraw.Draw(canvas)
    t = np.linspace(0, 1, 30)[:, None]
    for _ in range((6, 18, 54)[severity - 1]):
        start = rng.uniform(0, 1, 2) * picture.size
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.0) * side
        end = start + length * np.array([np.cos(angle), np.sin(angle)])
        bend = (start + end) / 2 + rng.normal(0, 0.12 * side, 2)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        width = max(1, round(rng.uniform(0.004, 0.01) * side))
        shade = int(rng.integers(10, 60))
        draw.line([(x, y) for x, y in curve], (shade, shade * 3 // 4, shade // 2), width)
    return canvas


def ruler(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Lay a white ruler with dark ticks on an edge: 8, 16 or 24 % of the short side."""
    side, canvas = min(picture.size), picture.copy()
    width, height = canvas.size
    depth = (0.08, 0.16, 0.24)[severity - 1] * side
    # The crop of a wide photograph cuts its ends, so the ruler is on a long edge.
    turned = height > width
    along = height if turned else width
    low = bool(rng.integers(2))
    across = width if turned else height

    def box(start: float, end: float, inner: float) -> list[float]:
        edge = (across - inner, across) if low else (0.0, inner)
        corners = [start, edge[0], end, edge[1]]
        return [corners[k] for k in (1, 0, 3, 2)] if turned else corners

    draw = ImageDraw.Draw(canvas)
    draw.rectangle(box(0, along, depth), (225, 225, 218))
    for tick in range(int(along / (0.03 * side)) + 1):
        at = tick * 0.03 * side
        inner = depth * (0.6 if tick % 5 == 0 else 0.35)
        draw.rectangle(box(at, at + max(1, 0.005 * side), inner), (30, 30, 30))
    return canvas


def crop_jitter(picture: Picture, severity: int, rng: np.random.Generator) -> Picture:
    """Cut 90, 75 or 60 % of each side at a random place, and enlarge it again."""
    keep = (0.9, 0.75, 0.6)[severity - 1]
    size = np.array(picture.size)
    left, top = rng.uniform(0, 1, 2) * (1 - keep) * size
    box = (left, top, left + keep * size[0], top + keep * size[1])
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box)


CORRUPTIONS: dict[str, Corruption] = {
    "jpeg": jpeg,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "underexposure": underexposure,
    "overexposure": overexposure,
    "white_balance": white_balance,
    "glare": glare,
    "hair": hair,
    "ruler": ruler,
    "crop_jitter": crop_jitter,
}
# They move the lesion, so the mask of the data set does not fit any more.
MOVING = frozenset({"crop_jitter"})


def _unknown(name: str) -> UsageError:
    known = ", ".join(CORRUPTIONS)
    return UsageError(f"Unknown corruption {name!r}. Use {ALL}, or one or more of {known}.")


def _expose(picture: Picture, factors: Sequence[float]) -> Picture:
    """Multiply the light of each channel."""
    light = (np.arange(256) / 255) ** GAMMA
    tables = [np.minimum(light * factor, 1) ** (1 / GAMMA) for factor in factors]
    return picture.point(np.rint(255 * np.concatenate(tables)).astype(int).tolist())


def _spread(picture: Picture, kernel: NDArray[np.float64]) -> Picture:
    """Convolve each channel with a kernel of odd sides; edges are mirrored."""
    from scipy.signal import fftconvolve

    reach = kernel.shape[0] // 2
    values = np.pad(np.asarray(picture), ((reach, reach), (reach, reach), (0, 0)), "symmetric")
    blurred = fftconvolve(values.astype(np.float64), kernel[..., None] / kernel.sum(), "valid")
    return Image.fromarray(np.clip(np.rint(blurred), 0, 255).astype(np.uint8))
