"""`serve`: serve the example page and a bundle to browsers."""

import errno
import os
import socket
import ssl
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from dermedge.workflows.page import FOLDER, Resource, list_resources, open_for_browsers
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.printable import printable

ALLOWED = "GET, HEAD"
IDLE_SECONDS = 30  # A connection without a request is closed after this time.
# Threads of WebAssembly need a page that is isolated from other origins (COOP and COEP).
# The policy forbids every request to another server, and every script and style outside
# the page's own files.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; "
    "worker-src 'self'; connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "style-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer:
    """A running server of the page and one bundle; the result of `serve`.

    `url` is the address to open. `secure` is True if a browser treats that address as a
    secure context: HTTPS, or this machine. Only there does it allow the camera, and
    SubtleCrypto, which checks the bundle's files.

    Example:
        >>> from dermedge.workflows.serve import serve
        >>> Path("page").mkdir(exist_ok=True)
        >>> _ = Path("page/index.html").write_text("<!doctype html><title>Lesions</title>")
        >>> with serve("toy.dermedge", port=0, page="page") as server:
        ...     server.url.startswith("http://127.0.0.1:"), server.secure
        (True, True)
    """

    def __init__(self, bundle: Bundle, listener: "_Listener", url: str, secure: bool) -> None:
        self.bundle = bundle
        self.url = url
        self.secure = secure
        self._listener = listener
        self._thread = threading.Thread(target=listener.serve_forever, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Block until the server is closed, or until Ctrl-C raises KeyboardInterrupt."""
        # Windows does not interrupt a join that has no time limit.
        while self._thread.is_alive():
            self._thread.join(1)

    def close(self) -> None:
        """Stop the server and free its port."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def __enter__(self) -> "PageServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    bundle: Path | str | Bundle,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    cert: Path | str | None = None,
    key: Path | str | None = None,
    page: Path | str | None = None,
) -> PageServer:
    """Serve the example page and a bundle; return the running server.

    The page runs the model in the browser. No image reaches the server: it answers GET
    and HEAD for the page's files and for those that the bundle's manifest lists.

    Args:
        bundle: A bundle or its path, in a format that browsers run.
        host: Address to listen on. The default is reached from this machine only,
            `0.0.0.0` from the network.
        port: TCP port; 0 chooses a free one.
        cert: Certificate for HTTPS as PEM, with its chain. A phone needs HTTPS.
        key: Private key of `cert` as PEM. Default: it is in the same file.
        page: Folder of a built page. Default: the one that was built with dermedge.

    Raises:
        UsageError: The bundle's format does not run in browsers, `host` or `port` cannot
            be used, or `cert` and `key` are not a certificate and its key.
        BundleError: The bundle is damaged.
        MissingPageError: The page is not built.

    Example:
        >>> from urllib.request import urlopen
        >>> Path("page").mkdir(exist_ok=True)
        >>> _ = Path("page/index.html").write_text("<!doctype html><title>Lesions</title>")
        >>> with serve("toy.dermedge", port=0, page="page") as server:
        ...     urlopen(server.url + "bundle/modelcard.md").readline().decode().strip()
        '# toy 1.0.0'
    """
    opened = open_for_browsers(bundle)
    resources = list_resources(Path(page) if page is not None else FOLDER, opened)
    context = _tls_context(cert, key)
    listener = _listen(host, port, resources, context)
    scheme = "http" if context is None else "https"
    url = f"{scheme}://{_reachable_name(host)}:{listener.server_address[1]}/"
    return PageServer(opened, listener, url, context is not None or _is_this_machine(host))


class _Listener(ThreadingTCPServer):
    """TCP server with one thread per connection, with TLS if it has a context."""

    allow_reuse_address = os.name != "nt"  # On Windows two servers could share the port.
    daemon_threads = True
    request_queue_size = 64  # A browser opens several connections at once.

    def __init__(
        self, host: str, port: int, resources: dict[str, Resource], tls: ssl.SSLContext | None
    ) -> None:
        self.resources = resources
        self.names = {host.lower(), "localhost"} if tls is None else None
        self.address_family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Handler)
        if tls is not None:
            # The handshake runs in the thread of its connection, on the first read, so
            # that a client that never answers does not stop the others.
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that a client breaks; print the traceback of a defect."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection from the listed resources, whatever path is asked for."""

    server: _Listener
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer with a listed file; 304 if the browser has it already."""
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # No body is read, so it must not become a request.
        if not self._is_own_name(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "This server has another name.")
            return
        resource = self.server.resources.get(unquote(self.path.partition("?")[0]))
        if resource is None:
            self.send_error(HTTPStatus.NOT_FOUND, "There is no such file.")
            return
        tag = f'"{resource.digest}"'
        if tag in self.headers.get("If-None-Match", ""):
            self._answer(HTTPStatus.NOT_MODIFIED, b"", {"ETag": tag, **resource.headers})
            return
        try:
            content = resource.read()
        except BundleError as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, printable(error))
            return
        self._answer(HTTPStatus.OK, content, {"ETag": tag, **resource.headers})

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error as plain text, with the headers of every answer."""
        # The base class reports a method without a `do_` as 501.
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, f"This server answers {ALLOWED} only."
        self.close_connection = True
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ALLOWED
        self._answer(code, f"{message or HTTPStatus(code).phrase}\n".encode(), headers)

    def version_string(self) -> str:
        """Return the name of this server, without versions that help an attacker."""
        return "dermedge"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the requests of a page are no news."""

    def _answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        if code != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _is_own_name(self, host: str) -> bool:
        """Return False for a foreign name, which a hostile site may resolve to this machine.

        Such a site could read the bundle ("DNS rebinding"). It needs a name, so an
        address is always fine, and over HTTPS its certificate would not fit.
        """
        names = self.server.names
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # An address in brackets that is none.
            return False
        return names is None or name in names or _is_address(name)


def _listen(
    host: str, port: int, resources: dict[str, Resource], tls: ssl.SSLContext | None
) -> _Listener:
    try:
        return _Listener(host, port, resources, tls)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(_why_not(host, port, error)) from error


def _why_not(host: str, port: int, error: Exception) -> str:
    """Return the message for an address that the server cannot listen on."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return (
            f"Port {port} of {host} is in use. "
            "Stop the program that uses it, or choose another --port (0: any free one)."
        )
    if number == errno.EACCES:
        return f"Port {port} needs rights that you do not have. Choose a --port above 1023."
    if isinstance(error, OverflowError):
        return f"Port {port} is not within 0..65535. Choose another --port."
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return (
        f"Cannot listen on {host!r} ({reason}). "
        "Use 127.0.0.1 for this machine, or 0.0.0.0 for the network."
    )


def _tls_context(cert: Path | str | None, key: Path | str | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None:
        raise UsageError(f"The key {key} has no certificate. Add --cert.")
    for path in (cert, key):
        if path is not None and not Path(path).is_file():
            raise UsageError(f"There is no file {path}. Check the path.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"{cert} and {key or 'its key'} cannot be used for HTTPS ({error}). "
            "Give a certificate and its unencrypted key as PEM."
        ) from error
    return context


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_this_machine(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _reachable_name(host: str) -> str:
    """Return the name to write in a URL; for "all addresses" the one of this machine."""
    if _is_address(host) and ip_address(host).is_unspecified:
        try:
            # Connecting a UDP socket sends nothing; it only chooses the local address.
            # 192.0.2.1 is reserved for documentation (RFC 5737).
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(("192.0.2.1", 9))
                host = str(probe.getsockname()[0])
        except OSError:
            host = socket.gethostname()
    return f"[{host}]" if ":" in host else host
