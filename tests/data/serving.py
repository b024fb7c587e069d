"""A loopback HTTP server with configurable faults."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `body` at every path. Each request uses up one of `faults`; then responses are correct.

    Faults: a status code; `drop` (a third, then the connection ends), `stall` (a third, then silence), `slow`, `long` and
    `short` (a Content-Length that lies by 1,000), `garbage` (one that is not a number), `digits` (one of 5,000 digits),
    `shifted` (another part than asked for), `capped` (at most 50,000 bytes a part), `other` (first, body and tag become
    those of another version), `to:URL` (a redirection).
    """

    def __init__(self, body: bytes) -> None:
        self.body, self.tag, self.modified = body, '"v0"', ""
        self.ranges = self.if_range = True
        self.faults: list[str] = []
        self.requests: list[dict[str, str]] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.requests.append(dict(self.headers))
                with suppress(ConnectionError):
                    outer.answer(self, outer.faults.pop(0) if outer.faults else "")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin"

    @property
    def asked(self) -> list[str | None]:
        """The Range of each request."""
        return [request.get("Range") for request in self.requests]

    def answer(self, handler: BaseHTTPRequestHandler, fault: str) -> None:
        if fault.startswith("to:"):
            handler.send_response(302)
            handler.send_header("Location", fault[3:])
            handler.end_headers()
            return
        if fault == "other":
            self.body, self.tag = bytes(255 - byte for byte in self.body), f'"v{len(self.requests)}"'
        if fault.isdigit():
            handler.send_error(int(fault))
            return
        start, stop = self.span(handler), len(self.body)
        if start > 0 and start >= stop:
            handler.send_error(416)
            return
        if fault == "capped" and start >= 0:
            stop = min(stop, start + 50_000)
        if fault == "shifted" and start >= 0:
            start += 7
        self.head(handler, fault, start, stop)
        self.send(handler, fault, self.body[max(start, 0) : stop])

    def span(self, handler: BaseHTTPRequestHandler) -> int:
        """The first byte of the response, -1 for the whole file."""
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        fresh = condition in (None, self.tag, self.modified) or not self.if_range
        return int(asked[1]) if asked and self.ranges and fresh else -1

    def head(self, handler: BaseHTTPRequestHandler, fault: str, start: int, stop: int) -> None:
        handler.send_response(200 if start < 0 else 206)
        if self.tag:
            handler.send_header("ETag", self.tag)
        if self.modified:
            handler.send_header("Last-Modified", self.modified)
        if start >= 0:
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(self.body)}")
        lie = {"long": 1000, "short": -1000}.get(fault, 0)
        handler.send_header(
            "Content-Length", {"garbage": "many", "digits": "9" * 5000}.get(fault) or str(stop - max(start, 0) + lie)
        )
        handler.end_headers()

    def send(self, handler: BaseHTTPRequestHandler, fault: str, rest: bytes) -> None:
        if fault in ("drop", "stall"):
            handler.wfile.write(rest[: len(rest) // 3])
            if fault == "stall":
                self.over.wait(20)
        elif fault == "slow":
            for place in range(0, len(rest), 3000):
                handler.wfile.write(rest[place : place + 3000])
                time.sleep(0.02)
        else:
            handler.wfile.write(rest)


@contextmanager
def serving(body: bytes) -> Iterator[Server]:
    """A running server, stopped after the block."""
    server = Server(body)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()
