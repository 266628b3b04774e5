"""Draw a class activation map over the image that it explains."""

import numpy as np
import numpy.typing as npt

from dermedge_runtime.decode import enlarge

# Five colours of matplotlib's cividis. Its lightness grows evenly, so that it reads the same
# with and without colour vision (Nuñez, Anderton and Renslow, PLOS ONE 13(7), 2018).
COLOURS = ((0, 34, 78), (66, 78, 108), (125, 124, 120), (188, 175, 108), (254, 232, 56))
OPACITY = 0.5
MEANING = (
    "The map shows where the model saw signs of this diagnosis, from dark blue (least) to yellow "
    "(most), over the map's own range. It does not show the border of the lesion, it does not "
    "say that the diagnosis is right, and it does not say why the signs count."
)


def draw_overlay(
    frame: npt.NDArray[np.uint8], cam: npt.NDArray[np.floating]
) -> npt.NDArray[np.uint8]:
    """Return an image with its class activation map over it, uint8 [S, S, 3].

    The map is enlarged bilinearly. Dark blue is its smallest value and yellow its largest.

    Args:
        frame: The preprocessed image, uint8 [S, S, 3].
        cam: The map, float [h, w].

    Example:
        >>> frame = np.zeros((4, 4, 3), np.uint8)
        >>> overlay = draw_overlay(frame, np.array([[0.0, 1.0]]))
        >>> overlay[0, 0].tolist(), overlay[0, 3].tolist()
        ([0, 17, 39], [127, 116, 28])
    """
    values = enlarge(cam.astype(np.float64), len(frame))
    span = float(values.max() - values.min())
    share = (values - values.min()) / span if span else np.zeros_like(values)
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(share, stops, channel) for channel in np.transpose(COLOURS)], -1)
    mixed: npt.NDArray[np.uint8] = ((1 - OPACITY) * frame + OPACITY * colours).astype(np.uint8)
    return mixed
