"""Read JSON strictly, and write it canonically (RFC 8785)."""

import json
import math
import re
from pathlib import Path
from typing import Any

from dermedge_runtime.errors import DermedgeError, UsageError

LARGEST_INTEGER = 2**53 - 1
LONGEST_INTEGER = len("-999999999999999900000")  # the largest float without an exponent
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


def canonical_json(value: object) -> bytes:
    """Serialise a JSON value as the one UTF-8 text that every language agrees on.

    The function is our own, not the package `rfc8785`, because a device installs four
    packages only (numpy, Pillow, click, rich). The tests compare it with `rfc8785`.

    Raises:
        UsageError: JSON cannot carry the value exactly: NaN, infinity, an integer
            beyond 2^53 - 1, a lone surrogate, a key that is not a string, or any other
            type.

    Source: RFC 8785, JSON Canonicalization Scheme (JCS).

    Example:
        >>> canonical_json({"b": 1.0, "a": [True, None]})
        b'{"a":[true,null],"b":1}'
    """
    try:
        return _serialise(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The text {error.object!r} holds half a surrogate pair. Write valid Unicode."
        ) from error


def _serialise(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise UsageError(
                f"The integer {value} is beyond 2^53 - 1 and not exact in JSON. Write it as text."
            )
        return str(int(value))
    if isinstance(value, float):
        return _serialise_number(float(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_serialise(item) for item in value)}]"
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise UsageError(f"The JSON key {wrong[0]!r} is not a string. Write it as one.")
        # The standard orders keys by UTF-16 code units, not by code points.
        ordered = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{_quote(key)}:{_serialise(value[key])}" for key in ordered) + "}"
    raise UsageError(
        f"{value!r} is a {type(value).__name__}, which JSON does not have. "
        "Convert it to a plain type."
    )


def _quote(text: str) -> str:
    escaped = ESCAPED.sub(lambda match: ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}", text)
    return f'"{escaped}"'


def _serialise_number(value: float) -> str:
    """Return a number as ECMAScript's Number::toString writes it.

    Python's `repr` has the same digits: the fewest that round-trip. Only the place of
    the point and the form of the exponent differ.
    """
    if not math.isfinite(value):
        raise UsageError(f"{value} is not a JSON number. Write null where there is no value.")
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


def pretty_json(value: object) -> bytes:
    """Serialise a JSON value for people: indented, sorted, the same bytes each time.

    Raises:
        UsageError: As `canonical_json`.

    Example:
        >>> print(pretty_json({"b": 1, "a": "é"}).decode(), end="")
        {
          "a": "é",
          "b": 1
        }
    """
    canonical_json(value)
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"


def parse_json(data: bytes, where: str, error_class: type[DermedgeError]) -> Any:
    """Parse UTF-8 JSON; refuse what languages read differently.

    That is a duplicate key, NaN, an infinity, and an integer beyond 2^53 - 1. An integer
    that RFC 8785 writes for a float, such as 100000000000000000000, is read as that
    float.

    Args:
        data: The JSON text.
        where: Name of the text, for messages.
        error_class: Class of the error to raise.

    Raises:
        DermedgeError: The text is not strict JSON; the error is an `error_class`.

    Example:
        >>> parse_json(b'{"a": 1, "a": 2}', "manifest.json", UsageError)
        Traceback (most recent call last):
        dermedge_runtime.errors.UsageError: manifest.json is not valid JSON (a key is...
    """

    def check_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise ValueError("a key is given twice")
        return result

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is not a finite number")
        return value

    # The length is checked first: int() of a very long text takes quadratic time.
    def exact(text: str) -> int | float:
        if len(text) <= LONGEST_INTEGER:
            if abs(int(text)) <= LARGEST_INTEGER:
                return int(text)
            if _serialise_number(float(text)) == text:
                return float(text)
        raise ValueError(f"{text[:40]} is beyond 2^53 - 1")

    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=check_keys,
            parse_float=finite,
            parse_int=exact,
            parse_constant=finite,
        )
    except (ValueError, RecursionError) as error:
        raise error_class(
            f"{where} is not valid JSON ({error}). Get or write the file again."
        ) from error


def read_json(path: str | Path, error_class: type[DermedgeError]) -> Any:
    """Read the JSON value in a file.

    Args:
        path: Path of the file.
        error_class: Class of the error to raise.

    Raises:
        DermedgeError: The file cannot be read or is not strict UTF-8 JSON; the error is
            an `error_class`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise error_class(
            f"Cannot read {path} ({error.strerror}). Check that the path is right."
        ) from error
    return parse_json(data, str(path), error_class)
