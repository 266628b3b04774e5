"""What a device finds later, beside the bundle, which stays as it is: `NAME.device.json`, the record of the engine that
was built and gated there, and `NAME.cache`, the engine itself.

An engine fits one GPU and one TensorRT, so it is a cache: its name is a digest of what it was made of and for, and
anything else is built again. The record decides whether it may be used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import canonical_json, pretty_json, read_json
from dermedge_runtime.errors import EngineError
from dermedge_runtime.files import atomic_write, sha256_hex
from dermedge_runtime.spec import to_json

SCHEMA = "dermedge.device/1"


@dataclass(frozen=True)
class EngineKey:
    """What an engine was made of and for: the SHA-256 of its ONNX file, TensorRT's full version, the GPU's compute
    capability without the dot, and how it was built.
    """

    onnx: str
    tensorrt: str
    sm: str
    flags: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The engine's name in the cache."""
        return sha256_hex(canonical_json(to_json(self)))


@dataclass(frozen=True)
class EngineFile:
    """A built engine: its key, and the SHA-256 of its bytes."""

    key: EngineKey
    sha256: str


@dataclass(frozen=True)
class BuildRecord:
    """The part of `NAME.device.json` that decides whether an engine may be used.

    `allowed_failures` are the reasons for which the gate was shut, where somebody opened it on purpose.
    """

    bundle: str
    status: str
    engine: EngineFile
    allowed_failures: tuple[str, ...]


def record_path(bundle: Path) -> Path:
    """`NAME.device.json` beside the bundle."""
    return bundle.with_name(f"{_stem(bundle)}.device.json")


def cache_folder(bundle: Path) -> Path:
    """`NAME.cache` beside the bundle."""
    return bundle.with_name(f"{_stem(bundle)}.cache")


def usable(bundle: Bundle, tensorrt: str, sm: str) -> EngineFile:
    """The engine that was built of this very bundle for this TensorRT and GPU, and that passed there.

    Raises:
        EngineError: there is none, its record is not readable, or it failed.
    """
    path = record_path(bundle.path)
    again = _again(bundle.path)
    if not path.exists():
        raise EngineError(f"No engine is built for this device: {again}.")
    record = _record(path, again)
    key = record.engine.key
    if record.bundle != bundle.id or (key.tensorrt, key.sm) != (tensorrt, sm):
        raise EngineError(
            f"No engine is built for this device: {path.name} has one of bundle {record.bundle[:16]} for TensorRT "
            f"{key.tensorrt} and SM {key.sm}; here are {bundle.id[:16]}, TensorRT {tensorrt} and SM {sm}: {again}."
        )
    if record.status == "failed" and not record.allowed_failures:
        raise EngineError(
            f"The engine of this device failed its gate ({path.name} says why) and is not used: export the model in "
            "another precision, or build the engine anew with --rebuild."
        )
    return record.engine


def read_plan(bundle: Path, engine: EngineFile) -> bytes:
    """The bytes of a built engine. Raises EngineError where they are missing or damaged."""
    path = _plan_path(bundle, engine.key)
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"The engine {path} cannot be read ({error.strerror}): {_again(bundle)}."
        ) from error
    if sha256_hex(plan) != engine.sha256:
        raise EngineError(f"The engine {path} is damaged: {_again(bundle)}.")
    return plan


def cached(bundle: Path, key: EngineKey) -> EngineFile | None:
    """What is known of the engine with that key, None where it was never built."""
    path = _facts_path(bundle, key)
    if not path.exists():
        return None
    try:
        return _engine(read_json(path, EngineError))
    except (KeyError, TypeError) as error:
        raise EngineError(f"{path} is damaged: {_again(bundle)}.") from error


def store(bundle: Path, key: EngineKey, plan: bytes) -> EngineFile:
    """Put an engine into the cache, its facts last, so that a kill leaves none that looks whole."""
    engine = EngineFile(key, sha256_hex(plan))
    atomic_write(_plan_path(bundle, key), plan)
    atomic_write(_facts_path(bundle, key), pretty_json(to_json(engine)))
    return engine


def read_timings(bundle: Path, key: EngineKey) -> bytes:
    """What earlier builds for this TensorRT and GPU have learned; nothing where there was none."""
    path = _timings_path(bundle, key)
    return path.read_bytes() if path.exists() else b""


def write_timings(bundle: Path, key: EngineKey, timings: bytes) -> None:
    """Keep it for the next build, which then chooses the same kernels."""
    atomic_write(_timings_path(bundle, key), timings)


def _again(bundle: Path) -> str:
    return f"run `dermedge build {bundle}`"


def _stem(bundle: Path) -> str:
    return bundle.name.removesuffix(".zip").removesuffix(".dermedge")


def _plan_path(bundle: Path, key: EngineKey) -> Path:
    return cache_folder(bundle) / f"{key.digest}.engine"


def _facts_path(bundle: Path, key: EngineKey) -> Path:
    return cache_folder(bundle) / f"{key.digest}.json"


def _timings_path(bundle: Path, key: EngineKey) -> Path:
    return cache_folder(bundle) / f"tensorrt-{key.tensorrt}-sm{key.sm}.timings"


def _record(path: Path, again: str) -> BuildRecord:
    data = read_json(path, EngineError)
    try:
        if data["schema"] != SCHEMA:
            raise EngineError(
                f"{path} has schema {data['schema']!r}, this dermedge reads {SCHEMA!r}: {again}."
            )
        return BuildRecord(
            data["bundle"], data["status"], _engine(data["engine"]), tuple(data["allowed_failures"])
        )
    except (KeyError, TypeError) as error:
        raise EngineError(f"{path} is no device record (it lacks {error}): {again}.") from error


def _engine(data: Any) -> EngineFile:
    key = data["key"]
    return EngineFile(
        EngineKey(key["onnx"], key["tensorrt"], key["sm"], key["flags"]), data["sha256"]
    )
