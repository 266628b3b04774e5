"""Store built TensorRT engines and their record beside a bundle, which is immutable.

`NAME.device.json` is the record of the engine that was built and gated on this device;
`NAME.cache/` holds the engines. An engine fits one GPU and one TensorRT. So its file is
named by a digest of both, of the ONNX file and of the build flags; for any other key a
new engine is built. The record decides whether an engine may be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import canonical_json, pretty_json, read_json
from dermedge_runtime.errors import EngineError
from dermedge_runtime.files import atomic_write, sha256_hex
from dermedge_runtime.spec import Json, to_json

SCHEMA = "dermedge.device/1"


@dataclass(frozen=True)
class EngineKey:
    """Inputs of an engine's build.

    `onnx` is the SHA-256 of the ONNX file, `tensorrt` the full version, `sm` the GPU's
    compute capability without the dot, `flags` the build's options.

    Example:
        >>> EngineKey("ab" * 32, "10.3.0", "87", {"batch": 1}).digest[:8]
        '5e6786ca'
    """

    onnx: str
    tensorrt: str
    sm: str
    flags: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the key, the engine's name in the cache."""
        return sha256_hex(canonical_json(to_json(self)))


@dataclass(frozen=True)
class EngineFile:
    """A built engine in the cache: its key, and the SHA-256 of its bytes.

    Example:
        >>> bundle = Path("skin.dermedge")
        >>> key = EngineKey("ab" * 32, "10.3.0", "87", {"batch": 1})
        >>> file = store_engine(bundle, key, b"serialized engine")
        >>> find_cached_engine(bundle, key) == file
        True
        >>> read_plan(bundle, file)
        b'serialized engine'
    """

    key: EngineKey
    sha256: str


@dataclass(frozen=True)
class _BuildRecord:
    """Part of `NAME.device.json` that decides whether an engine may be used.

    `allowed_failures` lists the failed limits that the user accepted.
    """

    bundle: str
    status: str
    engine: EngineFile
    allowed_failures: tuple[str, ...]


def record_path(bundle: Path) -> Path:
    """Return the path `NAME.device.json` beside a bundle.

    Example:
        >>> record_path(Path("skin.dermedge")).name
        'skin.device.json'
    """
    return bundle.with_name(f"{_stem(bundle)}.device.json")


def cache_folder(bundle: Path) -> Path:
    """Return the path `NAME.cache` beside a bundle."""
    return bundle.with_name(f"{_stem(bundle)}.cache")


def find_usable_engine(bundle: Bundle, tensorrt: str, sm: str) -> EngineFile:
    """Return the engine that was built from a bundle for this device, and passed.

    Args:
        bundle: The opened bundle.
        tensorrt: Full version of this machine's TensorRT.
        sm: Compute capability of this machine's GPU, without the dot.

    Raises:
        EngineError: No such engine was built, its record is not readable, or it failed
            its gate.
    """
    path = record_path(bundle.path)
    again = _again(bundle.path)
    if not path.exists():
        raise EngineError(f"No engine is built for this device. {again}.")
    record = _read_record(path, again)
    key = record.engine.key
    if record.bundle != bundle.id or (key.tensorrt, key.sm) != (tensorrt, sm):
        raise EngineError(
            f"No engine is built for this device: {path.name} has one of bundle "
            f"{record.bundle[:16]} for TensorRT {key.tensorrt} and SM {key.sm}; here are "
            f"{bundle.id[:16]}, TensorRT {tensorrt} and SM {sm}. {again}."
        )
    if record.status == "failed" and not record.allowed_failures:
        raise EngineError(
            f"The engine of this device failed its gate ({path.name} has the reasons) and is not "
            "used. Export the model in another precision, or build again with --rebuild."
        )
    return record.engine


def read_plan(bundle: Path, engine: EngineFile) -> bytes:
    """Return the bytes of a built engine; raise EngineError if missing or damaged."""
    path = _plan_path(bundle, engine.key)
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"The engine {path} cannot be read ({error.strerror}). {_again(bundle)}."
        ) from error
    if sha256_hex(plan) != engine.sha256:
        raise EngineError(f"The engine {path} is damaged. {_again(bundle)}.")
    return plan


def find_cached_engine(bundle: Path, key: EngineKey) -> EngineFile | None:
    """Return the cached engine with a key, or None if it was never built.

    Raises:
        EngineError: The entry in the cache is damaged.
    """
    path = _facts_path(bundle, key)
    if not path.exists():
        return None
    try:
        return _read_engine(read_json(path, EngineError))
    except (KeyError, TypeError) as error:
        raise EngineError(f"{path} is damaged. {_again(bundle)}.") from error


def store_engine(bundle: Path, key: EngineKey, plan: bytes) -> EngineFile:
    """Put a built engine into the cache."""
    # The facts are written last: without them an engine does not count, so a kill
    # between the two writes leaves no entry that looks whole.
    engine = EngineFile(key, sha256_hex(plan))
    atomic_write(_plan_path(bundle, key), plan)
    atomic_write(_facts_path(bundle, key), pretty_json(to_json(engine)))
    return engine


def read_timings(bundle: Path, key: EngineKey) -> bytes:
    """Return the timing cache of earlier builds for this device; else no bytes."""
    path = _timings_path(bundle, key)
    return path.read_bytes() if path.exists() else b""


def write_timings(bundle: Path, key: EngineKey, timings: bytes) -> None:
    """Store a timing cache for the next build, which then selects the same kernels."""
    atomic_write(_timings_path(bundle, key), timings)


def _again(bundle: Path) -> str:
    """Return the advice to build the engine of a bundle."""
    return f"Run `dermedge build {bundle}`"


def _stem(bundle: Path) -> str:
    return bundle.name.removesuffix(".zip").removesuffix(".dermedge")


def _plan_path(bundle: Path, key: EngineKey) -> Path:
    return cache_folder(bundle) / f"{key.digest}.engine"


def _facts_path(bundle: Path, key: EngineKey) -> Path:
    return cache_folder(bundle) / f"{key.digest}.json"


def _timings_path(bundle: Path, key: EngineKey) -> Path:
    return cache_folder(bundle) / f"tensorrt-{key.tensorrt}-sm{key.sm}.timings"


def _read_record(path: Path, again: str) -> _BuildRecord:
    data = read_json(path, EngineError)
    try:
        if data["schema"] != SCHEMA:
            raise EngineError(
                f"{path} has schema {data['schema']!r}, this dermedge reads {SCHEMA!r}. {again}."
            )
        return _BuildRecord(
            data["bundle"],
            data["status"],
            _read_engine(data["engine"]),
            tuple(data["allowed_failures"]),
        )
    except (KeyError, TypeError) as error:
        raise EngineError(f"{path} is not a device record (it lacks {error}). {again}.") from error


def _read_engine(data: Json) -> EngineFile:
    key = data["key"]
    return EngineFile(
        EngineKey(key["onnx"], key["tensorrt"], key["sm"], key["flags"]), data["sha256"]
    )
