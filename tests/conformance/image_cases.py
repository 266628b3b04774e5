"""Image files in awkward shapes and modes, with the tensors that they must become."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from conformance.drawing import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGB_ALPHA,
    SIGNATURE,
    chunk,
    deepen,
    draw,
    png,
    random_bytes,
    stored,
    swapped_profile,
    to_grey,
)
from conformance.writing import Files, cases_json, keep
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.image import decode
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Json, Preprocess, to_json

SMALL = Preprocess(16)
MIDDLE = Preprocess(32)
MAGENTA = (255, 0, 128)


@dataclass(frozen=True)
class ImageCase:
    """An image file, and the error that it must cause, if any.

    `mentions` is empty for an image that must be read. `lossy` is true if decoders
    differ by some levels.
    """

    file: str
    data: bytes
    spec: Preprocess = SMALL
    lossy: bool = False
    mentions: tuple[str, ...] = field(default=())


def image_files() -> Files:
    """Return `images.json`, the images, the tensors and the losslessly stored pixels."""
    files: Files = {}
    entries = [_entry(case, files) for case in (*_readable(), *_refused())]
    return {"images.json": cases_json(entries), **files}


def _entry(case: ImageCase, files: Files) -> Json:
    image = f"images/{case.file}"
    name = case.file.replace(".", "-")
    files[image] = case.data
    entry = {"name": name, "image": image, "preprocess": to_json(case.spec)}
    if case.mentions:
        return {**entry, "error": "ImageError", "mentions": list(case.mentions)}
    source = case.data
    if case.lossy:
        entry |= {"lossy": True, "decoded": f"decoded/{name}.png"}
        source = keep(entry["decoded"], lambda: png(_pixels(case), RGB))
        files[entry["decoded"]] = source
    pixels = np.asarray(decode(source, background=case.spec.background).picture)
    files[f"tensors/{name}.bin"] = preprocess(source, case.spec, exact=True).tobytes()
    return {
        **entry,
        "pixels": {
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "sha256": sha256_hex(pixels.tobytes()),
        },
        "tensor": f"tensors/{name}.bin",
    }


def _pixels(case: ImageCase) -> np.ndarray:
    return np.asarray(decode(case.data, background=case.spec.background).picture)


def _readable() -> Iterator[ImageCase]:
    """Yield the images that must be read."""
    yield from _colours()
    yield from _transparent()
    yield from _shapes()
    yield from _profiles()
    yield from _turned()
    picture = draw(24, 18)
    for name, pixels, options in (
        ("grey.jpg", to_grey(picture)[..., 0], {}),
        ("progressive.jpg", picture, {"progressive": True}),
        ("restarts.jpg", picture, {"restart_marker_blocks": 2}),
        ("half-colour.jpg", picture, {"subsampling": 2}),
        ("cmyk.jpg", np.dstack((255 - picture, picture[..., 0] // 4)), {}),
    ):
        yield ImageCase(name, _jpeg(name, pixels, **options), lossy=True)


def _turned() -> Iterator[ImageCase]:
    """Yield images with an EXIF orientation."""
    picture = draw(24, 18)
    for turn in range(1, 9):
        yield ImageCase(f"exif-{turn}.png", png(picture, RGB, before=chunk(b"eXIf", _exif(turn))))
        data = _jpeg(f"exif-{turn}.jpg", picture, exif=b"Exif\0\0" + _exif(turn))
        yield ImageCase(f"exif-{turn}.jpg", data, lossy=True)
    # A value outside 1..8 is ignored.
    yield ImageCase("exif-9.png", png(picture, RGB, before=chunk(b"eXIf", _exif(9))))
    little = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    yield ImageCase("exif-little-end.png", png(picture, RGB, before=chunk(b"eXIf", little)))
    data = _jpeg("exif-little-end.jpg", picture, exif=b"Exif\0\0" + little)
    yield ImageCase("exif-little-end.jpg", data, lossy=True)
    number = struct.pack(">2sHIHHHIII", b"MM", 42, 8, 1, 0x0112, 4, 1, 8, 0)
    yield ImageCase("exif-4-bytes.png", png(picture, RGB, before=chunk(b"eXIf", number)))
    whole = png(picture, RGB)
    late = whole[:-12] + chunk(b"eXIf", _exif(6)) + whole[-12:]
    yield ImageCase("exif-behind-the-pixels.png", late)


def _colours() -> Iterator[ImageCase]:
    """Yield opaque images of every colour type and depth."""
    picture = draw(37, 29)
    grey = to_grey(picture)
    yield ImageCase("rgb.png", png(picture, RGB), MIDDLE)
    yield ImageCase("rgb-16.png", png(deepen(picture, 5), RGB, 16), MIDDLE)
    yield ImageCase("grey.png", png(grey, GREY), MIDDLE)
    yield ImageCase("grey-16.png", png(deepen(grey, 6), GREY, 16), MIDDLE)
    for depth in (1, 2, 4):
        yield ImageCase(f"grey-{depth}.png", png(grey >> (8 - depth), GREY, depth))
    for depth in (1, 2, 4, 8):
        index = grey >> (8 - min(depth, 6))
        palette = chunk(b"PLTE", random_bytes(depth, 3 << min(depth, 6)).tobytes())
        yield ImageCase(f"palette-{depth}.png", png(index, PALETTE, depth, before=palette))
    yield ImageCase("interlaced.png", png(picture, RGB, interlaced=True), MIDDLE)
    yield ImageCase("interlaced-1.png", png(grey >> 7, GREY, 1, interlaced=True))
    yield ImageCase("interlaced-16.png", png(deepen(picture, 7), RGB, 16, interlaced=True))
    yield ImageCase("bytes-behind.png", png(picture, RGB) + b"more")
    yield ImageCase("one-frame.png", _animated(frames=1))


def _transparent() -> Iterator[ImageCase]:
    """Yield images with alpha, on several backgrounds."""
    picture = draw(33, 21)
    grey = to_grey(picture)
    alpha = random_bytes(9, grey.size).reshape(grey.shape)
    alpha[:4], alpha[-4:] = 0, 255
    rgba, layered = np.dstack((picture, alpha)), np.dstack((grey, alpha))
    magenta, dark = Preprocess(16, background=MAGENTA), Preprocess(16, "pad", background=(7, 1, 3))
    yield ImageCase("alpha.png", png(rgba, RGB_ALPHA), magenta)
    yield ImageCase("alpha-white.png", png(rgba, RGB_ALPHA))
    yield ImageCase("alpha-pad.png", png(rgba, RGB_ALPHA), dark)
    yield ImageCase("alpha-16.png", png(deepen(rgba, 3), RGB_ALPHA, 16), magenta)
    yield ImageCase("alpha-interlaced.png", png(rgba, RGB_ALPHA, interlaced=True), magenta)
    yield ImageCase("grey-alpha.png", png(layered, GREY_ALPHA), magenta)
    yield ImageCase("grey-alpha-16.png", png(deepen(layered, 4), GREY_ALPHA, 16), magenta)
    index = grey >> 4
    palette = chunk(b"PLTE", random_bytes(2, 48).tobytes())
    # Fewer alpha values than colours: the others are opaque.
    keyed = palette + chunk(b"tRNS", bytes([0, 60, 128, 200, 255, 9, 77]))
    yield ImageCase("palette-alpha.png", png(index, PALETTE, 4, before=keyed), magenta)
    few = np.where(picture > 120, np.uint8(200), np.uint8(40))
    key = chunk(b"tRNS", struct.pack(">HHH", 200, 200, 200))
    yield ImageCase("rgb-key.png", png(few, RGB, before=key), magenta)
    key = chunk(b"tRNS", struct.pack(">H", 40))
    yield ImageCase("grey-key.png", png(few[..., :1], GREY, before=key), magenta)
    for depth in (1, 2, 4):
        samples = grey >> (8 - depth)
        key = chunk(b"tRNS", struct.pack(">H", samples[0, 0, 0]))
        data = png(samples, GREY, depth, before=key)
        yield ImageCase(f"grey-{depth}-key.png", data, magenta)


def _shapes() -> Iterator[ImageCase]:
    """Yield odd sizes, panoramas and the smallest image, with every fit."""
    for fit in ("crop", "pad", "stretch"):
        for width, height in ((41, 27), (26, 43), (320, 16), (16, 320), (16, 16), (17, 16)):
            spec = Preprocess(32, fit, background=(90, 200, 10))
            yield ImageCase(f"{fit}-{width}x{height}.png", png(draw(width, height), RGB), spec)


def _profiles() -> Iterator[ImageCase]:
    """Yield images whose colour profile must be ignored."""
    picture = draw(20, 20)
    linear = chunk(b"gAMA", struct.pack(">I", 100000))
    yield ImageCase("gamma.png", png(picture, RGB, before=linear))
    wide = struct.pack(">8I", 31270, 32900, 80000, 10000, 10000, 80000, 5000, 5000)
    yield ImageCase("chromaticities.png", png(picture, RGB, before=linear + chunk(b"cHRM", wide)))
    profile = chunk(b"iCCP", b"swapped\0\0" + stored(swapped_profile()))
    yield ImageCase("icc.png", png(picture, RGB, before=profile))
    data = _jpeg("icc.jpg", picture, icc_profile=swapped_profile())
    yield ImageCase("icc.jpg", data, lossy=True)


def _refused() -> Iterator[ImageCase]:
    """Yield the files that must be refused."""
    picture = draw(40, 30)
    whole, jpeg = png(picture, RGB), keep("images/truncated.jpg", lambda: _broken_jpeg(picture))
    header, data = whole[:33], whole[33:]
    damage = {
        "truncated.png": whole[: len(whole) * 2 // 3],
        "no-end.png": whole[:-12],
        "few-rows.png": header + png(picture[:20], RGB)[33:],
        "checksum.png": header + data[:500] + bytes([data[500] ^ 1]) + data[501:],
        "signature-only.png": SIGNATURE,
        "no-data.png": header + whole[-12:],
        "no-palette.png": png(to_grey(picture) >> 4, PALETTE, 4),
        "checksum-of-the-data.png": header + chunk(b"IDAT", _wrong_sum(picture)) + whole[-12:],
        "truncated.jpg": jpeg,
        "cut-and-closed.jpg": jpeg + b"\xff\xd9",
        "header-only.jpg": jpeg[:20],
        "no-end.jpg": _jpeg("icc.jpg", draw(20, 20), icc_profile=swapped_profile())[:-2],
    }
    for name, content in damage.items():
        yield ImageCase(name, content, mentions=("truncated or damaged",))
    yield ImageCase("animated.png", _animated(), mentions=("animated",))
    yield ImageCase("animated.gif", keep("images/animated.gif", _gif), mentions=("animated",))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><path d="M0 0h9"/></svg>'
    yield ImageCase("drawing.svg", svg, mentions=("not an image",))
    yield ImageCase("text.png", b"This is no picture.\n" * 20, mentions=("not an image",))
    yield ImageCase("zeros.jpg", bytes(400), mentions=("not an image",))
    yield ImageCase("empty.png", b"", mentions=("empty",))
    yield ImageCase("flat.png", png(draw(40, 15), RGB), mentions=("40 x 15", "16"))
    yield ImageCase("narrow.png", png(draw(1, 50), RGB), mentions=("1 x 50", "16"))
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 700))
    deep = png(deepen(picture, 8), RGB, 16, before=key)
    yield ImageCase("rgb-16-key.png", deep, mentions=("16 bits per sample",))
    # The header claims more pixels than any photograph has.
    claim = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    yield ImageCase("huge.png", SIGNATURE + claim + data, mentions=("60000 x 60000",))


def _exif(orientation: int) -> bytes:
    """Return a big-endian TIFF header with one entry."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def _jpeg(name: str, pixels: np.ndarray, **options: object) -> bytes:
    """Return the committed JPEG, or encode one; encoders differ between machines."""

    def encode() -> bytes:
        buffer = io.BytesIO()
        mode = "CMYK" if pixels.shape[-1] == 4 else None
        image = (
            Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
            if mode
            else (Image.fromarray(pixels))
        )
        image.save(buffer, "JPEG", **{"quality": 95, "subsampling": 0, **options})
        return buffer.getvalue()

    return keep(f"images/{name}", encode)


def _broken_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3]


def _wrong_sum(pixels: np.ndarray) -> bytes:
    """Return the data of a PNG whose zlib stream ends with a wrong checksum."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return stored(rows)[:-1] + b"?"


def _animated(frames: int = 2) -> bytes:
    """Return a PNG of one or two frames."""
    whole = png(draw(20, 20), RGB)
    header, data, end = whole[:33], whole[33:-12], whole[-12:]
    second = struct.pack(">I", 2) + stored(b"\0" * 20 * 61)
    control = [struct.pack(">IIIIIHHBB", n, 20, 20, 0, 0, 1, 2, 0, 0) for n in (0, 1)]
    first = chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", control[0]) + data
    more = chunk(b"fcTL", control[1]) + chunk(b"fdAT", second) if frames > 1 else b""
    return header + first + more + end


def _gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(draw(20, 20, seed)) for seed in (1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()
