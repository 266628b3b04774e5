"""Draw synthetic skin lesions that look like dermoscopy, from a seed.

They replace patients' images wherever none may be used: golden images, the demo data
set, tests. Colour arises as in skin, from light that melanin and haemoglobin absorb.
This is the two-chromophore model of Tsumura, Haneishi and Miyake,
"Independent-component analysis of skin color image", JOSA A 16(9), 1999. So one lesion
stays plausible on every skin tone. The look of each class follows the usual dermoscopic
criteria. Amounts are tuned by eye, and no pixel comes from a photograph.

Synthetic lesions show that a pipeline works. They say nothing about accuracy on
patients.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.errors import UsageError

Field = NDArray[np.float64]

CLASSES: tuple[str, ...] = ("nv", "mel", "bkl", "bcc", "vasc", "df")

# Optical density per unit of pigment, for R, G, B: melanin absorbs blue most, blood
# green.
_MELANIN = (0.51, 0.94, 1.19)
_BLOOD = (0.10, 0.78, 0.46)
_SKIN = (
    (232, 198, 190),
    (220, 182, 172),
    (202, 158, 142),
    (166, 122, 102),
    (126, 89, 74),
    (92, 66, 56),
)
_WHITE, _BLUE_GREY, _PURPLE = (236, 214, 214), (92, 98, 122), (104, 62, 118)
_SMALLEST = 32


@dataclass(frozen=True)
class Lesion:
    """One drawn lesion and everything that is known about it.

    Attributes:
        image: RGB, uint8 [H, W, 3].
        mask: True inside the lesion's border, bool [H, W]. The border is where the soft
            edge has half its strength.
        dx: One of `CLASSES`.
        severity: 0 (mild) to 3; see `draw_lesion`.
        fitzpatrick: Skin type, 1 (lightest) to 6 (darkest).
        seed: Seed of the drawing.

    Example:
        >>> lesion = draw_lesion(4, dx="nv", height=64, width=64)
        >>> bool(lesion.mask.any()), lesion.seed
        (True, 4)
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    dx: str
    severity: int
    fitzpatrick: int
    seed: int


@dataclass(frozen=True)
class _Form:
    """Outline of a class, in units of the lesion's radius.

    A pair is (mild, severe); severity interpolates between the two.
    """

    warp: tuple[float, float]
    ragged: float
    soft: tuple[float, float]
    stretch: float
    lobes: float
    bites: float
    size: float = 1.0


_FORMS = {
    "nv": _Form((0.06, 0.22), 0.05, (0.10, 0.34), 1.35, 0.1, 0.0),
    "mel": _Form((0.14, 0.46), 0.12, (0.06, 0.26), 1.45, 0.8, 0.7, 1.1),
    "bkl": _Form((0.10, 0.34), 0.10, (0.04, 0.22), 1.45, 0.5, 0.3, 1.05),
    "bcc": _Form((0.12, 0.38), 0.10, (0.12, 0.40), 1.45, 0.6, 0.2),
    "vasc": _Form((0.06, 0.26), 0.07, (0.04, 0.18), 1.30, 0.3, 0.1, 0.8),
    "df": _Form((0.08, 0.28), 0.07, (0.22, 0.50), 1.30, 0.1, 0.0),
}


@dataclass
class _Canvas:
    """State of a drawing; fields are [H, W], `u` and `v` in units of the radius."""

    rng: np.random.Generator
    level: float  # severity / 3
    scale: float  # pixels here per pixel of an image 192 high
    radius: float  # pixels
    to_pixel: Field  # [2, 3], lesion coordinates to pixels
    u: Field
    v: Field
    depth: Field  # 0 on the border, positive inside, near 1 at the centre
    inside: Field  # 0..1, soft edge
    melanin: Field
    blood: Field
    layers: list[tuple[Field, tuple[int, int, int]]]

    def add_melanin(self, amount: Field) -> None:
        self.melanin += amount

    def scale_melanin(self, factor: Field) -> None:
        self.melanin *= factor

    def add_blood(self, amount: Field) -> None:
        self.blood += amount

    def veil(self, alpha: Field, colour: tuple[int, int, int]) -> None:
        """Add a layer of an opaque colour with opacity `alpha` [H, W], clipped to 0..1."""
        self.layers.append((np.clip(alpha, 0.0, 1.0), colour))


def draw_lesion(
    seed: int,
    *,
    dx: str | None = None,
    fitzpatrick: int | None = None,
    severity: int | None = None,
    height: int = 192,
    width: int = 256,
) -> Lesion:
    """Draw a lesion; a property that is None is drawn from the seed.

    On average over seeds, a higher severity gives a larger area and a more asymmetric
    and irregular border. It also gives stronger signs of the class: black, blue-grey
    veil and white regression in mel, or the scar in df. If dx or severity changes, a
    seed keeps its skin, hairs and camera. If fitzpatrick changes, only the colour
    changes.

    Args:
        seed: Zero or more. The same arguments give the same bytes in every process,
            under one version of numpy.
        dx: One of `CLASSES`.
        fitzpatrick: Skin type, 1 to 6.
        severity: 0 to 3.
        height: Height in pixels, at least 32.
        width: Width in pixels, at least 32.

    Returns:
        The image with its mask and properties.

    Raises:
        UsageError: An argument is outside these values.

    Example:
        >>> lesion = draw_lesion(7, dx="mel", fitzpatrick=5)
        >>> lesion.image.shape, lesion.dx, lesion.fitzpatrick
        ((192, 256, 3), 'mel', 5)
    """
    if seed < 0:
        raise UsageError(f"Seed {seed} is negative. Use 0 or more.")
    if dx is not None and dx not in CLASSES:
        raise UsageError(f"Unknown class dx {dx!r}. Use one of {', '.join(CLASSES)}.")
    if fitzpatrick is not None and fitzpatrick not in range(1, 7):
        raise UsageError(f"Unknown skin type fitzpatrick {fitzpatrick}. Use 1 to 6.")
    if severity is not None and severity not in range(4):
        raise UsageError(f"Unknown severity {severity}. Use 0 to 3.")
    if min(height, width) < _SMALLEST:
        raise UsageError(
            f"Size {height}x{width} is too small. Use at least {_SMALLEST} for height and width."
        )
    # Each part of the drawing has a random stream of its own. A part that draws more or
    # fewer numbers, because dx or severity changed, leaves the other parts as they
    # were.
    pick, form, inner, skin, camera = (
        np.random.Generator(np.random.PCG64([seed, part])) for part in range(5)
    )
    drawn = int(pick.integers(len(CLASSES))), int(pick.integers(1, 7)), int(pick.integers(4))
    dx = CLASSES[drawn[0]] if dx is None else dx
    fitzpatrick = drawn[1] if fitzpatrick is None else fitzpatrick
    severity = drawn[2] if severity is None else severity
    canvas = _outline(form, inner, _FORMS[dx], severity / 3.0, height, width)
    _PAINTERS[dx](canvas)
    _skin(canvas, skin)
    image = _photograph(canvas, camera, _tone(skin, fitzpatrick))
    return Lesion(image, canvas.depth > 0.0, dx, severity, fitzpatrick, seed)


# ---- tools: noise, stamps, blends


def _spline(cells: int, size: int) -> Field:
    """Return weights [size, cells + 3] of a cubic B-spline over `cells` intervals."""
    at = (np.arange(size) + 0.5) * cells / size
    first = at.astype(np.int64)
    t = at - first
    rows, s = np.arange(size), 1.0 - t
    weights = np.zeros((size, cells + 3))
    weights[rows, first] = s * s * s / 6.0
    weights[rows, first + 1] = (t * t * (3.0 * t - 6.0) + 4.0) / 6.0
    weights[rows, first + 2] = (s * s * (3.0 * s - 6.0) + 4.0) / 6.0
    weights[rows, first + 3] = t * t * t / 6.0
    return weights


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> Field:
    """Draw smooth noise [H, W] with features about `cell` pixels wide.

    Its mean is 0 and its standard deviation near 0.55.
    """
    height, width = shape
    rows, columns = (max(1, round(n / cell)) for n in shape)
    grid = rng.uniform(-2.0, 2.0, (rows + 3, columns + 3))
    return _spline(rows, height) @ grid @ _spline(columns, width).T


def _step(x: Field, low: float, high: float) -> Field:
    """Return 0 below `low`, 1 above `high`, and a smooth transition between."""
    t = np.minimum(np.maximum((x - low) * (1.0 / (high - low)), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


def _stamp(shape: tuple[int, ...], points: Field, radius: Field, soft: float = 1.0) -> Field:
    """Draw the union of discs at `points` [2, N] (x, y in pixels).

    Each disc falls from 1 to 0 over its outer `soft` pixels.
    """
    height, width = shape
    flat = np.zeros(height * width)
    reach = int(np.ceil(radius.max(initial=0.5))) + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1, 1)
    x, y = np.floor(points[0]).astype(np.int64) + dx, np.floor(points[1]).astype(np.int64) + dy
    gap = np.sqrt((x + 0.5 - points[0]) ** 2 + (y + 0.5 - points[1]) ** 2)
    value = np.clip((radius + 0.5 - gap) / soft, 0.0, 1.0)
    seen = (value > 0.0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    np.maximum.at(flat, (y * width + x)[seen], value[seen])
    return flat.reshape(height, width)


def _scatter(c: _Canvas, count: int, reach: float, hollow: float = 0.0) -> Field:
    """Draw `count` points [2, N] in pixels, from `hollow` to `reach` lesion radii."""
    angle = c.rng.uniform(0.0, 2.0 * np.pi, count)
    away = np.sqrt(c.rng.uniform(hollow**2, reach**2, count))
    points: Field = c.to_pixel @ np.stack(
        [away * np.cos(angle), away * np.sin(angle), np.ones(count)]
    )
    return points


def _dots(
    c: _Canvas,
    count: int,
    size: tuple[float, float],
    reach: float = 0.9,
    hollow: float = 0.0,
    soft: float = 1.5,
) -> Field:
    """Draw round spots inside the lesion.

    `size` is the range of radii, in pixels of an image 192 high.
    """
    points = _scatter(c, count, reach, hollow)
    radius = c.rng.uniform(*size, count) * c.scale
    return _stamp(c.u.shape, points, radius, soft * c.scale)


def _curve(rng: np.random.Generator, start: Field, end: Field, bend: float) -> Field:
    """Draw a bent line from start to end as points [2, N] less than a pixel apart."""
    along = end - start
    length = float(np.sqrt((along**2).sum()))
    side = np.stack([-along[1], along[0]]) * rng.normal(0.0, bend)
    t = np.linspace(0.0, 1.0, max(4, int(1.3 * length)))
    sway = 0.06 * bend * np.sin(t * rng.uniform(5.0, 14.0))
    return start[:, None] + along[:, None] * t + side[:, None] * (4.0 * t * (1.0 - t) * 0.5 + sway)


def _network(c: _Canvas, period: float, warp: float) -> Field:
    """Draw a pigment network.

    It is 1 on the lines, 0 in the holes of a bent honeycomb, and 0.4 where it fades
    out.
    """
    k = 2.0 * np.pi / (period * c.scale)
    cell = 2.2 * period * c.scale
    x = c.u * c.radius + warp * period * c.scale * _noise(c.rng, c.u.shape, cell)
    y = c.v * c.radius + warp * period * c.scale * _noise(c.rng, c.u.shape, cell)
    holes = np.cos(k * x) + np.cos(k * (0.5 * x + 0.866 * y)) + np.cos(k * (0.5 * x - 0.866 * y))
    clear = _step(_noise(c.rng, c.u.shape, 2.0 * cell), -0.7, 0.5)
    return 0.4 + clear * (np.clip((0.9 - holes) / 2.0, 0.0, 1.0) - 0.4)


# ---- the outline


def _outline(
    rng: np.random.Generator,
    inner: np.random.Generator,
    form: _Form,
    level: float,
    height: int,
    width: int,
) -> _Canvas:
    """Return a canvas with the outline of a lesion that lies inside the frame."""
    # The lesion shrinks and moves as far as needed, so that its whole border with all
    # warps stays inside the frame.
    short = min(height, width)
    radius = min((0.15 + 0.15 * level) * form.size * rng.uniform(0.8, 1.25), 0.34) * short
    stretch, angle = np.sqrt(rng.uniform(1.0, form.stretch)), rng.uniform(-np.pi / 2, np.pi / 2)
    warp = (form.warp[0] + (form.warp[1] - form.warp[0]) * level) * rng.uniform(0.6, 1.3)
    cos, sin, frame = np.cos(angle), np.sin(angle), np.array([width, height]) / 2
    swell = (1.0 + 0.8 * warp + 0.6 * form.ragged) * radius
    half = swell * np.sqrt(
        [(stretch * cos) ** 2 + (sin / stretch) ** 2, (stretch * sin) ** 2 + (cos / stretch) ** 2]
    )
    fit = float(min(1.0, (0.94 * frame / half).min()))
    radius, room = radius * fit, np.minimum(0.97 * frame - half * fit, 0.12 * short)
    centre, a, b = frame + room * rng.uniform(-1.0, 1.0, 2), radius * stretch, radius / stretch
    x, y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    u = (cos * (x - centre[0]) + sin * (y - centre[1])) / a
    v = (cos * (y - centre[1]) - sin * (x - centre[0])) / b
    bent_u = u + warp * _noise(rng, u.shape, 0.9 * radius)
    bent_v = v + warp * _noise(rng, u.shape, 0.9 * radius)
    depth = _lobes(rng, form, level, bent_u, bent_v)
    depth += form.ragged * (0.5 + 0.5 * level) * _noise(rng, u.shape, max(3.0, 0.22 * radius))
    edge = (
        np.minimum(np.minimum(x, width - x), np.minimum(y, height - y)) / radius
        - 0.02 * short / radius
    )
    depth = np.minimum(depth, edge)
    soft = rng.uniform(*form.soft)
    to_pixel = np.array([[a * cos, -b * sin, centre[0]], [a * sin, b * cos, centre[1]]])
    inside = _step(depth, -soft, soft)
    blank = np.zeros(u.shape)
    return _Canvas(
        inner, level, short / 192.0, radius, to_pixel, u, v, depth, inside, blank, blank.copy(), []
    )


def _lobes(rng: np.random.Generator, form: _Form, level: float, u: Field, v: Field) -> Field:
    """Return the depth inside a disc with random side lobes and notches."""
    chance, angle, size = (
        rng.uniform(0.0, 1.0, 4),
        rng.uniform(0.0, 2.0 * np.pi, 4),
        rng.uniform(0.0, 1.0, 4),
    )
    grow = chance[:2] < form.lobes * (0.3 + 0.7 * level)
    depth = (0.86 if grow.any() else 1.0) - np.sqrt(u**2 + v**2)
    for k in range(2):
        if grow[k]:
            r = 0.4 + 0.2 * size[k]
            away = 1.08 - r
            depth = np.maximum(
                depth,
                r
                - np.sqrt((u - away * np.cos(angle[k])) ** 2 + (v - away * np.sin(angle[k])) ** 2),
            )
    for k in range(2, 4):
        if chance[k] < form.bites * (0.2 + 0.8 * level):
            r = 0.15 + 0.2 * size[k]
            depth = np.minimum(
                depth,
                np.sqrt((u - 0.95 * np.cos(angle[k])) ** 2 + (v - 0.95 * np.sin(angle[k])) ** 2)
                - r,
            )
    return depth


# ---- the look of each class inside its border


def _base(
    c: _Canvas, melanin: tuple[float, float], blood: tuple[float, float], patchy: float = 0.3
) -> Field:
    """Add even pigment and redness with slow variation; return the variation."""
    slow = _noise(c.rng, c.u.shape, 0.5 * c.radius)
    fine = _noise(c.rng, c.u.shape, max(3.0, 5.0 * c.scale))
    shape = c.inside * (1.0 + patchy * slow + 0.16 * fine)
    c.add_melanin(c.rng.uniform(*melanin) * shape)
    c.add_blood(c.rng.uniform(*blood) * c.inside * (1.0 + 0.25 * fine))
    return slow + 0.35 * fine


def _nv(c: _Canvas) -> None:
    slow = _base(c, (0.25, 1.1), (0.0, 0.5), 0.3)
    centre = c.rng.uniform(-0.25, 0.6)
    c.scale_melanin(1.0 + centre * np.clip(c.depth, -0.3, 1.0))
    c.add_melanin(c.rng.uniform(0.0, 0.25) * _step(slow, 0.1, 0.6) * c.inside)
    pattern = c.rng.uniform()
    if pattern < 0.5:
        lines = _network(c, c.rng.uniform(5.5, 8.5), c.rng.uniform(0.35, 0.8))
        c.scale_melanin(1.0 + c.rng.uniform(0.3, 0.9) * (lines - 0.4))
    elif pattern < 0.75:
        count = int(c.rng.integers(25, 90) * (0.6 + 0.6 * c.level))
        spots = _dots(c, count, (1.5, 4.0), 1.0, c.rng.uniform(0.0, 0.6), 2.5)
        c.add_melanin(c.rng.uniform(0.25, 0.7) * spots * c.inside)


def _mel(c: _Canvas) -> None:
    slow = _base(c, (0.35, 1.1), (0.0, 0.4), 0.5)
    strength = c.rng.uniform(0.3, 1.0) * (0.5 + 0.6 * c.level)
    other, third = (
        _noise(c.rng, c.u.shape, 0.6 * c.radius),
        _noise(c.rng, c.u.shape, 0.45 * c.radius),
    )
    core = _step(c.depth, 0.0, 0.3)
    c.add_melanin(1.7 * strength * _step(other + 0.3 * slow, -0.1, 0.8) * c.inside)
    lines = _network(c, c.rng.uniform(7.0, 12.0), c.rng.uniform(0.7, 1.6))
    c.scale_melanin(1.0 + c.rng.uniform(0.2, 1.0) * (lines - 0.4) * _step(third, -0.4, 0.3))
    dots = _dots(c, int(c.rng.integers(5, 40)), (1.0, 3.2), 0.95, 0.3, 1.5)
    c.add_melanin(c.rng.uniform(0.4, 1.2) * dots * c.inside)
    if c.rng.uniform() < 0.35 + 0.3 * c.level:
        _streaks(c, int(c.rng.integers(8, 28)))
    c.veil(0.6 * strength * _step(third + 0.5 * slow, -0.1, 1.4) * core, _BLUE_GREY)
    if c.rng.uniform() < 0.25 + 0.4 * c.level:
        c.veil(0.6 * strength * _step(-slow, 0.1, 1.1) * core, _WHITE)
        c.add_blood(0.3 * strength * _step(-slow, 0.0, 0.7) * c.inside)


def _streaks(c: _Canvas, count: int) -> None:
    """Draw radial lines that leave a part of the border."""
    first = c.rng.uniform(0.0, 2.0 * np.pi)
    angle = first + c.rng.uniform(0.0, 2.6, count)
    inner, outer = c.rng.uniform(0.5, 0.85, count), c.rng.uniform(0.9, 1.15, count)
    t = np.linspace(0.0, 1.0, 24)[:, None]
    away, angle = inner + (outer - inner) * t, angle + c.rng.normal(0.0, 0.12, count) * t
    points = np.stack([away * np.cos(angle), away * np.sin(angle), np.ones((24, count))]).reshape(
        3, -1
    )
    thick = c.rng.uniform(0.3, 1.7, count) * (1.0 - 0.7 * t) * c.scale
    lines = _stamp(c.u.shape, c.to_pixel @ points, thick.ravel(), 1.8 * c.scale)
    c.add_melanin(c.rng.uniform(0.3, 0.8) * lines * _step(c.depth, -0.25, 0.1))


def _bkl(c: _Canvas) -> None:
    _base(c, (0.15, 0.9), (0.0, 0.4), 0.4)
    rough = _noise(c.rng, c.u.shape, c.rng.uniform(4.0, 9.0) * c.scale)
    c.scale_melanin(1.0 + c.rng.uniform(0.2, 0.8) * rough)
    if c.rng.uniform() < 0.55:
        furrows = 1.0 - _step(
            np.abs(_noise(c.rng, c.u.shape, c.rng.uniform(9.0, 18.0) * c.scale)), 0.0, 0.3
        )
        c.add_melanin(c.rng.uniform(0.1, 0.5) * furrows * c.inside)
    c.add_melanin(
        c.rng.uniform(0.0, 0.35) * c.inside * (1.0 - _step(np.abs(c.depth - 0.06), 0.0, 0.12))
    )
    many = 0.5 + 0.7 * c.level
    if c.rng.uniform() < 0.75:
        openings = _dots(c, int(c.rng.integers(3, 26) * many), (1.2, 3.6), 0.9, 0.0, 2.0)
        c.add_melanin(c.rng.uniform(0.4, 1.3) * openings * c.inside)
    dull = c.rng.uniform(0.05, 0.4) * c.inside * (0.7 + 0.3 * rough)
    c.veil(dull, (188, 164, 140) if c.rng.uniform() < 0.6 else (140, 132, 140))
    cysts = _dots(c, int(c.rng.integers(0, 26) * many), (0.8, 2.4), 0.9, 0.0, 1.6)
    c.veil(c.rng.uniform(0.4, 0.8) * cysts * c.inside, (240, 224, 204))


def _bcc(c: _Canvas) -> None:
    slow = _base(c, (0.03, 0.32), (0.14, 0.55), 0.5)
    c.veil(c.rng.uniform(0.05, 0.4) * _step(slow, -0.5, 0.9) * c.inside, _WHITE)
    many = 0.5 + 0.8 * c.level
    if c.rng.uniform() < 0.8:
        vessels = _vessels(c, int(c.rng.integers(2, 6) * many) + 1)
        c.add_blood(c.rng.uniform(0.4, 1.1) * vessels * _step(c.depth, -0.4, 0.1))
    if c.rng.uniform() < 0.65:
        count = max(1, int(c.rng.integers(2, 10) * many))
        nests = (
            _step(_dots(c, count, (3.0, 11.0), 0.85, 0.1, 9.0) + 0.3 * slow - 0.1, 0.0, 0.7)
            * c.inside
        )
        if c.rng.uniform() < 0.6:
            c.veil(c.rng.uniform(0.4, 0.8) * nests, (88, 84, 100))
        else:
            c.add_melanin(c.rng.uniform(0.5, 1.2) * nests)
    if c.rng.uniform() < 0.25 + 0.35 * c.level:
        ulcer = _dots(c, int(c.rng.integers(2, 5)), (5.0, 13.0), 0.5, 0.0, 9.0)
        ulcer = _step(ulcer + 0.4 * slow, 0.2, 0.7) * c.inside
        c.add_blood(c.rng.uniform(0.6, 1.2) * ulcer)
        c.add_melanin(c.rng.uniform(0.2, 0.9) * ulcer)


def _vessels(c: _Canvas, count: int) -> Field:
    """Draw arborising vessels: trunks that enter from the border and split."""
    starts, ends = _scatter(c, count, 1.1, 0.8), _scatter(c, count, 0.5)
    points, radii = [], []
    for start, end in zip(starts.T, ends.T, strict=True):
        trunk = _curve(c.rng, start, end, 0.35)
        points.append(trunk)
        radii.append(np.linspace(1.1, 0.5, trunk.shape[1]))
        for _ in range(int(c.rng.integers(2, 5))):
            root = trunk[:, int(c.rng.integers(trunk.shape[1] // 4, trunk.shape[1]))]
            twig = _curve(
                c.rng, root, root + 0.6 * (end - start) + c.rng.normal(0.0, 12.0 * c.scale, 2), 0.45
            )
            points.append(twig)
            radii.append(np.linspace(0.7, 0.1, twig.shape[1]))
    return _stamp(c.u.shape, np.concatenate(points, axis=1), np.concatenate(radii) * c.scale, 1.2)


def _vasc(c: _Canvas) -> None:
    slow = _base(c, (0.0, 0.15), (0.3, 1.1), 0.3)
    count = int(c.rng.integers(10, 45) * (0.7 + 0.6 * c.level))
    size = (
        c.radius / c.scale * c.rng.uniform(0.15, 0.25),
        c.radius / c.scale * c.rng.uniform(0.28, 0.42),
    )
    lagoons = _stamp(
        c.u.shape, _scatter(c, count, 0.9), c.rng.uniform(*size, count) * c.scale, 0.22 * c.radius
    )
    lagoons = _step(lagoons + 0.25 * slow, 0.1, 1.0) * c.inside
    c.add_blood(c.rng.uniform(0.5, 1.5) * lagoons * (1.0 + 0.3 * slow))
    tint = c.rng.uniform()
    if tint < 0.45:
        c.veil(c.rng.uniform(0.2, 0.75) * lagoons * _step(slow, -0.6, 0.5), _PURPLE)
    if tint > 0.8:
        c.add_melanin(c.rng.uniform(0.5, 1.2) * lagoons * _step(slow, -0.2, 0.5))
    c.veil(c.rng.uniform(0.0, 0.35) * (1.0 - lagoons) * _step(c.depth, -0.05, 0.1), _WHITE)


def _df(c: _Canvas) -> None:
    slow = _base(c, (0.2, 0.7), (0.05, 0.5), 0.4)
    lines = _network(c, c.rng.uniform(5.5, 8.0), c.rng.uniform(0.4, 0.9))
    c.scale_melanin(1.0 + c.rng.uniform(0.2, 0.9) * (lines - 0.4))
    reach = c.rng.uniform(0.35, 0.75) - 0.15 * c.level
    scar = _step(c.depth + 0.3 * slow, reach - 0.35, reach + 0.3)
    c.scale_melanin(1.0 - c.rng.uniform(0.3, 0.9) * scar)
    c.veil(c.rng.uniform(0.1, 0.6) * scar * (0.8 + 0.4 * slow), _WHITE)
    c.add_blood(c.rng.uniform(0.0, 0.45) * scar)


_PAINTERS: dict[str, Callable[[_Canvas], None]] = {
    "nv": _nv,
    "mel": _mel,
    "bkl": _bkl,
    "bcc": _bcc,
    "vasc": _vasc,
    "df": _df,
}


# ---- skin and camera


def _tone(rng: np.random.Generator, fitzpatrick: int) -> Field:
    """Draw the colour of bare skin [3]; it varies by about a third of a type."""
    at = np.clip(fitzpatrick - 1 + rng.uniform(-0.35, 0.35), 0, 5)
    return np.array(
        [np.interp(at, np.arange(6), channel) for channel in np.array(_SKIN, dtype=np.float64).T]
    )


def _skin(c: _Canvas, rng: np.random.Generator) -> None:
    """Add mottling, creases, pores, redness around the lesion and a few freckles."""
    shape, s = c.u.shape, c.scale
    mottle, fine = _noise(rng, shape, 26.0 * s), _noise(rng, shape, 3.0 * s)
    angle, k = rng.uniform(0.0, np.pi), 2.0 * np.pi / (rng.uniform(5.0, 10.0) * s)
    x, y = np.arange(shape[1])[None, :], np.arange(shape[0])[:, None]
    bend = 5.0 * _noise(rng, shape, 13.0 * s)
    creases = np.sin(k * (np.cos(angle) * x + np.sin(angle) * y) + bend)
    creases = np.maximum(
        creases, np.sin(k * (np.cos(angle + 1.2) * x + np.sin(angle + 1.2) * y) - bend)
    )
    web = 1.0 - _step(np.abs(_noise(rng, shape, rng.uniform(6.0, 11.0) * s) + 0.5 * fine), 0.0, 0.7)
    halo = _step(c.depth, -0.9, 0.0) * (1.0 - c.inside)
    c.add_melanin(rng.uniform(0.01, 0.05) * mottle + rng.uniform(0.02, 0.08) * fine)
    c.add_melanin(rng.uniform(0.0, 0.035) * creases * (1.0 + mottle))
    c.add_blood(rng.uniform(-0.04, 0.16) + rng.uniform(0.02, 0.10) * mottle)
    c.add_blood(rng.uniform(0.0, 0.2) * web * (0.5 + 0.5 * mottle) + rng.uniform(0.0, 0.2) * halo)
    if rng.uniform() < 0.35:
        count = int(rng.integers(3, 25))
        spots = rng.uniform(0.0, 1.0, (2, count)) * np.array([[shape[1]], [shape[0]]])
        freckles = _stamp(shape, spots, rng.uniform(1.0, 4.5, count) * s, 5.0 * s)
        c.add_melanin(rng.uniform(0.1, 0.4) * freckles * (1.0 - c.inside))


def _hairs(rng: np.random.Generator, shape: tuple[int, ...], s: float) -> Field:
    """Draw the opacity of bent, tapering hairs; most share a direction."""
    height, width = shape
    few = rng.uniform() < 0.7
    count = int(rng.integers(1, 8) if few else rng.integers(8, 20))
    main, short = rng.uniform(0.0, 2.0 * np.pi), rng.uniform() < 0.3
    points, radii = [], []
    for _ in range(count):
        angle = main + rng.normal(0.0, 0.5)
        length = rng.uniform(0.06, 0.15) * width if short else rng.uniform(0.25, 1.0) * width
        middle = rng.uniform(0.0, 1.0, 2) * np.array([width, height])
        half = 0.5 * length * np.array([np.cos(angle), np.sin(angle)])
        line = _curve(rng, middle - half, middle + half, 0.25)
        points.append(line)
        radii.append(rng.uniform(0.4, 0.95) * s * np.linspace(1.0, 0.25, line.shape[1]))
    return _stamp(shape, np.concatenate(points, axis=1), np.concatenate(radii) - 0.2, 1.0)


def _photograph(c: _Canvas, rng: np.random.Generator, tone: Field) -> NDArray[np.uint8]:
    """Photograph skin, hairs, gel and lamp: return uint8 [H, W, 3]."""
    shape, s = c.u.shape, c.scale
    light = float((tone.mean() / 205.0) ** 0.8)
    if rng.uniform() < 0.4:
        c.veil(
            0.85 * _hairs(rng, shape, s),
            (62, 46, 40) if rng.uniform() < 0.9 else (214, 208, 200),
        )
    exposure = rng.uniform(0.94, 1.1) * light ** -rng.uniform(0.1, 0.4)
    balance = exposure * np.array([1.0, rng.uniform(0.88, 1.06), rng.uniform(0.84, 1.16)])
    x, y = (
        (np.arange(shape[1]) + 0.5) / shape[1] - 0.5,
        (np.arange(shape[0]) + 0.5)[:, None] / shape[0] - 0.5,
    )
    far = x**2 * (shape[1] / shape[0]) ** 2 + y**2
    shade = (
        1.0 + rng.normal(0.0, 0.07) * x + rng.normal(0.0, 0.07) * y - rng.uniform(0.0, 0.35) * far
    )
    shade += rng.uniform(0.01, 0.05) * _noise(rng, shape, 2.5 * s)
    glints = _glints(rng, shape, s) if rng.uniform() < 0.3 else None
    if rng.uniform() < 0.2:
        edge = rng.uniform(0.68, 0.8)
        shade *= 1.0 - 0.96 * _step(np.sqrt(far), edge - 0.02, edge + 0.03)
    blur, noise = rng.uniform(0.0, 0.18), rng.uniform(0.5, 2.2)
    grain = noise * rng.standard_normal((2, *shape), dtype=np.float32).astype(np.float64)
    image = np.empty((*shape, 3), dtype=np.uint8)
    for k, tint in enumerate((0.5, 0.0, -0.8)):
        # Light passes the skin twice; the law of Lambert and Beer gives what remains of
        # it.
        plane = tone[k] * np.exp(-_MELANIN[k] * c.melanin - _BLOOD[k] * c.blood)
        for alpha, colour in c.layers:
            plane += alpha * (light * colour[k] - plane)
        if glints is not None:
            plane += glints * (255.0 - plane)
        plane = _blur(plane * (balance[k] * shade), blur) + grain[0] + tint * grain[1]
        image[..., k] = np.rint(np.minimum(np.maximum(plane, 0.0), 255.0))
    return image


def _blur(plane: Field, weight: float) -> Field:
    """Blur [H, W] with three taps along both axes; `weight` is each neighbour's."""
    edged = np.concatenate([plane[:1], plane, plane[-1:]])
    plane = (1.0 - 2.0 * weight) * plane + weight * (edged[:-2] + edged[2:])
    edged = np.concatenate([plane[:, :1], plane, plane[:, -1:]], axis=1)
    blurred: Field = (1.0 - 2.0 * weight) * plane + weight * (edged[:, :-2] + edged[:, 2:])
    return blurred


def _glints(rng: np.random.Generator, shape: tuple[int, ...], s: float) -> Field:
    """Draw the strength of the lamp's reflections on gel and scales.

    They are specks around one place, some of them stretched to short lines.
    """
    place = np.array([[shape[1]], [shape[0]]], dtype=np.float64)
    count, long = int(rng.integers(8, 50)), rng.uniform(0.0, 5.0) * s
    patch = rng.uniform(0.0, 1.0, (2, 1)) + rng.normal(0.0, rng.uniform(0.06, 0.3), (2, count))
    drawn = np.linspace(-0.5, 0.5, 7) * long * rng.uniform(0.0, 1.0, (count, 1))
    angle = rng.uniform(0.0, np.pi) + rng.normal(0.0, 0.4, (count, 1))
    trail = np.stack([drawn * np.cos(angle), drawn * np.sin(angle)]) + (patch * place)[:, :, None]
    radius = np.repeat(rng.uniform(0.0, 0.9, count) * s, 7)
    return rng.uniform(0.15, 0.5) * _stamp(shape, trail.reshape(2, -1), radius, 1.5)
