"""Digests, canonical JSON, strict JSON, and writes that a kill cannot leave half done."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dermedge_runtime.errors import DermedgeError, UsageError

LARGEST_INTEGER = 2**53 - 1
ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
ESCAPED = re.compile(r'[\x00-\x1f"\\]')


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of the bytes, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file, read in pieces so that a large model does not fill the memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one UTF-8 serialisation of a JSON value that every language agrees on.

    Raises:
        UsageError: for a value that JSON cannot carry exactly: NaN, infinity, an integer beyond 2^53 - 1, a lone
            surrogate, a key that is not a string, any other type.

    Source: RFC 8785, JSON Canonicalization Scheme (JCS).
    """
    try:
        return _canonical(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"The text {error.object!r} holds half a surrogate pair; write valid Unicode.") from error


def _canonical(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise UsageError(f"The integer {value} is beyond 2^53 - 1 and not exact in JSON; write it as text.")
        return str(int(value))
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_canonical(item) for item in value)}]"
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise UsageError(f"The JSON key {wrong[0]!r} is not a string; write it as one.")
        ordered = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{_quoted(key)}:{_canonical(value[key])}" for key in ordered) + "}"
    raise UsageError(f"{value!r} is a {type(value).__name__}, which JSON does not know; convert it to a plain type.")


def _quoted(text: str) -> str:
    return '"' + ESCAPED.sub(lambda match: ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}", text) + '"'


def _number(value: float) -> str:
    """ECMAScript's Number::toString, from Python's equally short and round-tripping `repr`."""
    if not math.isfinite(value):
        raise UsageError(f"{value} is not a JSON number; write null where there is no value.")
    if value == 0:
        return "0"
    sign, text = ("-", repr(-value)) if value < 0 else ("", repr(value))
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    point = len(whole) + int(exponent or 0)
    digits = whole + fraction
    point -= len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def pretty_json(value: Any) -> bytes:
    """JSON for files that people read: indented, sorted, the same bytes for the same value.

    Raises:
        UsageError: as `canonical_json`.
    """
    canonical_json(value)
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"


def parse_json(data: bytes, where: str, error_class: type[DermedgeError]) -> Any:
    """Reads UTF-8 JSON, without what languages disagree on: duplicate keys, NaN, infinities, integers beyond 2^53 - 1.

    Raises:
        DermedgeError: of the given class, naming `where`.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("a key is given twice")
        return result

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is not a finite number")
        return value

    def exact(text: str) -> int:
        if len(text) > 17 or abs(int(text)) > LARGEST_INTEGER:
            raise ValueError(f"{text[:40]} is beyond 2^53 - 1")
        return int(text)

    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=pairs, parse_float=finite, parse_int=exact, parse_constant=finite
        )
    except (ValueError, RecursionError) as error:
        raise error_class(f"{where} is not valid JSON ({error}); get or write the file again.") from error


def read_json(path: str | Path, error_class: type[DermedgeError]) -> Any:
    """The JSON value in a file.

    Raises:
        DermedgeError: of the given class where the file cannot be read or is not strict UTF-8 JSON.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise error_class(f"Cannot read {path} ({error.strerror}); check that the path is right.") from error
    return parse_json(data, str(path), error_class)


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes a file so that after a crash or kill the old content or the new one stands there, never a part.

    Raises:
        DermedgeError: where the system refuses; nothing is left behind.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise DermedgeError(
            f"Cannot write {path} ({error.strerror}); free space or choose a path you may write to."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False, marker: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: where the finished folder shall stand.
        overwrite: whether something may stand there already; it stays whole until the new folder replaces it.
        marker: a file that a folder must hold to be overwritten, so that a mistyped path does not cost a photo album.

    Raises:
        UsageError: where `path` exists and may not be replaced.
        DermedgeError: where the system refuses to write.
    """
    import shutil

    path = Path(path)
    check_free(path, overwrite=overwrite, marker=marker)
    temporary = _beside(path, "tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DermedgeError(f"Cannot write {path} ({error.strerror}); choose a path you may write to.") from error
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        _put(temporary, path, overwrite=overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Raises UsageError unless a result may be written to `path`; call it before an hour of work, not after."""
    if path.name in ("", ".", ".."):
        raise UsageError(f"{str(path)!r} cannot be an output; name a new file or folder.")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UsageError(f"{path} exists already; choose another path, or overwrite it (--overwrite).")
    if marker is not None and path.is_dir() and any(path.iterdir()) and not (path / marker).is_file():
        raise UsageError(f"{path} is a folder without {marker}, so it is not overwritten; choose another path.")


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{os.urandom(4).hex()}")


def _put(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Moves the finished folder to `path`; what stood there is deleted last."""
    try:
        if not (overwrite and os.path.lexists(path)):
            temporary.rename(path)
        elif _exchange(temporary, path):
            _remove(temporary)
        else:
            old = _beside(path, "old")
            path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                old.rename(path)
                raise
            _remove(old)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise UsageError(f"{path} exists already; choose another path, or overwrite it (--overwrite).") from error
        raise DermedgeError(f"Cannot write {path} ({error.strerror}); choose a path you may write to.") from error


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths in one step where the system can (Linux); two renames would leave a moment without either."""
    import ctypes

    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(swap(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk; systems that cannot open a folder do without."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
