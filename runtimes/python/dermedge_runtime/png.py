"""Check that a PNG file is complete."""

import struct
import zlib
from collections.abc import Iterator
from typing import IO

_BLOCK = 1 << 20
# By colour type.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Start and step of the columns and rows of each pass of an interlaced file.
_PASSES = (
    *((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8)),
    *((2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)),
)


def check_chunks(file: IO[bytes]) -> None:
    """Check every chunk up to the end chunk; Pillow leaves out some checksums.

    Raises:
        ValueError: A chunk is cut off, or its checksum is wrong.
    """
    for kind, block in _blocks(file):
        if kind == b"IEND" and not block:
            return
    raise ValueError("the end chunk is missing")


def check_length(file: IO[bytes]) -> None:
    """Check that the compressed data holds all pixels.

    A file may be closed correctly although its last rows were never written. Pillow
    leaves such rows black.

    Raises:
        ValueError: Rows are missing.
    """
    file.seek(16)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    bits = depth * _CHANNELS[colour]
    passes = _PASSES if interlaced else ((0, 1, 0, 1),)
    expected = 0
    for left, across, top, down in passes:
        columns, rows = len(range(left, width, across)), len(range(top, height, down))
        expected += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    found, stream = 0, zlib.decompressobj()
    for kind, block in _blocks(file):
        while kind == b"IDAT" and block and found < expected:
            found += len(stream.decompress(block, _BLOCK))
            block = stream.unconsumed_tail
    if found < expected:
        raise ValueError("rows are missing")


def _blocks(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the data of each chunk in blocks with its type; an empty block ends it."""
    file.seek(8)
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("a chunk is cut off")
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        checksum = zlib.crc32(kind)
        while length:
            block = file.read(min(length, _BLOCK))
            if not block:
                raise ValueError("a chunk is cut off")
            checksum, length = zlib.crc32(block, checksum), length - len(block)
            yield kind, block
        if file.read(4) != checksum.to_bytes(4, "big"):
            raise ValueError("a checksum is wrong")
        yield kind, b""
        if kind == b"IEND":
            return
