"""`serve` answers with the page and the bundle's listed files, and with nothing else."""

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from dermedge.workflows.serve import PageServer, serve
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import BundleError, UsageError
from support.command import TOY, dermedge, refused, rewrite_manifest

SECRET = "a file beside the page"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that stands for the built page, with a file beside it."""
    folder = tmp_path_factory.mktemp("built") / "page"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>Lesions</title>")
    (folder / "assets" / "engine-4f3a.wasm").write_bytes(b"\0asm")
    (folder / "assets" / "index-91bc.js").write_text("export {};")
    (folder / ".vite").mkdir()
    (folder / ".vite" / "manifest.json").write_text("{}")
    (folder.parent / "secret.txt").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def server(page: Path) -> Iterator[PageServer]:
    with serve(TOY, port=0, page=page) as running:
        yield running


def ask(
    server: PageServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_it_serves_the_page_and_every_file_of_the_bundle(server: PageServer) -> None:
    status, headers, content = ask(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"Lesions" in content
    bundle = Bundle.open(TOY)
    manifest = json.loads(ask(server, "/bundle/manifest.json")[2])
    assert manifest["id"] == bundle.id
    for name in bundle.files:
        assert ask(server, f"/bundle/{quote(name)}")[2] == bundle.read(name), name


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/assets/engine-4f3a.wasm", "application/wasm"),
        ("/assets/index-91bc.js", "text/javascript; charset=utf-8"),
        ("/bundle/manifest.json", "application/json"),
        ("/bundle/model.onnx", "application/octet-stream"),
        ("/bundle/modelcard.md", "application/octet-stream"),
    ],
)
def test_every_file_has_its_type(server: PageServer, path: str, kind: str) -> None:
    assert ask(server, path)[1]["Content-Type"] == kind


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/assets/../../secret.txt",
        "/..%2fsecret.txt",
        "/..\\secret.txt",
        "//etc/passwd",
        "/bundle/../secret.txt",
        "/bundle/%00",
        "/bundle/",
        "/bundle",
        "/assets/",
        "/assets",
        "/.vite/manifest.json",
        "/index.html/",
        "/%ff",
        "*",
        "http://127.0.0.1/../secret.txt",
    ],
)
def test_no_other_path_has_an_answer(server: PageServer, path: str) -> None:
    status, _, content = ask(server, path)
    assert status == 404
    assert SECRET.encode() not in content
    assert b"assets" not in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_nothing_can_be_sent_to_it(server: PageServer, method: str) -> None:
    status, headers, _ = ask(server, "/bundle/manifest.json", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_answers_as_get_without_content(server: PageServer) -> None:
    status, headers, content = ask(server, "/", "HEAD")
    assert (status, content) == (200, b"")
    assert headers["Content-Length"] == ask(server, "/")[1]["Content-Length"] != "0"


def test_a_browser_keeps_what_did_not_change(server: PageServer) -> None:
    headers = ask(server, "/bundle/model.onnx")[1]
    assert headers["ETag"] == f'"{Bundle.open(TOY).files["model.onnx"]}"'
    assert headers["Cache-Control"] == "no-cache"
    again, kept, content = ask(server, "/bundle/model.onnx", If_None_Match=headers["ETag"])
    assert (again, content) == (304, b"")
    assert kept["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert ask(server, "/bundle/model.onnx", If_None_Match='"other"')[0] == 200
    assert "immutable" in ask(server, "/assets/index-91bc.js")[1]["Cache-Control"]
    assert "immutable" not in ask(server, "/index.html")[1]["Cache-Control"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/none"), ("POST", "/")])
def test_every_answer_isolates_the_page(server: PageServer, method: str, path: str) -> None:
    headers = ask(server, path, method)[1]
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Permissions-Policy"].startswith("camera=(self), microphone=()")
    policy = dict(
        rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == policy["worker-src"] == policy["style-src"] == "'self'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert "python" not in headers.get("Server", "").lower()


def test_a_foreign_name_for_this_machine_is_refused(server: PageServer) -> None:
    port = urlsplit(server.url).port
    assert ask(server, "/", Host=f"attacker.example:{port}")[0] == 421
    assert ask(server, "/", Host=f"localhost:{port}")[0] == 200
    assert ask(server, "/", Host=f"[::1]:{port}")[0] == 200
    assert ask(server, "/", Host="[::bad")[0] == 421


def send(server: PageServer, request: bytes) -> bytes:
    """Send bytes as they are, and return all that the server answers."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_content_of_a_request_is_no_second_request(server: PageServer) -> None:
    smuggled = b"GET /bundle/modelcard.md HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    assert send(server, head + smuggled).count(b"HTTP/1.1 ") == 1


def test_a_malformed_request_gets_an_error(server: PageServer) -> None:
    end = b"Host: localhost\r\nConnection: close\r\n\r\n"
    assert send(server, b"GET http://[bad/ HTTP/1.1\r\n" + end).startswith(b"HTTP/1.1 404 ")
    assert b"Bad request" in send(server, b"\x16\x03\x01\x02\r\n\r\n")
    long = b"GET /%s HTTP/1.1\r\n" % (b"a" * 70_000)
    assert send(server, long).startswith(b"HTTP/1.1 414 ")


def test_a_file_that_changes_meanwhile_is_not_served(page: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(TOY).save(tmp_path / "toy.dermedge")
    with serve(bundle, port=0, page=page) as running:
        (bundle.path / "model.onnx").write_bytes(b"another model")
        status, _, content = ask(running, "/bundle/model.onnx")
        assert (status, b"changed since the bundle was opened" in content) == (500, True)
        assert ask(running, "/bundle/modelcard.md")[0] == 200


@pytest.mark.parametrize("form", ["openvino", "tensorrt", "coreml"])
def test_a_format_that_no_browser_runs_is_refused(page: Path, tmp_path: Path, form: str) -> None:
    bundle = Bundle.open(TOY).save(tmp_path / "toy.dermedge")
    manifest = json.loads((bundle.path / "manifest.json").read_bytes())
    rewrite_manifest(bundle.path, {"artifact": manifest["artifact"] | {"format": form}})
    message = refused(dermedge("serve", bundle.path, "--port", 0, "--page", page), 2)
    assert form in message
    assert "--target web" in message


def test_bad_arguments_are_explained(page: Path, tmp_path: Path, server: PageServer) -> None:
    port = urlsplit(server.url).port
    none = tmp_path / "none.dermedge"
    for args, words in (
        ((none,), "no bundle"),
        ((TOY, "--port", port), f"Port {port} of 127.0.0.1 is in use."),
        ((TOY, "--host", "no such host"), "Use 127.0.0.1"),
        ((TOY, "--host", "192.0.2.1"), "Use 127.0.0.1"),
        ((TOY, "--key", page / "index.html"), "Add --cert."),
        ((TOY, "--cert", tmp_path / "none.pem"), "There is no file"),
        ((TOY, "--cert", page / "index.html"), "as PEM"),
    ):
        assert words in refused(dermedge("serve", *args, "--page", page), 2)
    for wrong in (-1, 65536):
        with pytest.raises(UsageError, match="Choose another --port"):
            serve(TOY, port=wrong, page=page)


def test_a_missing_page_names_the_command_that_builds_it(tmp_path: Path) -> None:
    message = refused(dermedge("serve", TOY, "--page", tmp_path), 4)
    assert "`make web`" in message


def test_a_damaged_bundle_is_refused_before_anything_listens(page: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(TOY).save(tmp_path / "toy.dermedge")
    (bundle.path / "model.onnx").write_bytes(b"another model")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        serve(bundle.path, port=0, page=page)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-x509"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [openssl, "req", *options, *names, "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_with_a_certificate_it_speaks_https(page: Path, certificate: Path) -> None:
    with serve(TOY, port=0, page=page, cert=certificate) as running:
        assert running.url.startswith("https://")
        assert running.secure
        parts = urlsplit(running.url)
        # A client that opens a connection and says nothing does not stop the others.
        with socket.create_connection((parts.hostname, parts.port)):
            connection = http.client.HTTPSConnection(
                parts.netloc,
                context=ssl.create_default_context(cafile=str(certificate)),
                timeout=10,
            )
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            connection.close()


def test_from_the_network_it_says_what_a_phone_needs(page: Path) -> None:
    with serve(TOY, host="0.0.0.0", port=0, page=page) as running:
        assert not running.secure
        assert "0.0.0.0" not in running.url
        assert ask(running, "/")[0] == 200


# A process that a script starts in the background ignores SIGINT, and so do its children.
INTERRUPTIBLE = """
import signal
from dermedge.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_the_command(page: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTIBLE, "serve", TOY, "--port", "0", "--page", page]
    with subprocess.Popen(
        [*command, "--host", "0.0.0.0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        try:
            assert running.stdout.readline().startswith("http://")
            assert "toy 1.0.0 (onnx, fp32)" in running.stdout.readline()
            assert "--cert" in running.stderr.readline()
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, out) == (0, "Stopped.\n")
    assert "Traceback" not in err
