"""Read JSON strictly, and write it canonically (RFC 8785)."""

import json
import math
import re
from pathlib import Path
from typing import Any

from dermedge_runtime.errors import DermedgeError, UsageError

LARGEST_INTEGER = 2**53 - 1
ESCAPES = {
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
    '"': '\\"',
    "\\": "\\\\",
}
ESCAPED = re.compile(r'[\x00-\x1f"\\]')


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
        raise UsageError(
            f"The text {error.object!r} holds half a surrogate pair; write valid Unicode."
        ) from error


def _canonical(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise UsageError(
                f"The integer {value} is beyond 2^53 - 1 and not exact in JSON; write it as text."
            )
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
    raise UsageError(
        f"{value!r} is a {type(value).__name__}, which JSON does not know; convert it to a plain type."
    )


def _quoted(text: str) -> str:
    return (
        '"'
        + ESCAPED.sub(lambda match: ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}", text)
        + '"'
    )


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
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_float=finite,
            parse_int=exact,
            parse_constant=finite,
        )
    except (ValueError, RecursionError) as error:
        raise error_class(
            f"{where} is not valid JSON ({error}); get or write the file again."
        ) from error


def read_json(path: str | Path, error_class: type[DermedgeError]) -> Any:
    """The JSON value in a file.

    Raises:
        DermedgeError: of the given class where the file cannot be read or is not strict UTF-8 JSON.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise error_class(
            f"Cannot read {path} ({error.strerror}); check that the path is right."
        ) from error
    return parse_json(data, str(path), error_class)
