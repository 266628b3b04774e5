"""Draw pictures and write PNG files in integer arithmetic, the same on every machine."""

import struct
import zlib
from itertools import pairwise

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types of PNG."""
FULL = ((0, 1, 0, 1),)
# First column, step of columns, first row and step of rows of each pass.
ADAM7 = (
    *((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8)),
    *((2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)),
)
STORED = 65535  # Largest number of bytes in a block that is not compressed.


def random_bytes(seed: int, count: int) -> np.ndarray:
    """Return uint8 [count]: the high byte of x = 1664525 x + 1013904223 mod 2^32."""
    # x after k steps is seed * a^k + c * (1 + a + ... + a^(k-1)).
    powers = np.cumprod(np.full(count, 1664525, np.uint32), dtype=np.uint32)
    sums = np.cumsum(powers, dtype=np.uint32) - powers + np.uint32(1)
    return ((np.uint32(seed) * powers + np.uint32(1013904223) * sums) >> np.uint32(24)).astype(
        np.uint8
    )


def draw(width: int, height: int, seed: int = 1) -> np.ndarray:
    """Draw a dark spot on skin: uint8 [H, W, 3]. No turned copy equals another."""
    y, x = np.mgrid[:height, :width]
    skin = np.stack([230 - 60 * x // width, 180 - 50 * y // height, 150 + 0 * x], axis=2)
    far = ((3 * x - width) * height) ** 2 + ((5 * y - 2 * height) * width) ** 2
    spot = np.where(far[..., None] < (width * height) ** 2, skin * 2 // 5, skin)
    noise = random_bytes(seed, spot.size).reshape(spot.shape).astype(int) // 8
    return np.clip(spot + noise - 16, 0, 255).astype(np.uint8)


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return the mean of the three colours: uint8 [H, W, 1]."""
    return (pixels.astype(int).sum(axis=2, keepdims=True) // 3).astype(np.uint8)


def deepen(samples: np.ndarray, seed: int) -> np.ndarray:
    """Return 16-bit samples with the given high bytes and random low bytes."""
    low = random_bytes(seed, samples.size).reshape(samples.shape)
    return samples.astype(np.uint16) << 8 | low


def png(
    samples: np.ndarray,
    colour: int,
    depth: int = 8,
    *,
    interlaced: bool = False,
    before: bytes = b"",
) -> bytes:
    """Return a PNG file, with every filter, and its data in two chunks.

    Args:
        samples: Samples [H, W, C] of `depth` bits.
        colour: Colour type.
        depth: Bits per sample.
        interlaced: Write the seven passes of Adam7.
        before: Chunks between the header and the data.
    """
    height, width, channels = samples.shape
    data = b"".join(
        _filtered(samples[top::down, left::across], depth, max(channels * depth // 8, 1))
        for left, across, top, down in (ADAM7 if interlaced else FULL)
        if width > left and height > top
    )
    packed = stored(data)
    middle = len(packed) // 2
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"".join(
        (
            SIGNATURE,
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", packed[:middle]),
            chunk(b"IDAT", packed[middle:]),
            chunk(b"IEND", b""),
        )
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def stored(data: bytes) -> bytes:
    """Return a zlib stream without compression: compressors differ between machines."""
    bounds = [*range(0, max(len(data), 1), STORED), len(data)]
    blocks = [
        struct.pack("<BHH", end == len(data), end - start, end - start ^ 0xFFFF) + data[start:end]
        for start, end in pairwise(bounds)
    ]
    return b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(data))


def swapped_profile() -> bytes:
    """Return an ICC profile that swaps red and blue, so that applying it shows."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 0x0233)
    white = (0.9642, 1.0, 0.8249)
    tags: dict[bytes, bytes] = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 8) + b"swapped\0" + bytes(78),
        b"cprt": b"text\0\0\0\0CC0\0",
        **{
            name: b"XYZ \0\0\0\0" + fixed(*value)
            for name, value in (
                (b"wtpt", white),
                (b"rXYZ", blue),
                (b"gXYZ", green),
                (b"bXYZ", red),
            )
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        offset = 132 + 12 * len(tags) + len(body)
        table, body = table + struct.pack(">4sII", name, offset, len(value)), body + padded
    size = 128 + len(table) + len(body)
    date = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    head = struct.pack(">I4sI", size, b"\0\0\0\0", 0x02100000) + b"mntrRGB XYZ " + date + b"acsp"
    head += bytes(28) + fixed(*white)
    return head + bytes(128 - len(head)) + table + body


def _filtered(samples: np.ndarray, depth: int, step: int) -> bytes:
    """Return the rows of a pass, each with one of the five filters in turn.

    Args:
        samples: Samples [H, W, C].
        depth: Bits per sample.
        step: Bytes of a whole pixel.
    """
    lines = [_packed(row, depth) for row in samples]
    above = np.zeros(len(lines[0]), int)
    out = []
    for index, line in enumerate(lines):
        left, corner = (
            np.concatenate((np.zeros(step, int), a))[: len(line)] for a in (line, above)
        )
        guess = (0 * line, left, above, (left + above) // 2, _paeth(left, above, corner))[index % 5]
        out.append(bytes([index % 5]) + (line - guess).astype(np.uint8).tobytes())
        above = line
    return b"".join(out)


def _packed(row: np.ndarray, depth: int) -> np.ndarray:
    """Return the bytes of a row, as integers."""
    if depth == 16:
        return np.frombuffer(row.astype(">u2").tobytes(), np.uint8).astype(int)
    if depth == 8:
        return row.astype(int).reshape(-1)
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, -depth:]
    return np.packbits(bits.reshape(-1)).astype(int)


def _paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Return the nearest of three neighbours to left + above - corner."""
    guess = left + above - corner
    a, b, c = abs(guess - left), abs(guess - above), abs(guess - corner)
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
