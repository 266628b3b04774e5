"""Test digests, canonical and strict JSON, atomic writes, and the registry of names."""

import errno
import hashlib
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import rfc8785

from dermedge_runtime.canonical_json import canonical_json, parse_json, pretty_json, read_json
from dermedge_runtime.errors import (
    BundleError,
    DataError,
    DermedgeError,
    MissingExtraError,
    UsageError,
)
from dermedge_runtime.files import atomic_folder, atomic_write, sha256_file, sha256_hex
from dermedge_runtime.registry import list_entries, load_entry, lookup, pick_known

# RFC 8785, appendix B: IEEE 754 bits and the text they must become.
RFC_NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}


@pytest.mark.parametrize(("bits", "text"), RFC_NUMBERS.items())
def test_canonical_numbers_are_those_of_the_rfc(bits, text):
    assert canonical_json(struct.unpack(">d", bytes.fromhex(bits))[0]) == text.encode()


def test_canonical_json_equals_that_of_the_reference_package():
    rng = random.Random(7)
    floats = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(5000)]
    floats += [rng.uniform(-10, 10) * 10 ** rng.randint(-30, 30) for _ in range(5000)]
    floats += [round(rng.uniform(0, 1000), rng.randint(0, 5)) for _ in range(2000)]
    texts = [
        "",
        "é",
        "\u20ac",
        "\U0001f600",
        "\ufb33",
        "\x00\x1f\x7f\x80\u2028",
        '"\\/\b\f\n\r\t',
        "</script>",
    ]
    values = [
        *(value for value in floats if value - value == 0),
        *(rng.randint(-(2**53) + 1, 2**53 - 1) for _ in range(200)),
        *texts,
        {text + "x": text for text in texts},
        {"\U0001f600": 1, "\ufb33": 2, "\r": 3, "1": 4, "\u20ac": 5, "\x80": 6, "ö": 7},
        [True, False, None, [], {}, [[1.0, -0.0], {"a": {"b": [1e-7]}}], (1, 2)],
    ]
    assert len(values) > 10_000
    for value in values:
        assert canonical_json(value) == rfc8785.dumps(value)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**53,
        -(2**53),
        {1: 2},
        {"a": {1, 2}},
        b"x",
        "\ud800",
        {"\ud800": 1},
        object(),
    ],
)
def test_canonical_json_refuses_what_json_cannot_carry(value):
    with pytest.raises(UsageError):
        canonical_json(value)
    with pytest.raises(UsageError):
        pretty_json([value])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b'{"a": 1, "a": 2}',
        b"9007199254740993",
        b"-100000000000000000001",
        b"1000000000000000000000",
        b"[" + b"9" * 5000 + b"]",
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_strict_json_refuses_text_that_languages_read_differently(text, tmp_path):
    with pytest.raises(BundleError, match=r"the manifest is not valid JSON"):
        parse_json(text, "the manifest", BundleError)
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(DataError, match=r"x\.json"):
        read_json(tmp_path / "x.json", DataError)


@pytest.mark.parametrize("value", [2.0**53, -(2.0**53), 1e20, 999999999999999900000.0])
def test_a_float_that_the_rfc_writes_as_an_integer_is_read_as_a_float(value):
    read = parse_json(canonical_json(value), "the manifest", BundleError)
    assert isinstance(read, float)
    assert read == value


def test_read_json_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json"):
        read_json(tmp_path / "gone.json", DataError)


def test_pretty_json_reads_back_and_does_not_depend_on_the_order_of_keys():
    value = {"b": [1, 2.5, None], "a": {"ü": "€", "z": True}}
    assert read_back(pretty_json(value)) == value
    assert pretty_json({"a": {"z": True, "ü": "€"}, "b": [1, 2.5, None]}) == pretty_json(value)


def read_back(data):
    return json.loads(data.decode("utf-8"))


def test_the_digest_of_a_file_is_the_digest_of_its_bytes(tmp_path):
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == sha256_hex(data) == hashlib.sha256(data).hexdigest()


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "x.json"
    atomic_write(target, b"one")
    with target.open("rb") as reader:
        atomic_write(target, b"two")
        assert reader.read() == b"one"
    assert target.read_bytes() == b"two"
    assert [p.name for p in target.parent.iterdir()] == ["x.json"]


def test_atomic_write_that_fails_keeps_the_old_and_says_so(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "keep").write_bytes(b"old")
    with pytest.raises(DermedgeError, match=r"taken"):
        atomic_write(tmp_path / "taken", b"data")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["keep", "taken"]


def refuse_to_flush(monkeypatch, code, *, folders):
    real = os.fsync

    def fsync(descriptor):
        if folders is None or stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("folders", [True, False])
@pytest.mark.parametrize(
    "code", ["EINVAL", "ENOTSUP", "ENOSYS", "EACCES", "EPERM", "EBADF", "EROFS"]
)
def test_a_file_system_that_cannot_flush_is_written_to(tmp_path, monkeypatch, code, folders):
    refuse_to_flush(monkeypatch, getattr(errno, code), folders=folders)
    atomic_write(tmp_path / "x", b"new")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "y").write_bytes(b"new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "x", "y"]


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_failed_flush_is_an_error(tmp_path, monkeypatch, code):
    (tmp_path / "x").write_bytes(b"old")
    refuse_to_flush(monkeypatch, getattr(errno, code), folders=False)
    with pytest.raises(DermedgeError, match=r"^Cannot write .*x \(.*\)\. Free space"):
        atomic_write(tmp_path / "x", b"new")
    with (
        pytest.raises(DermedgeError, match=r"^Cannot write .*out \("),
        atomic_folder(tmp_path / "out") as folder,
    ):
        (folder / "y").write_bytes(b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


def test_a_full_disk_behind_an_error_of_a_library_names_the_file_of_the_user(tmp_path):
    with (
        pytest.raises(DermedgeError, match=r"^Cannot write .*out \(No space left"),
        atomic_folder(tmp_path / "out") as folder,
    ):
        try:
            with Path("/dev/full").open("wb", buffering=0) as stream:
                stream.write(b"x")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
    with pytest.raises(RuntimeError, match="a defect"), atomic_folder(tmp_path / "out") as folder:
        (folder / "y").write_bytes(b"new")
        raise RuntimeError("a defect")
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path;"
        "from dermedge_runtime.files import append_line;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20));"
        "[append_line(Path(sys.argv[1]), 'a line') for _ in range(3)]"
    )
    log = tmp_path / "log.txt"
    done = subprocess.run(
        [sys.executable, "-c", code, log], capture_output=True, text=True, check=False
    )
    assert "DermedgeError: Cannot write" in done.stderr
    assert log.read_text() == "a line\na line\n"


def test_atomic_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "out"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"a")
        assert not target.exists()
    assert (target / "sub" / "a").read_bytes() == b"a"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_atomic_folder_that_fails_leaves_what_was_there(tmp_path, overwrite):
    target = tmp_path / "out"
    if overwrite:
        target.mkdir()
        (target / "old").write_bytes(b"old")
    with pytest.raises(KeyError), atomic_folder(target, overwrite=overwrite) as folder:
        (folder / "new").write_bytes(b"new")
        raise KeyError("stop")
    assert sorted(p.name for p in tmp_path.rglob("*")) == (["old", "out"] if overwrite else [])


def test_atomic_folder_overwrites_only_with_overwrite(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"exists already"), atomic_folder(target):
        pytest.fail("the block must not run")
    with atomic_folder(target, overwrite=True) as folder:
        (folder / "new").write_bytes(b"new")
        assert (target / "old").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "out"]


def test_atomic_folder_replaces_a_file_too(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    with atomic_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_bytes(b"new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "out"]


def test_the_old_folder_is_put_back_if_the_new_one_cannot_be_renamed(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    with pytest.raises(DermedgeError), atomic_folder(target, overwrite=True) as folder:
        folder.rmdir()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["old", "out"]


def test_a_folder_without_the_marker_is_not_overwritten(tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "photo.jpg").write_bytes(b"dear")
    album = atomic_folder(tmp_path / "album", overwrite=True, marker="manifest.json")
    with pytest.raises(UsageError, match=r"without manifest\.json"), album:
        pytest.fail("the block must not run")
    assert (tmp_path / "album" / "photo.jpg").read_bytes() == b"dear"


def test_a_folder_that_appeared_during_the_block_is_not_overwritten(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(UsageError, match=r"exists already"), atomic_folder(target) as folder:
        (folder / "mine").write_bytes(b"mine")
        target.mkdir()
        (target / "theirs").write_bytes(b"theirs")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "theirs"]


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_a_path_without_a_name_is_refused(name):
    with pytest.raises(UsageError), atomic_folder(Path(name), overwrite=True):
        pytest.fail("the block must not run")


def test_a_kill_during_an_atomic_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from dermedge_runtime.files import atomic_write;"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL);"
        "atomic_write(Path(sys.argv[1]), b'new' * 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"


def test_an_unknown_name_gets_the_nearest_one():
    message = r"Unknown target 'jetsn'. Did you mean 'jetson'\? Known: cpu, jetson\."
    with pytest.raises(UsageError, match=message):
        pick_known("target", "jetsn", ["jetson", "cpu"])
    with pytest.raises(UsageError, match=r"Unknown target 'x'. Known: none\."):
        pick_known("target", "x", [])
    assert pick_known("target", "cpu", ["jetson", "cpu"]) == "cpu"


def test_entry_points_add_names_but_cannot_take_built_in_ones(tmp_path, monkeypatch):
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dermedge.runtimes]\nonnx = evil:Runtime\nplugged = json:loads\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    builtin = {"onnx": "json:dumps"}
    assert list_entries(builtin, "dermedge.runtimes") == {
        "onnx": "json:dumps",
        "plugged": "json:loads",
    }
    assert lookup("format", "plugged", builtin, "dermedge.runtimes") is json.loads
    assert lookup("format", "onnx", builtin, "dermedge.runtimes") is json.dumps
    with pytest.raises(UsageError, match=r"Did you mean 'plugged'"):
        lookup("format", "plugge", builtin, "dermedge.runtimes")


def test_an_entry_that_does_not_load_raises_a_usage_error():
    assert load_entry("json:JSONDecoder.decode") is json.JSONDecoder.decode
    for bad in ("json:absent", "no_such_module:x", ":x"):
        with pytest.raises(UsageError, match=bad):
            load_entry(bad)
    with pytest.raises(MissingExtraError, match=r"dermedge\[onnxruntime\]"):
        load_entry("no_such_module:x", extra="onnxruntime")
