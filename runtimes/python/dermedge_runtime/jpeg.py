"""Find JPEG files with rows that the decoder filled in.

A JPEG decoder stops at a marker. It fills the remaining blocks with grey (128) and
reports no error. So an upload that broke off and was then closed with an end marker
decodes as a whole picture.
"""

import io
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from PIL import Image

from dermedge_runtime.pillow import load, open_pillow

_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _RESTART_INTERVAL = 0xD8, 0xD9, 0xDA, 0xDD
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xCA)
_COEFFICIENTS = 64
# Compressed data holds FF 00 for the value FF, and restart markers FF D0 to FF D7.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_END = bytes((0xFF, _END_OF_IMAGE))
_GREY = range(127, 130)
# A disk or a network file system leaves zeros in place of a lost block.
_LOST_BLOCK = bytes(512)


@dataclass(frozen=True)
class _Header:
    """The part of a JPEG's headers that tells how much compressed data must follow."""

    kind: int
    width: int
    height: int
    sampling: dict[int, tuple[int, int]]
    restart_interval: int
    start: int
    """Offset of the compressed data of the first scan."""
    scan: bytes
    """Parameters of the first scan."""

    def restarts(self) -> int:
        """Return the number of restart markers in a first scan of all components."""
        across = max(across for across, _ in self.sampling.values())
        down = max(down for _, down in self.sampling.values())
        if len(self.sampling) == 1:
            across = down = 1
        units = -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        return (units - 1) // self.restart_interval


def check_jpeg(file: IO[bytes], picture: Image.Image) -> tuple[str, ...]:
    """Check that a JPEG file holds all of its first picture.

    Args:
        file: The file, at any position.
        picture: The decoded picture as it is stored, at any scale.

    Returns:
        A sentence for each sign of damage that is not certain.

    Raises:
        ValueError: Part of the picture is missing.
    """
    file.seek(0)
    data = file.read()
    segments = _segments(data)
    header = _read_header(data, segments)
    if header is None:
        return ()
    # Pillow accepts a picture whose last two bytes are missing; other platforms' decoders
    # do not.
    if data.find(_END, header.start) < 0:
        raise ValueError("the end marker is missing")
    if not _has_all_scans(data, header, segments):
        raise ValueError("scans are missing")
    lost = data.find(_LOST_BLOCK, header.start)
    grey = _ends_in_grey(picture)
    if lost < 0 and not grey and not header.restart_interval:
        return ()
    found = _MARKER.search(data, header.start)
    end = found.start() if found else len(data)
    if _lacks_restarts(data, header, end):
        raise ValueError("restart markers are missing")
    if grey and _was_filled_in(data, header, end):
        raise ValueError("rows are missing")
    if 0 <= lost < end:
        return ("The JPEG's data holds a block of zeros, and part of the picture may be wrong.",)
    return ()


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, start and end of every segment up to the end of the picture."""
    position = 2
    while found := _MARKER.search(data, position):
        marker, position = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return
        if marker in (0x01, _START_OF_IMAGE):
            continue
        end = position + int.from_bytes(data[position : position + 2], "big")
        yield marker, position + 2, end
        position = max(end, position + 2)


def _read_header(data: bytes, segments: Iterator[tuple[int, int, int]]) -> _Header | None:
    """Read the segments up to the first scan; None if they are not in order."""
    frame, interval = b"", 0
    kind = 0
    for marker, start, end in segments:
        if marker in _FRAMES:
            kind, frame = marker, data[start:end]
        elif marker == _RESTART_INTERVAL:
            interval = int.from_bytes(data[start:end], "big")
        elif marker == _START_OF_SCAN:
            sampling = {
                frame[i]: (max(frame[i + 1] >> 4, 1), max(frame[i + 1] & 15, 1))
                for i in range(6, len(frame) - 2, 3)
            }
            if not sampling:
                return None
            height, width = (int.from_bytes(frame[i : i + 2], "big") for i in (1, 3))
            return _Header(kind, width, height, sampling, interval, end, data[start:end])
    return None


def _has_all_scans(data: bytes, header: _Header, segments: Iterator[tuple[int, int, int]]) -> bool:
    """Return whether the scans hold every coefficient in full precision."""
    if header.kind not in _PROGRESSIVE and header.scan[:1] == bytes([len(header.sampling)]):
        return True
    missing = {(one, k) for one in header.sampling for k in range(_COEFFICIENTS)}
    scan = header.scan
    while True:
        count = scan[0] if scan else 0
        components = scan[1 : 1 + 2 * count : 2]
        first, last, approximation = (*scan[1 + 2 * count :], 0, 0, 0)[:3]
        if header.kind not in _PROGRESSIVE:
            first, last, approximation = 0, _COEFFICIENTS - 1, 0
        if approximation & 15 == 0:
            missing -= {(one, k) for one in components for k in range(first, last + 1)}
        if not missing:
            return True
        scan = next((data[a:b] for marker, a, b in segments if marker == _START_OF_SCAN), b"")
        if not scan:
            return False


def _ends_in_grey(picture: Image.Image) -> bool:
    """Return whether the last pixel has the grey of a block that was never decoded.

    Colour of a neighbouring block may spread into the pixel, so only its lightness is
    compared.
    """
    pixel = picture.getpixel((picture.width - 1, picture.height - 1))
    if not isinstance(pixel, tuple):
        return pixel in _GREY
    if len(pixel) == 3:
        red, green, blue = pixel
        return round(0.299 * red + 0.587 * green + 0.114 * blue) in _GREY
    return all(value in _GREY for value in pixel)


def _lacks_restarts(data: bytes, header: _Header, end: int) -> bool:
    if not header.restart_interval or header.scan[0] != len(header.sampling):
        return False
    expected = header.restarts()
    found = b"".join(_RESTART.findall(data, header.start, end))[:expected]
    return found != (bytes(range(0xD0, 0xD8)) * (expected // 8 + 1))[:expected]


def _was_filled_in(data: bytes, header: _Header, end: int) -> bool:
    """Return whether the picture changes when data is added to its first scan.

    A decoder that has all blocks ignores further data. A picture may end in grey.
    """
    noise = random.Random(0).randbytes(4096).replace(b"\xff", b"\0")
    if header.restart_interval:
        # The decoder may wait for any of the eight restart markers.
        noise = b"".join(noise[:512] + b"\xff" + bytes([0xD0 + i % 8]) for i in range(16))
    elif stray := _RESTART.search(data, header.start, end):
        # Without an interval, the decoder stops at a restart marker too.
        end = stray.start()
    closed = bytes([0xFF, _END_OF_IMAGE])
    return _decode(data[:end] + closed) != _decode(data[:end] + noise + closed)


def _decode(data: bytes) -> bytes:
    """Return the pixels at an eighth of the scale."""
    image = open_pillow("JPEG", io.BytesIO(data))
    image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
    load(image)
    return image.tobytes()
