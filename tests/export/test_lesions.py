"""Synthetic lesions are deterministic and plausible, and follow their parameters."""

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from dermedge_export.synthetic.lesions import CLASSES, Lesion, draw_lesion
from dermedge_runtime.errors import UsageError


def digest(lesion: Lesion) -> str:
    return hashlib.sha256(lesion.image.tobytes() + lesion.mask.tobytes()).hexdigest()


def asymmetry(mask: NDArray[np.bool_]) -> float:
    """Share of the mask that its half turn about its own centre does not cover."""
    y, x = np.nonzero(mask)
    turned_y = np.clip(np.rint(2 * y.mean() - y).astype(int), 0, mask.shape[0] - 1)
    turned_x = np.clip(np.rint(2 * x.mean() - x).astype(int), 0, mask.shape[1] - 1)
    return 1.0 - float(mask[turned_y, turned_x].mean())


def contrast(lesion: Lesion) -> float:
    """Largest log ratio over R, G, B between skin and lesion."""
    image = lesion.image.astype(np.float64) + 4.0
    return float(
        np.abs(np.log(image[lesion.mask].mean(0)) - np.log(image[~lesion.mask].mean(0))).max()
    )


def test_same_seed_gives_same_bytes_in_a_fresh_process() -> None:
    code = (
        "import hashlib\n"
        "from dermedge_export.synthetic.lesions import draw_lesion\n"
        "for seed in range(6):\n"
        "    lesion = draw_lesion(seed)\n"
        "    print(hashlib.sha256(lesion.image.tobytes() + lesion.mask.tobytes()).hexdigest())\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONHASHSEED": "7",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [digest(draw_lesion(seed)) for seed in range(6)]


def test_different_seeds_differ() -> None:
    assert len({digest(draw_lesion(seed)) for seed in range(24)}) == 24


def test_missing_properties_are_drawn_from_the_seed() -> None:
    lesions = [draw_lesion(seed, height=48, width=64) for seed in range(80)]
    assert {lesion.dx for lesion in lesions} == set(CLASSES)
    assert {lesion.fitzpatrick for lesion in lesions} == set(range(1, 7))
    assert {lesion.severity for lesion in lesions} == set(range(4))
    first = lesions[0]
    given = draw_lesion(
        0, dx=first.dx, fitzpatrick=first.fitzpatrick, severity=first.severity, height=48, width=64
    )
    assert digest(given) == digest(first)


@pytest.mark.parametrize("fitzpatrick", range(1, 7))
@pytest.mark.parametrize("dx", CLASSES)
def test_every_class_on_every_tone(dx: str, fitzpatrick: int) -> None:
    lesions = [
        draw_lesion(seed, dx=dx, fitzpatrick=fitzpatrick, severity=seed % 4) for seed in range(8)
    ]
    for lesion in lesions:
        assert lesion.image.shape == (192, 256, 3)
        assert lesion.image.dtype == np.uint8
        assert lesion.image.flags.c_contiguous
        assert lesion.mask.shape == (192, 256)
        assert lesion.mask.dtype == np.bool_
        assert (lesion.dx, lesion.fitzpatrick) == (dx, fitzpatrick)
        assert 0.01 < lesion.mask.mean() < 0.5
        frame = np.concatenate(
            [lesion.mask[0], lesion.mask[-1], lesion.mask[:, 0], lesion.mask[:, -1]]
        )
        assert not frame.any()
    contrasts = [contrast(lesion) for lesion in lesions]
    assert min(contrasts) > 0.015
    assert np.mean(contrasts) > 0.12


def test_mask_follows_the_border() -> None:
    """A shifted mask separates lesion and skin less well: the edge is in place."""
    for seed in range(12):
        lesion = draw_lesion(seed, dx="nv", severity=2, fitzpatrick=2)
        green = lesion.image[..., 1].astype(np.float64)

        def gap(mask: NDArray[np.bool_], green: NDArray[np.float64] = green) -> float:
            return float(green[~mask].mean() - green[mask].mean())

        true = gap(lesion.mask)
        for axis, by in ((0, 14), (0, -14), (1, 14), (1, -14)):
            assert true > gap(np.roll(lesion.mask, by, axis))


@pytest.mark.parametrize("dx", CLASSES)
def test_severity_drives_area_and_asymmetry(dx: str) -> None:
    masks = [
        [draw_lesion(seed, dx=dx, severity=s, height=96, width=128).mask for seed in range(30)]
        for s in range(4)
    ]
    areas = [np.mean([mask.mean() for mask in row]) for row in masks]
    uneven = [np.mean([asymmetry(mask) for mask in row]) for row in masks]
    assert areas == sorted(areas)
    assert areas[3] > 2 * areas[0]
    assert uneven == sorted(uneven)
    assert uneven[3] > 1.3 * uneven[0]


def test_skin_darkens_from_type_1_to_6() -> None:
    means = []
    for fitzpatrick in range(1, 7):
        lesions = [
            draw_lesion(seed, fitzpatrick=fitzpatrick, height=96, width=128) for seed in range(20)
        ]
        means.append(np.mean([lesion.image[~lesion.mask].mean() for lesion in lesions]))
    assert all(lighter > darker + 3 for lighter, darker in itertools.pairwise(means))


def test_tone_changes_nothing_but_colour() -> None:
    light, dark = (
        draw_lesion(3, dx="mel", fitzpatrick=1, severity=2),
        draw_lesion(3, dx="mel", fitzpatrick=6, severity=2),
    )
    assert np.array_equal(light.mask, dark.mask)
    assert light.image.mean() > dark.image.mean() + 20


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (33, 200), (200, 33), (224, 224), (450, 600)]
)
def test_other_sizes(height: int, width: int) -> None:
    for seed, dx in enumerate(CLASSES):
        lesion = draw_lesion(seed, dx=dx, height=height, width=width)
        assert lesion.image.shape == (height, width, 3)
        assert lesion.mask.any()
        assert not lesion.mask.all()


@pytest.mark.parametrize(
    ("arguments", "bad", "advice"),
    [
        ({"seed": -1}, "-1", "Use 0 or more."),
        ({"seed": 0, "dx": "akiec"}, "'akiec'", "Use one of nv, mel, bkl, bcc, vasc, df."),
        ({"seed": 0, "fitzpatrick": 0}, "0", "Use 1 to 6."),
        ({"seed": 0, "fitzpatrick": 7}, "7", "Use 1 to 6."),
        ({"seed": 0, "severity": 4}, "4", "Use 0 to 3."),
        ({"seed": 0, "height": 31}, "31x256", "Use at least 32 for height and width."),
        ({"seed": 0, "width": 0}, "192x0", "Use at least 32 for height and width."),
    ],
)
def test_errors_name_the_value_and_what_to_do(
    arguments: dict[str, object], bad: str, advice: str
) -> None:
    with pytest.raises(UsageError) as caught:
        draw_lesion(**arguments)  # type: ignore[arg-type]
    assert bad in str(caught.value)
    assert str(caught.value).endswith(advice)
