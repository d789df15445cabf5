"""A store on loopback: a folder over HTTP with Range, that can be cut off, slow or gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class HttpStore:
    """Counts requests by kind. down: answers 503. cut: sends half of a body, then hangs up, so many
    times. gone: 404. no_ranges: always the whole file. tag: part of every ETag."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.down = self.gone = self.no_ranges = False
        self.cut = 0
        self.tag = "1"
        self.ranges: list[tuple[str, int, int]] = []
        self.url = ""


def _handler(store: HttpStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = store.folder / self.path.lstrip("/")
            if store.down or store.gone or not path.is_file():
                self.send_response(503 if store.down else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, size = path.read_bytes(), path.stat().st_size
            asked = self.headers.get("Range")
            if asked and body and not store.no_ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = int(first), min(int(last) + 1, size)
                store.ranges.append((path.name, start, end))
                data = data[start:end]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{path.name}-{size}-{store.tag}"')
            self.end_headers()
            if not body:
                return
            if store.cut > 0:
                store.cut -= 1
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            self.wfile.write(data)

    return Handler


@contextmanager
def serving(folder: Path) -> Iterator[HttpStore]:
    store = HttpStore(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
