"""Proxies between a worker and its services which a test tells to be silent, to hang up, or to answer a fault."""

import http.client
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_CHUNK = 65_536
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})


class _Served:
    """A server on a thread, for as long as a block lasts."""

    def __init__(self, server: socketserver.TCPServer) -> None:
        self._server = server
        self.port = int(server.server_address[1])
        self.faults = 0
        """How often somebody met the fault."""
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class TcpProxy(_Served):
    """Passes bytes to a port of loopback."""

    def __init__(self, upstream_port: int) -> None:
        owner = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                owner._serve(self.request)

        super().__init__(_Threads(("127.0.0.1", 0), Handler))
        self._upstream_port = upstream_port
        self._away = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: set[socket.socket] = set()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Cut every connection, and each new one, for as long as the block lasts."""
        self._away.set()
        self._cut()
        try:
            yield
        finally:
            self._away.clear()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Take connections and bytes, and pass nothing on, for as long as the block lasts; nothing is lost."""
        self._flowing.clear()
        try:
            yield
        finally:
            self._flowing.set()

    def __exit__(self, *_: object) -> None:
        self._away.set()
        self._flowing.set()
        self._cut()
        super().__exit__()

    def _cut(self) -> None:
        for connection in tuple(self._open):
            _shut(connection)

    def _serve(self, client: socket.socket) -> None:
        if self._away.is_set():
            self.faults += 1
            return
        with socket.create_connection(("127.0.0.1", self._upstream_port)) as upstream:
            self._open |= {client, upstream}
            back = threading.Thread(target=self._pass_on, args=(upstream, client), daemon=True)
            back.start()
            self._pass_on(client, upstream)
            back.join()
            self._open -= {client, upstream}

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if not self._flowing.is_set():
                    self.faults += 1
                    self._flowing.wait()
                sink.sendall(data)
        _shut(source)
        _shut(sink)


class HttpProxy(_Served):
    """Passes requests to a server on loopback."""

    def __init__(self, upstream_port: int) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two wait for each other's acknowledgement

            def do_GET(self) -> None:
                owner._serve(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET  # noqa: N815  (the base class looks for them)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        self._upstream_port = upstream_port
        self._fault: tuple[str, int] | None = None
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def away(self) -> Iterator[None]:
        """Close every connection instead of an answer, for as long as the block lasts."""
        with self._faulty("", 0):
            yield

    @contextmanager
    def refusing(self, method: str, status: int) -> Iterator[None]:
        """Answer requests of a method with a status, for as long as the block lasts."""
        with self._faulty(method, status):
            yield

    @contextmanager
    def _faulty(self, method: str, status: int) -> Iterator[None]:
        self._fault = method, status
        try:
            yield
        finally:
            self._fault = None

    def _serve(self, asked: BaseHTTPRequestHandler) -> None:
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0))
        if (fault := self._fault) is not None and fault[0] in ("", asked.command):
            self.faults += 1
            if fault[1] == 0:
                asked.close_connection = True
                return
            self._answer(asked, fault[1], [], b"no space left on device")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=60)
        try:
            headers = {name: value for name, value in asked.headers.items() if name.lower() not in _HOP}
            upstream.request(asked.command, asked.path, body, headers)
            response = upstream.getresponse()
            self._answer(asked, response.status, response.getheaders(), response.read())
        finally:
            upstream.close()

    def _answer(self, asked: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        asked.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                asked.send_header(name, value)
        asked.send_header("Content-Length", str(len(body)))
        asked.end_headers()
        if asked.command != "HEAD":
            asked.wfile.write(body)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
